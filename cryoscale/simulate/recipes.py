"""Recipes: simulated data sets by name, those of the papers among them.

The papers' own data sets were never released, and their structures are not shipped here. `STAND_INS` says
which density takes the place of which structure; `structures="paper"` asks for the papers' own, which
`cryoscale simulate structures` downloads.

Pei, Xu, Frazier, Alber 2016, doi:10.1186/s12859-016-1283-3.
DSM-Net: Liu, Zeng, Wang, Guo, Xu 2018, "Multi-task Learning for Macromolecule Classification, Segmentation
and Coarse Structural Recovery in Cryo-Tomography".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from cryoscale.config.simulate import SimulateConfig
from cryoscale.errors import ConfigurationError

Structures = Literal["stand-in", "paper"]

STAND_INS: dict[str, tuple[str, str]] = {
    "1A1S": ("1bxn", "a compact enzyme of many subunits for another (Rubisco)"),
    "1BXR": ("1f4a", "a large enzyme for another (beta-galactosidase)"),
    "1EQR": ("2cg9", "an elongated dimer for another (Hsp90)"),
    "1F1B": ("7n4y", "none of its size is left: a large dimer (thyroglobulin)"),
    "1GYT": ("3cf3", "a hexamer for another (p97)"),
    "1KP8": ("3j9i", "plays GroEL: stacked rings of seven (20S proteasome)"),
    "1KYI": ("2uv8", "a large barrel for another (fatty acid synthase)"),
    "1QO1": ("4cr2", "a long, asymmetric machine for another (26S proteasome)"),
    "1VPX": ("1u6g", "none of its kind is left: an elongated complex (Cand1-Cul1)"),
    "1VRG": ("6qzp", "none of its size is left: a human 80S ribosome"),
    "1W6T": ("3d2f", "none of its kind is left: two chaperones (Sse1, Hsp70)"),
    "1YG6": ("1qvr", "the unfolding partner of such a protease (ClpB)"),
    "2AWB": ("4v4r", "a whole 70S ribosome for its large subunit"),
    "2BO9": ("1s3x", "a single domain of 40 kDa for another (of Hsp70)"),
    "2BYU": ("8tux", "a much larger hollow shell for a small one"),
    "2GHO": ("3h84", "none of its size is left: a small dimer (Get3)"),
    "2GLS": ("6pxm", "a round shell for a stack of rings (apoferritin)"),
    "2H12": ("3gl1", "none of its size is left: a small domain (of Ssb1)"),
    "2IDB": ("5mrc", "none of its size is left: a yeast mitochondrial ribosome"),
    "2REC": ("4v7r", "none of its size is left: a yeast 80S ribosome"),
    "3DY4": ("6utj", "a 20S proteasome for another"),
    "1FNT": ("3ipm", "a 20S proteasome for one with an activator"),
}
"""Structure of the papers: the density that stands in for it, and why that one."""

PEI = tuple(name for name in STAND_INS if name != "1FNT")
"""The 21 structures of Pei et al. 2016; DSM-Net's 22nd is probably 1FNT."""

_LARGE = ("2uv8", "3ipm", "4cr2", "4v4r", "4v7r", "5mrc", "6qzp", "6utj", "7n4y", "8tux")
"""Stand-ins of 120 Å radius or more: as many of these as of the others would fill more than the volume."""

_PEI_COPIES = {
    "1bxn": 375, "1f4a": 150, "2cg9": 430, "7n4y": 52, "3cf3": 280, "3j9i": 165, "2uv8": 39, "4cr2": 43,
    "1u6g": 250, "6qzp": 26, "3d2f": 112, "1qvr": 118, "4v4r": 34, "1s3x": 2790, "8tux": 28, "3h84": 1300,
    "6pxm": 345, "3gl1": 1300, "5mrc": 21, "4v7r": 36, "6utj": 76,
}  # fmt: skip
"""Of each stand-in in proportion to 1 / volume, so that all fill about as much; scaled to the asked total."""


def _pei_2016(structures: Structures) -> dict[str, Any]:
    """500 x 500 x 200 voxels of 1 nm; 2000, 5000 and 8000 copies of 21 structures at 4 nm."""
    if structures == "paper":
        particles = [{"density": name, "copies": 381} for name in PEI]
    else:
        stand_ins = [STAND_INS[name][0] for name in PEI]
        particles = [{"density": name, "copies": _PEI_COPIES[name]} for name in stand_ins]
    return {
        "variants": [{"name": f"copies{n}", "copies": n} for n in (2000, 5000, 8000)],
        "scene": {
            "shape": [200, 500, 500], "voxel_size_angstrom": 10.0, "resolution_angstrom": 40.0,
            "margin_angstrom": 0.0, "particles": particles,
        },
        "imaging": {
            "snr": 0.05, "defocus_micrometre": 15.0, "spherical_aberration_mm": 2.2,
            "amplitude_contrast": 0.0,
        },
    }  # fmt: skip


def _dsm_net(snr: float) -> Callable[[Structures], dict[str, Any]]:
    def made(structures: Structures) -> dict[str, Any]:
        """600 x 600 x 300 voxels of 1 nm; 10,000 copies of 22 structures; 3205 subtomograms of 40^3."""
        if structures == "paper":
            particles = [{"density": name, "copies": 455} for name in STAND_INS]
        else:
            names = [stand_in for stand_in, _ in STAND_INS.values()]
            particles = [{"density": n, "copies": 150 if n in _LARGE else 708} for n in names]
        return {
            "variants": [{"name": "dsm", "copies": 10_000}],
            "scene": {
                "shape": [300, 600, 600], "voxel_size_angstrom": 10.0, "resolution_angstrom": 40.0,
                "margin_angstrom": 0.0, "particles": particles,
            },
            "imaging": {"snr": snr, "defocus_micrometre": 5.0, "amplitude_contrast": 0.0},
            "subtomograms": {"size_voxels": 40, "count": 3205},
        }  # fmt: skip

    return made


def _dsm_net_c(structures: Structures) -> dict[str, Any]:
    """Return a stand-in for rat neurons: 400 ribosomes and 386 proteasomes, tilts -50 to +70, 13.68 Å."""
    ribosome, proteasome = ("4UG0", "1FNT") if structures == "paper" else ("6qzp", "4cr2")
    return {
        "variants": [{"name": "neuron"}],
        "scene": {
            "shape": [200, 464, 464], "voxel_size_angstrom": 13.68, "margin_angstrom": 280.0,
            "particles": [
                {"density": ribosome, "name": "ribosome", "copies": 400, "contrast": 1.4},
                {"density": proteasome, "name": "proteasome", "copies": 386},
            ],
            "membranes": {"vesicles": 4, "planes": 1},
        },
        "imaging": {
            "snr": 0.1, "tilt_min_degrees": -50.0, "tilt_max_degrees": 70.0, "defocus_micrometre": 4.0,
        },
        "subtomograms": {"size_voxels": 40, "count": 786},
    }  # fmt: skip


def _cell(structures: Structures) -> dict[str, Any]:
    """Return a crowded slab of cytosol: ribosomes at membranes and free, enzymes, filaments, gold, carbon."""
    if structures == "paper":
        raise ConfigurationError("the recipe 'cell' is of no paper.", remedy="Leave --structures away.")
    return {
        "tomograms": 2,
        "scene": {
            "shape": [160, 464, 464], "voxel_size_angstrom": 13.48, "margin_angstrom": 170.0,
            "particles": [
                {"density": "6qzp", "name": "ribosome", "copies": 220, "contrast": 1.4},
                {"density": "6qzp", "name": "ribosome", "copies": 60, "contrast": 1.4, "placement": "at"},
                {"density": "2uv8", "name": "fatty-acid-synthase", "copies": 60},
                {"density": "4cr2", "name": "proteasome-26s", "copies": 60},
                {"density": "3j9i", "name": "proteasome-20s", "copies": 120},
                {"density": "6pxm", "name": "ferritin", "copies": 120, "contrast": 2.0, "least_share": 0.5},
                {"density": "3cf3", "name": "p97", "copies": 120, "placement": "near"},
                {"density": "1bxn", "name": "rubisco", "copies": 150},
            ],
            "membranes": {"vesicles": 5, "double_vesicles": 1, "planes": 1},
            "filaments": {"microtubules": 2, "actin": 5},
            "surroundings": {"gold_beads": 6, "border_angstrom": 200.0},
        },
        "imaging": {"snr": 0.1, "defocus_micrometre": 4.0, "envelope": 1.0, "tilt_step_degrees": 3.0},
    }  # fmt: skip


def _cell_demo(structures: Structures) -> dict[str, Any]:
    """Return small cells of built-in shapes: no file is needed."""
    if structures == "paper":
        raise ConfigurationError("the recipe 'cell-demo' is of no paper.", remedy="Leave --structures away.")
    return {
        "tomograms": 2,
        "scene": {
            "shape": [64, 192, 192], "voxel_size_angstrom": 14.0,
            "particles": [
                {"density": "ribosome", "copies": 60},
                {"density": "ribosome", "copies": 20, "placement": "at"},
                {"density": "barrel", "copies": 80},
                {"density": "ball", "copies": 80},
            ],
            "membranes": {"vesicles": 4},
        },
        "imaging": {"snr": 0.1, "defocus_micrometre": 4.0, "envelope": 1.0},
    }  # fmt: skip


RECIPES: dict[str, Callable[[Structures], dict[str, Any]]] = {
    "cell-demo": _cell_demo,
    "cell": _cell,
    "pei-2016": _pei_2016,
    "dsm-net-a": _dsm_net(0.06),
    "dsm-net-b": _dsm_net(0.01),
    "dsm-net-c": _dsm_net_c,
}
"""Recipe by name."""


def recipe(name: str, *, seed: int, structures: Structures = "stand-in") -> SimulateConfig:
    """Return the settings of a recipe.

    Parameters
    ----------
    name : str
        As in `RECIPES`.
    seed : int
        Of the whole data set.
    structures : str
        "stand-in" or "paper": which densities play the parts.

    Raises
    ------
    ConfigurationError
        There is no such recipe, or it is of no paper.
    """
    if name not in RECIPES:
        raise ConfigurationError(f"there is no recipe '{name}'.", remedy=f"Use one of {', '.join(RECIPES)}.")
    return SimulateConfig.model_validate({**RECIPES[name](structures), "recipe": name, "seed": seed})


def describe() -> list[dict[str, Any]]:
    """Say in a few numbers what each recipe makes."""
    rows = []
    for name in RECIPES:
        made = recipe(name, seed=0)
        copies = [variant.copies for variant in made.variants if variant.copies]
        whole = sum(p.copies for p in made.scene.particles)
        rows.append(
            {
                "name": name, "shape": list(made.scene.shape),
                "voxel_size_angstrom": made.scene.voxel_size_angstrom,
                "tomograms": len(made.names), "classes": len(made.scene.particle_classes),
                "copies": ", ".join(map(str, copies or [whole])), "snr": made.imaging.snr,
                "subtomograms": made.subtomograms.count if made.subtomograms else 0,
            }
        )  # fmt: skip
    return rows
