"""Imported by the fork server of `crashes`: loads and compiles once what every driver would do again.

Nothing here may start a thread, since threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import os

# Before anything is imported: a pool of OpenMP's threads would not survive the fork, and its children hang.
os.environ["OMP_NUM_THREADS"] = "1"

import dask
import numpy as np

from cryoscale.learn.kmeans import fit_kmeans

for name in (
    "cryoscale.learn.training", "cryoscale.models.registry", "cryoscale.inference.engine",
    "cryoscale.inference.openvino_cpu", "openvino", "openvino.frontend.pytorch.ts_decoder", "sklearn.cluster",
    "torch.jit", "cryoscale.inference.wrappers", "cryoscale.learn.losses", "cryoscale.inference.torch_any",
    "cryoscale.runtime.serial", "torch._dynamo", "torch.onnx",
):  # fmt: skip
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

_ROWS_NF = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
with dask.config.set(scheduler="synchronous"):  # dask-ml compiles its kernels at the first fit
    fit_kmeans([lambda: _ROWS_NF[:32], lambda: _ROWS_NF[32:]], [32, 32], n_clusters=3, seed=0)
