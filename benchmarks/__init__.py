"""Measurements of cryoscale; each is run with `python -m`, from a checkout."""
