"""The tables of the papers on SSN3D-ED and DSM-Net, training by training: `python -m benchmarks.dsm_net`."""
