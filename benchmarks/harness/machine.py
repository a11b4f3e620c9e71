"""What was measured on what: hardware, versions, commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy", "scipy", "torch", "openvino", "zarr", "numcodecs", "dask", "dask-ml", "scikit-learn", "ray",
    "ome-zarr", "ngff-zarr", "tensorstore", "zarrs", "scikit-image", "dask-image", "monai", "faiss-cpu",
    "cupy",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return hardware, versions and commit; nothing that names a person or a place."""
    hardware = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(_memory() / 2**30, 1),
        "gpu": _gpu(),
    }
    return {
        **hardware,
        "machine": hashlib.sha256(repr(sorted(hardware.items())).encode()).hexdigest()[:12],
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit of this checkout, with "+" where files differ from it; "" outside of one."""
    root = Path(__file__).parents[2]
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        # Reports are written while the suite runs: they are no change of what is measured.
        dirty = _git(
            root, "status", "--porcelain", "--", "cryoscale", "benchmarks/cases", "benchmarks/harness"
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if dirty else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _gpu() -> str:
    try:
        import torch
    except ImportError:
        return ""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
