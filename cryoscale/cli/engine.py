"""`cryoscale engine`: the machines of a cluster, their secrets, and whether all is well with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cryoscale.runtime.check import EngineReport
    from cryoscale.runtime.members import Machine

_SECRETS = click.option(
    "--secrets", metavar="FOLDER", envvar="CRYOSCALE_SECRETS", help="Certificates and token of the cluster."
)
_HOST = click.option("--host", metavar="IP", required=True, help="Address of this machine for the others.")
_HOST_SEEN = click.option(
    "--host", metavar="IP", help="Address of this machine.  [default: as the scheduler sees it]"
)
_PORT_NUMBER = click.IntRange(1, 65535)
_PORT = click.option(
    "--port", type=_PORT_NUMBER, default=8786, show_default=True, help="Of the Dask scheduler."
)
_RAY_PORT = click.option(
    "--ray-port", type=_PORT_NUMBER, default=6379, show_default=True, help="Of the Ray head."
)
_DASK = (
    click.option("--workers", type=click.IntRange(1), help="Dask workers.  [default: one per core]"),
    click.option("--memory", metavar="SIZE",
                 help="Most memory of a Dask worker, such as 4GB.  [default: no limit]"),
    click.option("--scratch", metavar="FOLDER", help="Local folder for temporary files.  [default: /tmp]"),
    click.option("--grace", "grace_s", metavar="SECONDS", type=click.FloatRange(0), default=60.0,
                 show_default=True, help="Time for running Dask blocks to end at SIGTERM."),
    click.option("--wait", "wait_s", metavar="SECONDS", type=click.FloatRange(0), default=120.0,
                 show_default=True, help="Time for the scheduler to appear."),
)  # fmt: skip
_RAY = (
    click.option("--cpus", type=click.IntRange(0), help="Cores for Ray.  [default: all]"),
    click.option("--gpus", type=click.IntRange(0), help="GPUs for Ray.  [default: all]"),
)


_Command = TypeVar("_Command", bound=Callable[..., Any])


def _with(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group("engine")
def engine_command() -> None:
    """Start the engines on the machines of a cluster."""


@engine_command.command("secrets")
@click.argument("folder")
@click.option(
    "--days", type=click.IntRange(1), default=365, show_default=True, help="How long they are good."
)
@click.option("--host", "hosts", metavar="IP", multiple=True,
              help="Address of a member; name all, and Ray encrypts too.")  # fmt: skip
def secrets_command(folder: str, days: int, hosts: tuple[str, ...]) -> int:
    """Make certificates for Dask and a token for Ray in a new FOLDER."""
    from cryoscale.runtime.secrets import Secrets

    made = Secrets.create(folder, days, hosts)
    click.echo(
        f"{made.folder}: good until {made.valid_until:%Y-%m-%d}. Whoever can read it can run code as you: "
        "copy it to every machine of the cluster, and nowhere else."
    )
    return 0


@engine_command.command("scheduler")
@_with(_HOST, _PORT, _SECRETS)
def scheduler_command(host: str, port: int, secrets: str | None) -> int:
    """Run the Dask scheduler alone, until SIGTERM."""
    from cryoscale.runtime.members import run_scheduler

    return _run(run_scheduler, _machine(host=host, secrets=secrets), port)


@engine_command.command("worker")
@click.argument("address")
@_with(_HOST_SEEN, *_DASK, _SECRETS)
def worker_command(address: str, host: str | None, **words: Any) -> int:
    """Run the Dask workers of this machine; ADDRESS is tls://IP:8786."""
    from cryoscale.errors import ConfigurationError
    from cryoscale.runtime.dask_reach import split
    from cryoscale.runtime.members import run_workers
    from cryoscale.runtime.members_ray import address_towards

    parts = split(address)
    if parts is None:
        raise ConfigurationError(
            f"'{address}' is not the address of a scheduler.", remedy="Give tls://IP:8786."
        )
    return _run(run_workers, _machine(host=host or address_towards(*parts[1:]), **words), address)


@engine_command.command("lead")
@_with(_HOST, _PORT, _RAY_PORT, *_RAY, *_DASK, _SECRETS)
def lead_command(port: int, ray_port: int, **words: Any) -> int:
    """Run the Dask scheduler, Dask workers and the Ray head on this machine, until SIGTERM."""
    from cryoscale.runtime.members import run_lead

    return _run(run_lead, _machine(**words), port, ray_port)


@engine_command.command("join")
@click.argument("lead")
@_with(_HOST, _PORT, _RAY_PORT, *_RAY, *_DASK, _SECRETS)
def join_command(lead: str, port: int, ray_port: int, **words: Any) -> int:
    """Run Dask workers and a Ray node that join the machine LEAD, IP or IP:PORT."""
    from cryoscale.runtime.members import run_join

    name, colon, given = lead.rpartition(":")
    if colon and given.isdigit() and "]" not in given:
        lead, port = name, int(given)
    if ":" in lead and "[" not in lead and lead.count(":") < 2:
        raise click.UsageError(f"'{lead}:{port}' is not an address: give IP or IP:PORT.")
    return _run(run_join, _machine(**words), lead, port, ray_port)


@engine_command.command("check")
@click.argument("run", required=False)
@click.option("--dask", metavar="ADDRESS", help="A running Dask scheduler, tls://…")
@click.option("--ray", metavar="ADDRESS", help="A running Ray cluster, IP:PORT.")
@_with(_SECRETS)
@click.option("--any", "some", is_flag=True, help="One fit worker of each engine is enough, as for a run.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def check_command(
    run: str | None, dask: str | None, ray: str | None, secrets: str | None, some: bool, as_json: bool
) -> int:
    """Ask running engines who works there, and whether each worker fits and sees RUN. Exit 1 if not."""
    from cryoscale.runtime.check import check_engine
    from cryoscale.runtime.secrets import Secrets

    if dask is None and ray is None:
        raise click.UsageError("which engines? Give --dask ADDRESS, --ray ADDRESS or both.")
    opened = Secrets.open(secrets) if secrets else None
    addresses = {"dask": dask, "ray": ray}
    with _probe(run) as look:
        reports = [
            check_engine(engine, address, opened, look) for engine, address in addresses.items() if address
        ]
    said = [report.as_json() for report in reports]
    click.echo(json.dumps(said, indent=1) if as_json else "\n".join(_lines(reports)))
    return 0 if all(report.usable if some else report.fit for report in reports) else 1


@contextmanager
def _probe(run: str | None) -> Iterator[Callable[[str], str] | None]:
    from cryoscale.data.probe import placed_probe
    from cryoscale.data.run import Run

    if run is None:
        yield None
        return
    with placed_probe(Run.open(run).folder) as look:
        yield look


def _lines(reports: list[EngineReport]) -> Iterator[str]:
    for report in reports:
        count = len(report.workers)
        yield f"{report.engine} at {report.address}: {report.problem or f'{count} workers'}"
        for worker in report.workers:
            clock = f"its clock is off by {worker.clock_s:.0f} s" if worker.clock_is_off else ""
            yield f"  {worker.host} ({worker.where}): {worker.problem or clock or 'fit'}"


def _machine(*, secrets: str | None, workers: int | None = None, memory: str | None = None,
             scratch: str | None = None, **words: Any) -> Machine:  # fmt: skip
    from cryoscale.runtime.members import Machine
    from cryoscale.runtime.memory import parse_bytes
    from cryoscale.runtime.secrets import Secrets

    return Machine(
        workers=workers or 0,
        memory_bytes=parse_bytes(memory) if memory else None,
        scratch=Path(scratch).absolute() if scratch else None,
        secrets=Secrets.open(secrets) if secrets else None,
        **words,
    )


def _run(what: Any, *words: Any) -> int:
    from cryoscale.errors import RefusedError, SurroundingsError

    try:
        what(*words)
    except RefusedError:
        raise
    except SurroundingsError as error:
        click.echo(f"cryoscale: {error}", err=True)
        return 75
    return 0
