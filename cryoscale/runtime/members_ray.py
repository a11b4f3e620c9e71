"""One machine's part in a Ray cluster: how it is started, and the launcher that starts it.

`python -m cryoscale.runtime.members_ray start …` is `ray start …` without the server for Ray Client, which
Ray opens on all interfaces as soon as gRPC for Python is installed. `… ask ADDRESS` says what is there.
"""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cryoscale
from cryoscale.errors import ConfigurationError, SurroundingsError

# Blocks read and write storage themselves; the object store carries descriptors only. Ray's least is 75 MB.
OBJECT_STORE_BYTES = 100 * 1024 * 1024
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

# A machine that does not answer is given up after 3 x (3 + 5) s; one that lost its head ends after 30 s.
_DEADLINES = {
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
}


@dataclass(frozen=True)
class RayNode:
    """What a machine offers to Ray.

    Parameters
    ----------
    host : str
        Its address, as the others reach it.
    head : str
        Address of the head, host:port; with the host `host` and `leads` it is this one.
    folder : Path
        Ray's own files: sockets, logs, the object store's spill.
    cpus, gpus : int or None
        None lets Ray count.
    leads : bool
        Whether this machine is the head.
    """

    host: str
    head: str
    folder: Path
    cpus: int | None = None
    gpus: int | None = None
    leads: bool = False

    def command(self) -> list[str]:
        """Return the command line, which stays in the foreground."""
        port = self.head.rpartition(":")[2]
        # No monitor: it scales clouds, and serves metrics on all interfaces. No log monitor: the driver asks
        # for no output of workers.
        role = (
            ["--head", f"--port={port}", "--no-monitor", "--include-dashboard=false"]
            if self.leads
            else [f"--address={self.head}"]
        )
        counts = {"--num-cpus": self.cpus, "--num-gpus": self.gpus}
        return [
            sys.executable, "-m", "cryoscale.runtime.members_ray", "start", *role, "--block",
            f"--node-ip-address={self.host}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.folder}",
            "--include-log-monitor=false", "--disable-usage-stats",
            *(f"{name}={count}" for name, count in counts.items() if count is not None),
        ]  # fmt: skip


def ray_environment(host: str, secrets: Mapping[str, str] | None) -> dict[str, str]:
    """Return the variables of Ray's processes on a machine; never those of this process's embedded Ray.

    Parameters
    ----------
    host : str
        Address of the machine.
    secrets : mapping or None
        `Secrets.ray_environment`; without a token in it, this process's variables must name one. None: as
        this process is.

    Raises
    ------
    ConfigurationError
        If there is no token: who reaches a Ray without one can run code as you.
    """
    variables = {**_DEADLINES, **package_path(), "RAY_USAGE_STATS_ENABLED": "0"}
    variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    if is_loopback(host):
        # Ray would take the machine's outer address in its place; see `ray_start`.
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if secrets is None:
        return variables
    if "RAY_AUTH_MODE" in secrets:
        return {**variables, **secrets}
    if not any(os.environ.get(name) for name in _TOKENS):
        raise ConfigurationError(
            "Ray needs a token: without one, who reaches it can run code as you.",
            remedy="Give --secrets FOLDER (made by `cryoscale engine secrets FOLDER`), or set "
            "RAY_AUTH_TOKEN_PATH.",
        )
    return {**variables, **secrets, "RAY_AUTH_MODE": "token"}


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_towards(host: str, port: int) -> str:
    """Return the address of this machine from which it reaches another; nothing is sent.

    Raises
    ------
    SurroundingsError
        If the name is unknown, or there is no way there.
    """
    try:
        family, *_, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as connection:
            connection.connect(there)
            return str(connection.getsockname()[0])
    except OSError as error:
        raise SurroundingsError(
            f"there is no way from here to {host} ({error.strerror or error})."
        ) from error


def package_path() -> dict[str, str]:
    """Return PYTHONPATH with this package, for processes that start elsewhere."""
    # Workers start in Ray's own folder: without this they find the package only if it is installed.
    root = str(Path(cryoscale.__file__).resolve().parent.parent)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}


def _start() -> None:
    from ray.scripts import scripts

    # `ray start` opens the server for Ray Client whenever it could; a reason why it could not keeps it shut.
    scripts.get_ray_client_dependency_error = lambda: "cryoscale uses none"
    sys.argv[0] = "ray"
    scripts.main()


def _ask(address: str) -> None:
    """Print what a cluster says of itself: versions, and the addresses of its machines."""
    from ray._common.usage.usage_lib import get_cluster_metadata

    try:
        client = importlib.import_module("ray._raylet").GcsClient(address=address)
        metadata = get_cluster_metadata(client) or {}
        nodes = [
            {
                "host": node.node_manager_address,
                "name": node.node_manager_hostname,
                "resources": {name: node.resources_total[name] for name in node.resources_total},
            }
            for node in client.get_all_node_info(timeout=30).values()
            if node.state == 0  # ALIVE
        ]
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error).strip()[:2000]}))
        return
    versions = {"ray": metadata.get("ray_version", ""), "python": metadata.get("python_version", "")}
    print(json.dumps({**versions, "nodes": nodes}))


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        _ask(sys.argv[2])
    else:
        _start()
