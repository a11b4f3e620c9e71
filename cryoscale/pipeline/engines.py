"""The engines of a run: which executor carries which stages, how large its workers are, when it starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cryoscale.config import RunConfig
from cryoscale.data.folder import Folder
from cryoscale.data.probe import RunProbe, placed_probe
from cryoscale.errors import ConfigurationError
from cryoscale.runtime.events import Event, Message
from cryoscale.runtime.executor import Executor, ExecutorSettings, open_executor
from cryoscale.runtime.memory import available_bytes, cpu_count, parse_bytes
from cryoscale.runtime.probe import Guard

KINDS = {
    "auto": ("dask", "ray"),
    "serial": ("serial", "serial"),
    "dask": ("dask", "dask"),
    "ray": ("ray", "ray"),
}
MEMORY_SHARE = 0.8  # of what the machine has available; the rest is for the driver and the file cache


@dataclass(frozen=True)
class EngineChoice:
    """Which executor carries the CPU stages and which the model stages, and where running ones are.

    Parameters
    ----------
    executor : str
        "auto" (Dask for the CPU stages, Ray for the model stages), "serial", "dask" or "ray".
    dask, ray : str or None
        Addresses of running clusters; None starts embedded ones.
    secrets : Path or None
        Folder with the certificates and the token that those clusters ask for (`runtime/secrets.py`).
    """

    executor: str = "auto"
    dask: str | None = None
    ray: str | None = None
    secrets: Path | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """From "cpu" and "model" to the kind of executor; raises `ConfigurationError` for an unknown word."""
        if self.executor not in KINDS:
            raise ConfigurationError(
                f"there is no executor '{self.executor}'; choose one of {', '.join(KINDS)}."
            )
        return dict(zip(("cpu", "model"), KINDS[self.executor], strict=True))

    def address(self, kind: str) -> str | None:
        """Return the address of a running cluster of this kind, if one was given."""
        return {"dask": self.dask, "ray": self.ray}.get(kind)


def local_workers(config: RunConfig, kind: str) -> int:
    """Return how many workers an embedded engine of this kind has."""
    execution = config.execution
    if kind == "dask":
        return execution.dask_workers or cpu_count()
    if kind == "ray":
        return execution.ray_workers or max(1, local_gpus())
    return 1


def local_gpus() -> int:
    """Count the CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def memory_budgets(config: RunConfig, choice: EngineChoice) -> dict[str, int]:
    """Return the bytes that a worker of each engine may take.

    As `execution.memory_budget` says; otherwise what this machine has available, shared fairly among the
    engines that run here and among their workers. A cluster elsewhere is not judged by this machine.
    """
    asked = config.execution.memory_budget
    if asked is not None:
        return dict.fromkeys(choice.kinds, parse_bytes(asked))
    here = {kind for kind in choice.kinds.values() if choice.address(kind) is None}
    free = int(MEMORY_SHARE * available_bytes())
    return {
        engine: free // len(here) // local_workers(config, kind)
        for engine, kind in choice.kinds.items()
        if kind in here
    }


class Engines:
    """Starts each engine on first use and ends all with the run.

    Use it from a thread that lives as long as the run: an embedded Ray ends with the thread that
    started it.

    Parameters
    ----------
    config, choice : RunConfig, EngineChoice
        What to start.
    run : Folder or None
        Folder of the run, which every worker process must see as this one does; None looks at no folder.
    emit : callable
        Takes the events that tell who is waited for and who is not used.
    """

    def __init__(
        self,
        config: RunConfig,
        choice: EngineChoice,
        run: Folder | None = None,
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.config, self.choice, self.run, self.emit = config, choice, run, emit
        self.kinds = choice.kinds
        self._open: dict[str, Executor] = {}
        self._probe: RunProbe | None = None
        self._closing = ExitStack()  # one that cannot be closed leaves no other open

    def prepare(self, engine: str) -> None:
        """Leave in the run what workers of an engine look for; where storage refuses, call it again later.

        Raises
        ------
        OSError, SurroundingsError
            What storage said.
        """
        if self.kinds[engine] == "serial" or self.run is None:  # the worker is this process; no folder
            return
        if self._probe is None:
            self._probe = self._closing.enter_context(placed_probe(self.run))

    def get(self, engine: str) -> Executor:
        """Return the executor of an engine, "cpu" or "model", starting it if need be.

        It may have no worker yet: tasks wait inside, while the other engine's go on.
        """
        kind = self.kinds[engine]
        if kind not in self._open:
            self.prepare(engine)
            guard = None if kind == "serial" or self._probe is None else Guard.of(kind, self._probe)
            executor = open_executor(kind, replace(self.settings(kind), guard=guard))
            executor.tell = lambda text, level: self.emit(Message(text=text, level=level))
            executor.begin()
            self._open[kind] = executor
            self._closing.callback(executor.close)
        return self._open[kind]

    def settings(self, kind: str) -> ExecutorSettings:
        """Translate the `[execution]` table for one kind of executor."""
        execution = self.config.execution
        address = self.choice.address(kind)
        common = ExecutorSettings(
            address=address,
            secrets=self.choice.secrets if address is not None else None,
            start_timeout_s=execution.start_timeout_s,
            no_progress_timeout_s=execution.no_progress_timeout_s,
        )
        if kind == "dask":
            return replace(common, workers=execution.dask_workers or 0)
        if kind == "ray" and address is not None:
            return replace(
                common,
                workers=execution.ray_workers or 0,
                threads_per_worker=execution.ray_threads or 4,
                threads_at_most=not execution.ray_threads,  # nothing is known yet of the nodes there
                gpus=None,
                gpus_per_worker=execution.ray_gpus_per_worker,
                idle_release_s=execution.idle_release_s,
            )
        workers = local_workers(self.config, kind)
        threads = execution.ray_threads or max(1, cpu_count() // workers)
        gpus = local_gpus() if kind == "ray" else 0
        return replace(common, workers=workers, threads_per_worker=threads, gpus=gpus)

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._closing.close()
