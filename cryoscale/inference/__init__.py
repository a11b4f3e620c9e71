"""A model and a batch to an array, fast: torch on CPU or CUDA, OpenVINO on the CPU where it is installed."""
