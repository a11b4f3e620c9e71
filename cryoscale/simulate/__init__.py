"""Tomograms with known truth: densities, packing, membranes, imaging."""
