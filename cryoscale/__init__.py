"""cryoscale: from thousands of cryo-electron tomograms to picks, encodings, clusters and label volumes."""

__version__ = "0.1.0"
