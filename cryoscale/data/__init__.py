"""Artifacts on storage: all that a run keeps; the only room that knows zarr, parquet and fsspec."""
