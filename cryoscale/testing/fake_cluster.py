"""A cluster that computes nothing, in a time of its own: it drives the real controller at any size.

What a block is (its time, whether it kills its worker or always fails) is drawn from its name alone; what
happens by chance (a failure that passes, a worker that is taken away) from a seed too. So blocks are the same
on any cluster, and only what befalls them differs.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.config.run import SourceConfig
from cryoscale.data.access import Access
from cryoscale.data.run import Run
from cryoscale.pipeline.attempts import Limits
from cryoscale.pipeline.controller import Controller
from cryoscale.pipeline.order import Step
from cryoscale.pipeline.units import UnitGraph
from cryoscale.runtime.events import EventBus
from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.task import Failure, Outcome, Task, lost
from cryoscale.stages.base import (
    BlockFunction,
    BlockReport,
    BlockStage,
    Engine,
    Plan,
    WholeStage,
    chunked_rows,
)

# -- stages that do nothing ----------------------------------------------------------------------------------


class FakeBlocks(BlockStage):
    """A stage of so many blocks that nobody computes.

    Parameters
    ----------
    name : str
        Of the stage.
    blocks : int
        How many one tomogram has.
    engine : str
        "cpu" or "model".
    """

    writes = "picks"

    def __init__(self, name: str, blocks: int, engine: Engine = "cpu") -> None:
        self.name, self.blocks, self.engine = name, blocks, engine  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:  # as small on its way as a real stage, which holds nothing
        return FakeBlocks, (self.name, 0, self.engine)

    def plan(self, access: Access) -> Plan:
        """Cut the tomogram into blocks of one row."""
        return Plan((chunked_rows(self.blocks, 1),), 2**20)

    def create(self, access: Access) -> None:
        """Make nothing."""

    def open_worker(self, access: Access) -> contextlib.AbstractContextManager[BlockFunction]:
        """Yield a function that does nothing: `FakeCluster` does not call it."""
        return contextlib.nullcontext(lambda block: BlockReport())

    def seal(self, access: Access) -> dict[str, Any]:
        """Return facts like those of a real stage."""
        return {"picks": self.blocks}


class FakeWhole(WholeStage):
    """A stage of one task that nobody computes.

    Parameters
    ----------
    name : str
        Of the stage.
    engine : str
        "cpu" or "model".
    """

    writes = "encoder"

    def __init__(self, name: str, engine: Engine = "cpu") -> None:
        self.name, self.engine = name, engine  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:
        return FakeWhole, (self.name, self.engine)

    def compute(self, access: Access) -> dict[str, Any]:
        """Return facts like those of a fit."""
        return {"hash": f"hash of {self.name}"}


def fake_steps(blocks: int) -> list[Step]:
    """List two block stages per tomogram, a fit over all, and a model stage that needs it."""
    return [
        Step(FakeBlocks("first", blocks), (), lambda c: []),
        Step(FakeBlocks("second", blocks), ("first",), lambda c: []),
        Step(FakeWhole("fit", "model"), ("second",), lambda c: [], scope="all", fit=True),
        Step(FakeBlocks("third", blocks, "model"), ("second", "fit"), lambda c: []),
    ]


def one_step(blocks: int) -> list[Step]:
    """List a single block stage."""
    return [Step(FakeBlocks("first", blocks), (), lambda c: [])]


def fake_run(place: str, tomograms: int) -> tuple[Run, RunConfig]:
    """Name a run of so many tomograms; nothing is written."""
    names = [f"t{number:06d}" for number in range(tomograms)]
    inputs = tuple(SourceConfig(name=name, path=f"/sources/{name}.mrc") for name in names)
    return Run.at(place), RunConfig(inputs=inputs)


# -- the cluster ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weather:
    """What a cluster does to its tasks.

    Parameters
    ----------
    block_s, spread : float
        Middle duration of a block in seconds, and by which factor the longest exceeds it; the shortest is as
        many times shorter.
    seal_s : float
        Duration of a seal and of a whole stage.
    failures : float
        Share of attempts that raise an exception and might do well the next time.
    poison : float
        Share of blocks that kill their worker whenever they run.
    broken : float
        Share of blocks that raise an exception whenever they run.
    preemptions_per_hour : float
        How often a worker is taken away, on average; whatever it holds is lost.
    back_after_s : float
        When another worker stands in its place.
    """

    block_s: float = 20.0
    spread: float = 3.0
    seal_s: float = 2.0
    failures: float = 0.0
    poison: float = 0.0
    broken: float = 0.0
    preemptions_per_hour: float = 0.0
    back_after_s: float = 120.0


@dataclass(eq=False)
class _Worker:
    """One process: what it holds, the first of which it runs."""

    number: int
    held: deque[str] = field(default_factory=deque)
    since: float = 0.0  # when it began what it runs
    life: int = 0  # raised when it dies: events of earlier lives mean nothing


class FakeCluster(Executor):
    """Workers in virtual time behind the executor's contract.

    Parameters
    ----------
    workers : int
        How many there are.
    weather : Weather
        What happens to them.
    seed : int
        Of what happens by chance.
    tick_s : float
        What ends within so much virtual time is reported together, as by a driver that polls.
    """

    name = "fake"

    def __init__(self, workers: int, weather: Weather, seed: int = 0, tick_s: float = 0.01) -> None:
        super().__init__(ExecutorSettings(workers=workers))
        self.weather, self.seed, self.tick_s = weather, seed, tick_s
        self.now = 0.0
        self.own_s = 0.0  # real time that the fake itself took; not the controller's
        self.busy_s = self.there_s = 0.0
        self.counts: Counter[str] = Counter()
        self.drained_s = 0.0  # worker-seconds during which a task had the whole cluster to itself
        self._workers = [_Worker(number) for number in range(workers)]
        self._alive = set(range(workers))
        self._loads: list[tuple[int, int]] = [(0, number) for number in range(workers)]
        self._where: dict[str, tuple[Task, _Worker]] = {}
        self._events: list[tuple[float, int, str, int, int]] = []
        self._serial = 0
        for worker in self._workers:
            self._plan_end_of(worker)

    # -- draws -----------------------------------------------------------------------------------------------

    def _draw(self, *words: object) -> float:
        """Draw from [0, 1) by what is named."""
        text = "/".join(map(str, words)).encode()
        return (zlib.crc32(text) * 2654435761 % 2**32) / 2**32

    def is_poison(self, stem: str) -> bool:
        """Whether the task of this name (without the attempt) kills its worker."""
        return self._draw("poison", stem) < self.weather.poison

    def is_broken(self, stem: str) -> bool:
        """Whether the task of this name (without the attempt) always raises."""
        return self._draw("broken", stem) < self.weather.broken

    def _duration(self, task: Task) -> float:
        if task.argument is None:
            return self.weather.seal_s
        stem = task.identifier.rsplit("#", 1)[0]
        return float(self.weather.block_s * self.weather.spread ** (2 * self._draw("time", stem) - 1))

    def _plan_end_of(self, worker: _Worker) -> None:
        if self.weather.preemptions_per_hour:
            share = max(1e-9, 1 - self._draw(self.seed, "life", worker.number, worker.life))
            mean = 3600.0 / self.weather.preemptions_per_hour
            self._at(self.now - mean * math.log(share), "dies", worker)

    # -- the contract ----------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Two tasks per worker that is there."""
        return max(1, len(self._alive)) * self.settings.per_worker_in_flight

    def clock(self) -> float:
        """Virtual seconds since the beginning."""
        return self.now

    def _start(self) -> None:
        pass

    def _live_workers(self) -> int:
        return len(self._workers)  # those that are away come back: nobody gives up waiting

    def _close(self) -> None:
        self._where.clear()

    def _has_room(self) -> bool:
        return super()._has_room() and bool(self._alive)

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        began = time.thread_time()
        worker = self._least_loaded()
        worker.held.append(ticket)
        self._where[ticket] = (task, worker)
        heapq.heappush(self._loads, (len(worker.held), worker.number))
        self.counts["alone"] += task.alone
        self.counts["fresh"] += bool(getattr(task, "fresh", False))
        if len(worker.held) == 1:
            self._begin(worker)
        self.own_s += time.thread_time() - began

    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        """Go on to when the next task ends; nothing else happens in this world meanwhile."""
        began = time.thread_time()
        ended: list[tuple[str, Outcome]] = []
        until = float("inf")
        while self._events and self._events[0][0] <= until:
            at, _, what, number, life = heapq.heappop(self._events)
            worker = self._workers[number]
            if life != worker.life:
                continue
            self.there_s += (at - self.now) * len(self._alive)
            self.drained_s += (at - self.now) * len(self._alive) * (self._alone_is_running())
            self.now = at
            ended += getattr(self, f"_{what}")(worker)
            if ended and until == float("inf"):
                until = at + self.tick_s
            if not self._running:
                break
        self.own_s += time.thread_time() - began
        return ended

    def _alone_is_running(self) -> bool:
        return len(self._where) == 1 and next(iter(self._where.values()))[0].alone

    # -- what happens ----------------------------------------------------------------------------------------

    def _at(self, when: float, what: str, worker: _Worker) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, what, worker.number, worker.life))

    def _least_loaded(self) -> _Worker:
        while True:  # entries of other loads, or of the dead, are old
            load, number = heapq.heappop(self._loads)
            if number in self._alive and len(self._workers[number].held) == load:
                return self._workers[number]

    def _begin(self, worker: _Worker) -> None:
        task = self._where[worker.held[0]][0]
        worker.since = self.now
        seconds = self._duration(task)
        stem = task.identifier.rsplit("#", 1)[0]
        if task.argument is not None and self.weather.poison and self.is_poison(stem):
            self._at(self.now + seconds / 2, "dies", worker)
            return
        self._at(self.now + seconds, "ends", worker)

    def _ends(self, worker: _Worker) -> list[tuple[str, Outcome]]:
        ticket = worker.held.popleft()
        task, _ = self._where.pop(ticket)
        heapq.heappush(self._loads, (len(worker.held), worker.number))
        self.busy_s += self.now - worker.since
        outcome = self._outcome(task, worker)
        self.counts[outcome.status] += 1
        if worker.held:
            self._begin(worker)
        return [(ticket, outcome)]

    def _outcome(self, task: Task, worker: _Worker) -> Outcome:
        stem = task.identifier.rsplit("#", 1)[0]
        who, seconds = f"host{worker.number // 16}:{worker.number}", self.now - worker.since
        if task.argument is None:
            work: Any = task.work
            stage = work.stage
            value = stage.seal(work.access) if work.operation == "seal" else stage.compute(work.access)
            return Outcome(task, "finished", value, None, seconds, who)
        broken = bool(self.weather.broken) and self.is_broken(stem)
        if broken or (
            self.weather.failures and self._draw(self.seed, "raise", task.identifier) < self.weather.failures
        ):
            return Outcome(task, "failed", None, Failure("data", "DataError", "drawn"), seconds, who)
        return Outcome(task, "finished", BlockReport(voxels=1), None, seconds, who)

    def _dies(self, worker: _Worker) -> list[tuple[str, Outcome]]:
        ended = []
        if worker.held:
            self.busy_s += self.now - worker.since
        for ticket in worker.held:
            task, _ = self._where.pop(ticket)
            ended.append((ticket, lost(task, "the worker is gone")))
            self.counts["lost"] += 1
        worker.held.clear()
        self.counts["deaths"] += 1
        worker.life += 1
        self._alive.discard(worker.number)
        self._at(self.now + self.weather.back_after_s, "returns", worker)
        return ended

    def _returns(self, worker: _Worker) -> list[tuple[str, Outcome]]:
        self._alive.add(worker.number)
        heapq.heappush(self._loads, (0, worker.number))
        self._plan_end_of(worker)
        return []


# -- a drive -------------------------------------------------------------------------------------------------


@dataclass
class FakeDrive:
    """One drive of the real controller over a fake cluster.

    Parameters
    ----------
    place : str
        Where the ledger goes, for example `counted://name` or a path.
    tomograms : int
        How many.
    steps : list of Step
        What is done with each.
    """

    place: str
    tomograms: int
    steps: Sequence[Step]
    limits: Limits = field(default_factory=Limits)
    bus: EventBus = field(default_factory=EventBus)

    def __post_init__(self) -> None:
        run, config = fake_run(self.place, self.tomograms)
        self.graph = UnitGraph(run, config, list(self.steps), {})

    @contextlib.contextmanager
    def over(self, cluster: FakeCluster) -> Iterator[Controller]:
        """Yield a controller that uses the cluster for both engines, in its time."""
        with cluster:
            engines = {"cpu": lambda: cluster, "model": lambda: cluster}
            yield Controller(self.graph, engines, self.bus, self.limits, clock=cluster.clock)
