"""The processes of one machine in a cluster: which there are, in what environment, and how they end together.

::

    cryoscale engine lead            cryoscale engine join
      |-- Dask scheduler (TLS)         |-- Dask workers, each with a nanny (TLS)
      |-- Dask workers                 '-- Ray node (token)
      '-- Ray head (token)

One program that ends takes the others with it: half a machine looks healthy and is not. SIGTERM ends them
in order, the Dask workers first, whose running blocks have a grace. Each program has a keeper (`keeper`), so
that nothing survives a SIGKILL of the supervisor.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryoscale.errors import ConfigurationError, SurroundingsError
from cryoscale.runtime.dask_reach import try_scheduler
from cryoscale.runtime.executor import ExecutorSettings
from cryoscale.runtime.keeper import Kept
from cryoscale.runtime.members_dask import SchedulerPlan, WorkersPlan
from cryoscale.runtime.members_ray import RayNode, is_loopback, package_path, ray_environment
from cryoscale.runtime.memory import cpu_count
from cryoscale.runtime.ray_start import LONGEST_SCRATCH
from cryoscale.runtime.scratch import claim_folder, drop_folder
from cryoscale.runtime.secrets import Secrets

DASK_PORT, RAY_PORT = 8786, 6379
_END_S = 15.0  # how long a program may take to end besides the grace
_POLL_S = 0.25
_SHOWN_LINES = 30
_RAY_GRACE_S = 30.0  # Ray drains a node for so long by itself


@dataclass(frozen=True)
class Machine:
    """What this machine gives to a cluster.

    Parameters
    ----------
    host : str
        Its address, as the others reach it.
    workers : int
        Dask workers; 0 means one per core.
    cpus, gpus : int or None
        What Ray may use; None: one core of each, and all GPUs that Ray finds.
    memory_bytes : int or None
        Most that a Dask worker may take before it is ended; None sets no limit.
    scratch : Path or None
        Folder for temporary files, on a local disk; None means the system's.
    secrets : Secrets or None
        Certificates and token.
    grace_s : float
        How long running Dask blocks may take to end at SIGTERM.
    wait_s : float
        How long to wait for the machine that leads.
    """

    host: str
    workers: int = 0
    cpus: int | None = None
    gpus: int | None = None
    memory_bytes: int | None = None
    scratch: Path | None = None
    secrets: Secrets | None = None
    grace_s: float = 60.0
    wait_s: float = 120.0

    @property
    def certificates(self) -> Secrets | None:
        """The secrets, if they hold certificates."""
        return self.secrets if self.secrets is not None and self.secrets.has_certificates else None

    def dask_address(self, host: str, port: int) -> str:
        """Return the address of a scheduler: TLS wherever there are certificates."""
        return f"{'tls' if self.certificates else 'tcp'}://{host}:{port}"


@dataclass
class Member:
    """A program of this machine; others need one that ends `last`, and starts first.

    What one with a `log` says goes there, and its end is shown when it fails: most of what Ray prints is
    advice that does not hold here. `ready` in it means that it runs.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    grace_s: float = 0.0
    last: bool = False
    log: Path | None = None
    ready: str = ""
    kept: Kept | None = None


def run_scheduler(machine: Machine, port: int = DASK_PORT) -> None:
    """Run the Dask scheduler alone until SIGTERM.

    Raises
    ------
    ConfigurationError
        If it would listen beyond loopback without certificates.
    SurroundingsError
        If it could not be started, or ended by itself.
    """
    _require_certificates(machine)
    with _scratch(machine) as folder:
        supervise([_scheduler(machine, port, folder)])


def run_workers(machine: Machine, address: str) -> None:
    """Run the Dask workers of a machine until SIGTERM; raises like `run_scheduler`."""
    _require_certificates(machine)
    with _stoppable() as stop, _scratch(machine) as folder:
        if await_scheduler(address, machine, stop):
            supervise([_workers(machine, address, folder)], stop)


def run_lead(machine: Machine, port: int = DASK_PORT, ray_port: int = RAY_PORT) -> None:
    """Run the Dask scheduler, Dask workers and the Ray head until SIGTERM; raises like `run_scheduler`."""
    _require_certificates(machine)
    with _stoppable() as stop, _scratch(machine) as folder, _ray_scratch(machine) as ray_folder:
        address = machine.dask_address(machine.host, port)
        members = [
            _workers(machine, address, folder),
            _ray(machine, f"{machine.host}:{ray_port}", ray_folder, leads=True),
            _scheduler(machine, port, folder),
        ]
        secrets = " --secrets FOLDER" if machine.secrets is not None else ""
        print(
            f"leading: Dask {address}, Ray {machine.host}:{ray_port}. On each other machine: cryoscale "
            f"engine join {machine.host} --host ITS-ADDRESS{secrets}",
            flush=True,
        )
        supervise(members, stop)


def run_join(machine: Machine, lead: str, port: int = DASK_PORT, ray_port: int = RAY_PORT) -> None:
    """Run Dask workers and a Ray node that join a machine which leads; raises like `run_scheduler`."""
    _require_certificates(machine)
    with _stoppable() as stop, _scratch(machine) as folder, _ray_scratch(machine) as ray_folder:
        address = machine.dask_address(lead, port)
        ray = _ray(machine, f"{lead}:{ray_port}", ray_folder, leads=False)
        if await_scheduler(address, machine, stop):
            print(f"joining: Dask {address}, Ray {lead}:{ray_port}, as {machine.host}.", flush=True)
            supervise([_workers(machine, address, folder), ray], stop)


def await_scheduler(address: str, machine: Machine, stop: Stop) -> bool:
    """Wait until a scheduler takes connections; False if told to stop meanwhile.

    Raises
    ------
    SurroundingsError
        If nobody is there in time, or at once where waiting does not help (a certificate that is refused).
    """
    security = machine.certificates.dask_security() if machine.certificates else None
    deadline = time.monotonic() + machine.wait_s
    while reason := try_scheduler(address, security):
        if time.monotonic() >= deadline:
            raise SurroundingsError(
                f"no Dask scheduler at {address} within {machine.wait_s:.0f} s. {reason}",
                remedy="Check the address, that `cryoscale engine lead` runs there, and the network.",
            )
        if stop.wait(_POLL_S):
            return False
    return True


class Stop:
    """Whether a signal asked to end, and a way to wait for one."""

    def __init__(self, woken: int) -> None:
        self.told = False
        self._woken = woken

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal; say whether one has come."""
        if not self.told:
            select.select([self._woken], [], [], timeout_s)
        return self.told


@contextmanager
def _stoppable() -> Iterator[Stop]:
    woken, waker = os.pipe()
    stop = Stop(woken)

    def told(*_: object) -> None:
        stop.told = True
        os.write(waker, b"!")

    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # What was to be ignored (nohup) stays ignored.
    numbers = {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.signal(number, told) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for end in (woken, waker):
            os.close(end)


def supervise(members: Sequence[Member], stop: Stop | None = None) -> None:
    """Run programs until a signal, or until one of them ends; then end all, in their order.

    Raises
    ------
    SurroundingsError
        If one ended by itself.
    """
    if stop is None:
        with _stoppable() as mine:
            supervise(members, mine)
        return
    try:
        for member in sorted(members, key=lambda member: not member.last):
            _begin(member)
        ended = _watch(members, stop)
        for last in (False, True):
            _end([member for member in members if member.last is last])
    finally:
        for member in members:
            if member.kept is not None:
                member.kept.kill()
    if ended is not None and ended.kept is not None:
        _show_end_of(ended.log)
        raise SurroundingsError(
            f"without being told to, this ended: {ended.name} (exit code {ended.kept.exit_code}); so all of "
            "this machine's part was ended.",
            remedy="What it said stands above; give the same command again.",
        )


def _begin(member: Member) -> None:
    if member.log is None:
        member.kept = Kept(member.command, member.environment)
        return
    with member.log.open("wb") as log:
        member.kept = Kept(member.command, member.environment, log)


def _show_end_of(log: Path | None) -> None:
    if log is not None:
        lines = log.read_text(errors="replace").splitlines()
        print("\n".join(lines[-_SHOWN_LINES:]), file=sys.stderr)


def _watch(members: Sequence[Member], stop: Stop) -> Member | None:
    silent = [member for member in members if member.ready and member.log is not None]
    while not stop.wait(_POLL_S):
        for member in [one for one in silent if one.log and one.ready in one.log.read_text(errors="replace")]:
            silent.remove(member)
            print(f"{member.name}: {member.ready}.", flush=True)
        for member in members:
            if member.kept is not None and member.kept.exit_code is not None:
                return member
    return None


def _end(members: Sequence[Member]) -> None:
    for member in members:
        if member.kept is not None:
            member.kept.terminate()
    end = time.monotonic() + max((member.grace_s for member in members), default=0.0) + _END_S
    for member in members:
        if member.kept is not None and not member.kept.wait(max(0.0, end - time.monotonic())):
            member.kept.kill()


# -- what the programs are ---------------------------------------------------------------------------------


def _scheduler(machine: Machine, port: int, folder: Path) -> Member:
    plan = SchedulerPlan(machine.host, port, _folder_of(machine.certificates))
    return Member("Dask scheduler", plan.command(), _environment(folder), last=True)


def _workers(machine: Machine, address: str, folder: Path) -> Member:
    plan = WorkersPlan(
        address=address, host=machine.host, count=machine.workers or cpu_count(),
        memory_bytes=machine.memory_bytes, scratch=str(folder),
        grace_s=machine.grace_s, wait_s=machine.wait_s,
        secrets=_folder_of(machine.certificates),
    )  # fmt: skip
    return Member("Dask workers", plan.command(), _environment(folder), machine.grace_s)


def _ray(machine: Machine, head: str, folder: Path, *, leads: bool) -> Member:
    secrets = machine.secrets.ray_environment() if machine.secrets is not None else {}
    if machine.secrets is not None:
        machine.secrets.require_member(machine.host)
    node = RayNode(machine.host, head, folder, machine.cpus, machine.gpus, leads)
    variables = {**_environment(folder), **ray_environment(machine.host, secrets)}
    name = "Ray head" if leads else "Ray node"
    return Member(
        name, node.command(), variables, _RAY_GRACE_S, log=folder / "ray.log", ready="runtime started"
    )


def _environment(folder: Path) -> dict[str, str]:
    # Before anything is imported there: libraries read how many threads to use when they are loaded.
    threads = ExecutorSettings(threads_per_worker=1).thread_environment
    quiet = {"DASK_LOGGING__DISTRIBUTED": "warning"}  # what is said of every connection helps nobody
    return {
        **quiet,
        **os.environ,
        **threads,
        **package_path(),
        "TMPDIR": str(folder),
        "PYTHONUNBUFFERED": "1",
    }


def _folder_of(secrets: Secrets | None) -> str | None:
    return None if secrets is None else str(secrets.folder)


def _require_certificates(machine: Machine) -> None:
    if machine.certificates is None and not is_loopback(machine.host):
        raise ConfigurationError(
            f"without certificates nothing may listen at {machine.host}: who reaches it can run code as you.",
            remedy="Give --secrets FOLDER (`cryoscale engine secrets FOLDER` makes it), or --host 127.0.0.1.",
        )


@contextmanager
def _scratch(machine: Machine) -> Iterator[Path]:
    folder = claim_folder(machine.scratch, "cryoscale-")
    try:
        yield folder
    finally:
        drop_folder(folder)


@contextmanager
def _ray_scratch(machine: Machine) -> Iterator[Path]:
    # Ray's sockets need a short path, which batch systems seldom have.
    short = machine.scratch is not None and len(str(machine.scratch)) <= LONGEST_SCRATCH
    with _scratch(machine if short else replace(machine, scratch=None)) as folder:
        yield folder
