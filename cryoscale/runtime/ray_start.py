"""Starting Ray or joining one: loopback, a token, short paths, deadlines, no chatter."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cryoscale
from cryoscale.errors import SurroundingsError
from cryoscale.runtime.environment import environment

if TYPE_CHECKING:
    from cryoscale.runtime.executor import ExecutorSettings

# Blocks read and write storage themselves; the object store carries descriptors only. Ray's least is 75 MB.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024

# Unix socket paths end at 107 characters, of which Ray appends about 65 and our folder 19.
LONGEST_SCRATCH = 20


def start_embedded(settings: ExecutorSettings, folder: Path) -> None:
    """Start a Ray of our own on loopback; its processes end with the calling thread."""
    import ray

    variables = _embedded_environment(settings.thread_environment)
    with environment(variables), _loopback_only(), quietly():
        ray.init(
            address="local",
            num_cpus=settings.local_workers * settings.threads_per_worker,
            num_gpus=settings.gpus or 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="CRITICAL",
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )


def join_cluster(address: str, limit_s: float) -> None:
    """Join a running cluster with a deadline: `ray.init` itself may wait in silence for ever.

    Raises
    ------
    SurroundingsError
        If nothing answers at the address.
    TimeoutError
        If joining took longer than `limit_s`.
    """
    import ray

    _require_reachable(address, limit_s)
    problem: list[BaseException] = []

    def join() -> None:
        try:
            with quietly():
                ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=join, name="join-ray", daemon=True)
    thread.start()
    thread.join(limit_s)
    if problem:
        raise problem[0]
    if thread.is_alive():
        raise TimeoutError("ray.init did not return")


# The token of the Ray that this process starts. Ray reads how to authenticate when it is imported and keeps
# it, so there is one token per process, and none if somebody else imported Ray before.
_TOKEN: dict[str, str] = {}


def import_ray(*, embedded: bool) -> Any:
    """Import Ray, with a token of our own if this is its first import and the engine will be ours."""
    if embedded and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        _TOKEN.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    with environment(_TOKEN), quietly():
        import ray
    return ray


def _embedded_environment(threads: Mapping[str, str]) -> dict[str, str]:
    package_root = str(Path(cryoscale.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    return {
        **threads,
        **_TOKEN,
        # Workers start in Ray's own folder: without this they find the package only if it is installed.
        "PYTHONPATH": path,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Make Ray take 127.0.0.1 as the address of this node.

    Ray turns a node address of 127.0.0.1 into the machine's outer one, and then its servers listen on all
    interfaces, unless it believes that clusters are impossible here. That switch is an environment variable
    which is read when Ray is imported; if that has happened, only the constant is left.
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def quietly() -> Iterator[None]:
    """Silence Python warnings of Ray's own code, and no others: wrap single calls only."""
    with warnings.catch_warnings():
        # Ray warns about its own coming defaults and about files that its subprocesses leave open.
        warnings.simplefilter("ignore")
        yield


def _require_reachable(address: str, limit_s: float) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name that Ray resolves itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=limit_s).close()
    except OSError as error:
        raise SurroundingsError(
            f"nothing answers at the Ray address {address} ({error}).",
            remedy="Check the address and that the head node runs (`ray status` there), and the network.",
        ) from error
