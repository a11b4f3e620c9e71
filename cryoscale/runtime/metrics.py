"""Metrics of a run for Prometheus: a listener of events, and a look at the engines now and then.

Names follow Prometheus's conventions; `docs/operations.md` has the table. Labels are stages, engines and ways
to end, never tomograms: a run of ten thousand has as many series as one of ten.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cryoscale
from cryoscale.runtime.events import Event, StageSealed, StageStarted, TaskEnded, UnitFailed
from cryoscale.runtime.progress import StageTally

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)  # seconds of a block
LOOK_S = 1.0  # between two looks at queues and workers; a scrape is answered from the last one


@dataclass(frozen=True)
class EngineLoad:
    """What one engine, "cpu" or "model", has to do: tasks that wait, and tasks handed to its executor."""

    queued: int = 0
    in_flight: int = 0
    executor: str = ""


@dataclass(frozen=True)
class Load:
    """What the driver sees when it looks around.

    Parameters
    ----------
    engines : mapping of str to EngineLoad
        By engine.
    workers : mapping of str to int
        Living workers by executor, those started so far.
    paused_until : float
        Up to which monotonic time the run is paused.
    units : mapping of (str, str) to int
        Tomograms by stage and state; empty where they were not counted this time.
    """

    engines: Mapping[str, EngineLoad] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)
    paused_until: float = 0.0
    units: Mapping[tuple[str, str], int] = field(default_factory=dict)


class RunMetrics:
    """A listener that counts what happens; `registry` is what Prometheus is answered from.

    Parameters
    ----------
    run_id : str
        Of this drive: the same as in its log.
    clock : callable
        Monotonic seconds; tests change it.
    """

    def __init__(self, run_id: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self.registry = CollectorRegistry(auto_describe=True)
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: dict[str, StageTally] = {}
        self._engine_of: dict[str, tuple[str, str]] = {}
        self._load, self._look = Load(), _no_load
        self._looked = clock()
        self._counted: dict[str, dict[str, int]] = {}
        self._series: dict[tuple[str, ...], Any] = {}
        self._paused_until = 0.0
        ProcessCollector(registry=self.registry)
        self._make_counters()
        self._make_gauges(run_id)
        self.registry.register(_SecondsLeft(self))

    def _make_counters(self) -> None:
        from prometheus_client import Counter, Histogram

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"cryoscale_{name}", text, labels, registry=self.registry)

        self._voxels = counter("voxels", "Voxels gone through; rows, in stages on picks.", "stage")
        self._blocks = counter("blocks", "Blocks that ended.", "stage", "status")
        self._seals = counter("seals", "Ended seals, and stages without blocks.", "stage", "status")
        self._retries = counter("retries", "Attempts that did not end their block.", "stage", "reason")
        self._failures = counter("failures", "Tomograms that stopped at a stage.", "stage")
        self._sealed = counter("tomograms_sealed", "Tomograms completed by this driver.", "stage")
        self._pauses = counter("pauses", "Waits for disk, network or permissions to mend.")
        self._task_seconds = counter(
            "task_seconds", "Time of ended tasks by the workers' clocks.", "engine", "executor"
        )
        self._worker_seconds = counter("worker_seconds", "Time during which workers were there.", "executor")
        self._seconds = Histogram(
            "cryoscale_block_seconds", "Time of a block on its worker.", ("stage",),
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip

    def _make_gauges(self, run_id: str) -> None:
        from prometheus_client import Gauge

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"cryoscale_{name}", text, labels, registry=self.registry)

        self._queued = gauge("tasks_queued", "Tasks that wait for room in an engine.", "engine")
        self._in_flight = gauge("tasks_in_flight", "Tasks handed to an engine.", "engine")
        self._workers = gauge("workers", "Workers that could take a task.", "executor")
        self._busy = gauge("workers_busy", "Workers with a task, at most: tasks handed over.", "executor")
        self._units = gauge("tomograms", "Tomograms by stage and state.", "stage", "state")
        self._planned = gauge("blocks_planned", "Blocks of the tomograms begun so far.", "stage")
        self._peak = gauge("worker_memory_peak_bytes", "Largest memory of a worker in a task.", "stage")
        self._promised = gauge("worker_memory_promised_bytes", "Largest promise of a plan.", "stage")
        self._paused = gauge("paused", "1 while the run waits for its surroundings to mend.")
        self._heartbeat = gauge(
            "driver_heartbeat_timestamp_seconds", "When the driver's loop last turned, since the epoch."
        )
        self._started = gauge("driver_start_timestamp_seconds", "When this driver began, since the epoch.")
        info = gauge("build_info", "1; versions and the id of this drive.", "version", "python", "run_id")
        info.labels(cryoscale.__version__, platform.python_version(), run_id).set(1)
        self._heartbeat.set_to_current_time()
        self._started.set_to_current_time()

    # -- events ---------------------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, TaskEnded):
            self._task(event)
        elif isinstance(event, StageStarted):
            with self._lock:
                tally = self._tallies.setdefault(event.stage, StageTally(event.stage))
                tally.add(event, self._clock())
            self._planned.labels(event.stage).inc(event.blocks)
        elif isinstance(event, StageSealed):
            self._sealed.labels(event.stage).inc()
        elif isinstance(event, UnitFailed):
            self._failures.labels(event.stage).inc()

    def _task(self, event: TaskEnded) -> None:
        stage = event.stage
        if event.final:
            self._of(self._blocks if event.block >= 0 else self._seals, stage, event.status).inc()
            with self._lock:
                self._tallies.setdefault(stage, StageTally(stage)).end(event)
        else:
            self._of(self._retries, stage, event.status).inc()
        self._of(self._voxels, stage).inc(max(0, event.voxels))
        if event.block >= 0 and event.status in ("done", "empty"):
            self._of(self._seconds, stage).observe(event.seconds)
        engine = self._engine_of.get(stage, ("", ""))
        self._of(self._task_seconds, *engine).inc(max(0.0, event.seconds))
        for gauge, value in ((self._peak, event.peak_bytes), (self._promised, event.promised_bytes)):
            self._keep_largest(gauge, stage, value)

    def _of(self, metric: Any, *labels: str) -> Any:
        """Return the series of some labels; the library takes ten times as long to find it."""
        key = (metric._name, *labels)
        if key not in self._series:
            self._series[key] = metric.labels(*labels)
        return self._series[key]

    def _keep_largest(self, gauge: Any, stage: str, value: int) -> None:
        known = self._counted.setdefault(gauge._name, {})
        if value > known.get(stage, 0):
            known[stage] = value
            gauge.labels(stage).set(value)

    # -- looking around -------------------------------------------------------------------------------------

    def watch(self, look: Callable[[], Load], engine_of: Mapping[str, tuple[str, str]]) -> None:
        """Say how to look around, and which engine and executor carry each stage.

        Parameters
        ----------
        look : callable
            Returns the present `Load`; called from `turn` alone, so in the driver's own thread.
        engine_of : mapping of str to (str, str)
            From stage to engine and executor.
        """
        self._look, self._engine_of = look, dict(engine_of)
        self._looked = self._clock()
        self._load = look()
        self._show(0.0)

    def turn(self) -> None:
        """Take note that the driver's loop turned; look around if a second has gone since the last time."""
        self._heartbeat.set_to_current_time()
        now = self._clock()
        since = now - self._looked
        if since < LOOK_S:
            return
        self._looked = now
        self._load = self._look()
        self._show(since)

    def _show(self, since: float) -> None:
        load = self._load
        busy: dict[str, int] = {}
        for name, engine in load.engines.items():
            self._queued.labels(name).set(engine.queued)
            self._in_flight.labels(name).set(engine.in_flight)
            busy[engine.executor] = busy.get(engine.executor, 0) + engine.in_flight
        for name, workers in load.workers.items():
            self._workers.labels(name).set(workers)
            self._busy.labels(name).set(min(workers, busy.get(name, 0)))
            self._worker_seconds.labels(name).inc(workers * since)
        self._paused.set(load.paused_until > self._clock())
        if load.paused_until > self._paused_until:
            self._pauses.inc()
        self._paused_until = max(self._paused_until, load.paused_until)
        for (stage, state), count in load.units.items():
            self._units.labels(stage, state).set(count)

    def seconds_left(self) -> dict[str, float]:
        """Estimate the time left of each stage that has begun, from the voxels (else blocks) gone through.

        Tomograms that are not planned yet count with the mean of the others. A stage without anything gone
        through is missing.
        """
        now, units = self._clock(), self._load.units or self._last_units()
        left = {}
        with self._lock:
            tallies = [(name, _through(tally), tally) for name, tally in self._tallies.items()]
        for name, (done, planned), tally in tallies:
            if not done or tally.began is None or not tally.tomograms:
                continue
            unplanned = units.get((name, "pending"), 0)
            ahead = max(0.0, planned - done) + unplanned * planned / len(tally.tomograms)
            left[name] = (now - tally.began) * ahead / done
        return left

    def _last_units(self) -> Mapping[tuple[str, str], int]:
        found = {}
        for metric in self._units.collect():
            for sample in metric.samples:
                found[sample.labels["stage"], sample.labels["state"]] = int(sample.value)
        return found


def _through(tally: StageTally) -> tuple[float, float]:
    """Return what of a stage is gone through, and what is planned: voxels, or blocks where those are none."""
    if tally.voxels and tally.voxels_through:
        return tally.voxels_through, tally.voxels
    return tally.through, tally.blocks


def _no_load() -> Load:
    return Load()


class _SecondsLeft:
    """Computed when Prometheus asks: between two events the time left grows."""

    def __init__(self, metrics: RunMetrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for stage, seconds in self._metrics.seconds_left().items():
            family.add_metric([stage], seconds)
        yield family

    @staticmethod
    def _family() -> Any:
        from prometheus_client.core import GaugeMetricFamily

        return GaugeMetricFamily(
            "cryoscale_stage_left_seconds", "Time left of a stage at its present speed.", labels=["stage"]
        )
