"""Starting Ray or joining one: loopback, a token, short paths, deadlines, no chatter."""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cryoscale
from cryoscale.errors import RefusedError, SurroundingsError
from cryoscale.runtime.environment import environment
from cryoscale.runtime.keeper import Kept
from cryoscale.runtime.members_ray import (
    OBJECT_STORE_BYTES,
    RayNode,
    address_towards,
    package_path,
    ray_environment,
)
from cryoscale.runtime.scratch import claim_folder, drop_folder
from cryoscale.runtime.signals import kept, take_back

if TYPE_CHECKING:
    from cryoscale.runtime.executor import ExecutorSettings

# Unix socket paths end at 107 characters, of which Ray appends about 65 and our folder 19.
LONGEST_SCRATCH = 20

_ASK_S, _END_S, _PAUSE_S, _LOOK_S = 60.0, 35.0, 0.1, 5.0

# How a client of gRPC begins without TLS (RFC 9113, 3.4), and the first byte of the answer: the length of a
# frame of settings. A server that wants TLS sends something else or hangs up.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_SETTINGS = b"\0"


def start_embedded(settings: ExecutorSettings, folder: Path) -> None:
    """Start a Ray of our own on loopback; its processes end with the calling thread."""
    import ray

    variables = _embedded_environment(settings.thread_environment)
    with environment(variables), _loopback_only(), kept(), quietly():
        ray.init(
            address="local",
            num_cpus=settings.local_workers * settings.threads_per_worker,
            num_gpus=settings.gpus or 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="CRITICAL",
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )


def join_cluster(address: str, limit_s: float) -> None:
    """Join a running cluster with a deadline: `ray.init` itself may wait in silence for ever.

    A driver talks to a Ray node of its own machine. Where there is none, one without CPUs and GPUs is
    started, which ends with `leave_cluster` or this process, whatever way that ends.

    Parameters
    ----------
    address : str
        Of the head, host:port. The token comes from the environment.
    limit_s : float
        How long each step may take, seconds.

    Raises
    ------
    SurroundingsError
        If nothing answers at the address, the token is refused, or Ray or Python are other versions there.
    TimeoutError
        If joining took longer than `limit_s`.
    """
    import ray

    _require_reachable(address, limit_s)
    options: dict[str, Any] = {}
    if (there := _host_and_port(address)) is not None:
        here = address_towards(*there)
        if here not in {node["host"] for node in ask_cluster(address, limit_s)["nodes"]}:
            options = {"_node_ip_address": here, "_temp_dir": str(_start_node(address, here, limit_s))}
    problem: list[BaseException] = []

    def join() -> None:
        try:
            with quietly():
                ray.init(address=address, log_to_driver=False, logging_level="CRITICAL", **options)
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=join, name="join-ray", daemon=True)
    thread.start()
    thread.join(limit_s)
    take_back()
    if problem:
        leave_cluster()
        raise problem[0]
    if thread.is_alive():
        leave_cluster()
        raise TimeoutError("ray.init did not return")


# The node that `join_cluster` started for this process, and its folder.
_NODE: list[tuple[Kept, Path]] = []


def leave_cluster() -> None:
    """End the node that `join_cluster` started, if it did; after `ray.shutdown`. Safe to call again."""
    while _NODE:
        kept, folder = _NODE.pop()
        kept.terminate()
        kept.wait(_END_S)
        kept.kill()
        drop_folder(folder)


def ask_cluster(address: str, limit_s: float) -> dict[str, Any]:
    """Ask the head who is in its cluster, in a process of its own: Ray's client may wait for ever, or exit.

    Returns
    -------
    cluster : dict
        `ray` and `python` (versions), `nodes` (list of `host`, `name`, `resources`).

    Raises
    ------
    RefusedError
        If the token is refused, or versions or encryption differ.
    SurroundingsError
        If nobody answers in Ray's language; that may only be a head that is starting.
    """
    if problem := _other_encryption(address):
        raise RefusedError(problem)
    words = [sys.executable, "-m", "cryoscale.runtime.members_ray", "ask", address]
    variables = {**os.environ, **package_path()}
    try:
        done = subprocess.run(
            words, env=variables, capture_output=True, text=True, timeout=min(limit_s, _ASK_S), check=False
        )
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise SurroundingsError(
            f"what listens at {address} does not answer like the head of a Ray cluster "
            f"({type(error).__name__}).",
            remedy=f"Check the port. {_encryption()}",
        ) from error
    if "error" in said:
        raise _refusal(address, said)
    for name, mine in (("Ray", version("ray")), ("Python", platform.python_version())):
        there = said[name.lower()]
        if there and there != mine:
            raise RefusedError(
                f"the Ray cluster at {address} runs {name} {there}, this process runs {mine}.",
                remedy="Install the same versions there and here.",
            )
    return said


def _refusal(address: str, said: Mapping[str, str]) -> SurroundingsError:
    if "auth" in f"{said['error']} {said['message']}".lower():
        token = os.environ.get("RAY_AUTH_TOKEN_PATH") or (
            "the variable RAY_AUTH_TOKEN" if "RAY_AUTH_TOKEN" in os.environ else "(none given)"
        )
        return RefusedError(
            f"the Ray cluster at {address} refuses our token, which comes from {token}. Give --secrets the "
            "folder that the cluster was started with, or set RAY_AUTH_TOKEN_PATH."
        )
    message = said["message"].splitlines()[0] if said["message"] else ""
    return SurroundingsError(
        f"the Ray cluster at {address} cannot be asked ({said['error']}: {message}). {_encryption()}"
    )


def _other_encryption(address: str) -> str:
    """Say so if one side speaks TLS and the other does not: Ray itself would try for most of a minute."""
    there = _host_and_port(address)
    if there is None:
        return ""
    try:
        with socket.create_connection(there, timeout=_LOOK_S) as plain:
            plain.settimeout(_LOOK_S)
            if os.environ.get("RAY_USE_TLS") == "1":
                with _ray_context().wrap_socket(plain):
                    return ""
            plain.sendall(_HTTP2_GREETING)
            if plain.recv(1) == _SETTINGS:
                return ""
            return f"{address} does not speak Ray's language without TLS. {_encryption()}"
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {address} is not of our CA ({error.verify_message}). {_encryption()}"
    except ssl.SSLError as error:
        return f"{address} does not speak TLS with us ({error.reason or error}). {_encryption()}"
    except ConnectionResetError:
        return f"{address} hangs up. {_encryption()}"
    except OSError:
        return ""  # what comes next says it better


def _ray_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ["RAY_TLS_CA_CERT"])
    context.check_hostname = False
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    context.set_alpn_protocols(["h2"])
    return context


def _encryption() -> str:
    used = os.environ.get("RAY_USE_TLS") == "1"
    return (
        f"This side speaks {'TLS' if used else 'without TLS'}; Ray uses TLS where the certificate in "
        "--secrets names the members: all need the same folder."
    )


def _start_node(address: str, here: str, limit_s: float) -> Path:
    """Start a node without CPUs on this machine, in a folder of its own; wait until it has joined."""
    folder = claim_folder(None, "cryoscale-")
    node = RayNode(here, address, folder, cpus=0, gpus=0)
    variables = {**os.environ, **ray_environment(here, None)}
    log = folder / "node.log"
    with log.open("wb") as output:
        kept = Kept(node.command(), variables, output)
    _NODE.append((kept, folder))
    deadline = time.monotonic() + limit_s
    while b"runtime started" not in log.read_bytes():
        if kept.wait(_PAUSE_S) or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()[-600:]
            leave_cluster()
            raise SurroundingsError(
                f"this machine ({here}) could not join the Ray cluster at {address} as a node without CPUs. "
                f"It said: {said}",
                remedy="Machines of a Ray cluster reach each other on all ports: look at the firewall.",
            )
    return folder


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None


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
    there = _host_and_port(address)
    if there is None:
        return  # "auto", or a name that Ray resolves itself
    try:
        socket.create_connection(there, timeout=limit_s).close()
    except OSError as error:
        raise SurroundingsError(
            f"nothing answers at the Ray address {address} ({error}).",
            remedy="Check the address and that the head node runs (`ray status` there), and the network.",
        ) from error
