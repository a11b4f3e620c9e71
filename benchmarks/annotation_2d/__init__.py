"""Networks in slices beside networks in boxes: `python -m benchmarks.annotation_2d OUT`."""
