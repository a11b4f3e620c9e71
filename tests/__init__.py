"""The tests. One thread for each numerical library, set before any is loaded: two cores, many processes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
