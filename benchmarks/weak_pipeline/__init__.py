"""What the weak pipeline achieves on simulated cells: `python -m benchmarks.weak_pipeline OUT`."""
