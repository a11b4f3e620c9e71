"""Losses, one training loop, and k-means over encodings. Only `kmeans` needs dask."""
