"""What this machine offers, for `cryoscale doctor`: versions, cores, memory, devices, engines."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cryoscale
from cryoscale.runtime.memory import available_bytes, cpu_count

_REQUIRED = (
    "click", "dask", "dask-ml", "distributed", "fsspec", "jinja2", "matplotlib", "mrcfile", "numpy", "pandas",
    "pyarrow", "pydantic", "ray", "rich", "safetensors", "scikit-learn", "scipy", "starfile", "tomli-w",
    "torch", "zarr",
)  # fmt: skip
_OPTIONAL = {
    "openvino": "encoding on x86 processors is faster with it: pip install openvino",
    "s3fs": "runs on S3 stores need it: pip install s3fs",
    "gcsfs": "runs on Google Cloud Storage need it: pip install gcsfs",
}


def describe() -> dict[str, Any]:
    """Describe this machine with plain values, ready for JSON.

    Returns
    -------
    description : dict
        Keys `cryoscale`, `python`, `executable`, `platform`, `cores`, `memory_available_bytes`,
        `scratch_free_bytes`, `packages` (name to version or None), `engines` (name to bool), `cuda` (list of
        name, bytes, capability), `openvino` (list of names), and two lists of sentences with remedies:
        `problems` (what stops or harms work) and `suggestions` (what would be faster or possible besides).
    """
    packages = {name: _version(name) for name in (*_REQUIRED, *_OPTIONAL)}
    cuda, cuda_problems = _cuda_devices()
    openvino, openvino_problems = _openvino_devices()
    return {
        "cryoscale": cryoscale.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": cpu_count(),
        "memory_available_bytes": available_bytes(),
        "scratch_free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
        "packages": packages,
        "engines": {"serial": True, "dask": _importable("distributed"), "ray": _importable("ray")},
        "cuda": cuda,
        "openvino": openvino,
        "problems": [
            *(f"{name} is not installed: pip install {name}" for name in _REQUIRED if not packages[name]),
            *_machine_problems(),
            *cuda_problems,
            *openvino_problems,
        ],
        "suggestions": [
            f"{name} is not installed: {why}" for name, why in _OPTIONAL.items() if not packages[name]
        ],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _importable(module: str) -> bool:
    # Found, not imported: importing an engine here would cost seconds and start threads.
    return importlib.util.find_spec(module) is not None


def _machine_problems() -> list[str]:
    problems = []
    if available_bytes() < 4_000_000_000:
        problems.append("less than 4 GB of memory is available: set execution.memory_budget and few workers.")
    if not os.access(tempfile.gettempdir(), os.W_OK):
        problems.append(
            f"the folder for temporary files, {tempfile.gettempdir()}, cannot be written: set TMPDIR."
        )
    shared = "/dev/shm"
    if os.path.isdir(shared) and shutil.disk_usage(shared).free < 200_000_000:
        problems.append(f"{shared} has less than 200 MB free, Ray needs it: in Docker use --shm-size=1g.")
    return problems


def _cuda_devices() -> tuple[list[dict[str, Any]], list[str]]:
    try:
        import torch

        devices = [
            {
                "name": torch.cuda.get_device_name(n),
                "bytes": int(torch.cuda.get_device_properties(n).total_memory),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(n))),
            }
            for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ]
        if not devices and shutil.which("nvidia-smi") and torch.version.cuda is None:
            return [], [
                "there is an NVIDIA driver, but torch is built without CUDA: install the CUDA build of torch."
            ]
    except Exception as error:  # a broken driver raises anything; doctor must still print the rest
        return [], [
            f"torch cannot be asked for CUDA devices ({type(error).__name__}: {error}): reinstall torch."
        ]
    return devices, []


def _openvino_devices() -> tuple[list[str], list[str]]:
    if not _importable("openvino"):
        return [], []
    try:
        import openvino

        return [str(name) for name in openvino.Core().available_devices], []
    except Exception as error:
        return [], [f"openvino does not start ({type(error).__name__}: {error}): reinstall openvino."]
