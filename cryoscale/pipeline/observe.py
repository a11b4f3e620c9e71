"""What watches a drive: its log, its trace, its metrics; opened before any work, closed after it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cryoscale.data.run import Run
from cryoscale.pipeline.unit import Unit
from cryoscale.runtime.events import EventBus, Message
from cryoscale.runtime.joblog import JobLog
from cryoscale.runtime.log_sinks import LimitedWriter, LocalSink, SegmentSink, Sink, new_run_id, surplus
from cryoscale.runtime.metrics import EngineLoad, Load, RunMetrics
from cryoscale.runtime.redaction import known_secrets, redacted
from cryoscale.runtime.trace import TraceWriter

if TYPE_CHECKING:
    from cryoscale.pipeline.controller import Controller
    from cryoscale.pipeline.driver import Options
    from cryoscale.pipeline.engines import Engines

KEPT_DRIVES = 100  # whose logs stay: `--watch` makes a drive of every file
TRACE_BYTES = 128 * 2**20  # of one drive: some 500,000 tasks
WORKERS_S = 5.0  # between two questions how many workers there are: some engines ask over the network
COUNT_SHARE = 0.002  # of the driver's time that counting tomograms by state may take

_LOG = logging.getLogger("cryoscale.pipeline.observe")


def check_metrics(options: Options) -> None:
    """Refuse a place for metrics that cannot be, before anything is waited for; `ConfigurationError`."""
    if options.metrics is not None:
        from cryoscale.runtime.metrics_server import check

        check(options.metrics, options.secrets)


@contextlib.contextmanager
def observed(run: Run, bus: EventBus, options: Options) -> Iterator[RunMetrics | None]:
    """Write log and trace and, if asked for, tell metrics, as long as this is open; yields the metrics.

    Raises
    ------
    ConfigurationError
        Metrics cannot be told where `options.metrics` says.
    """
    run_id = new_run_id()
    with contextlib.ExitStack() as stack:
        metrics = None
        if options.metrics is not None:
            from cryoscale.runtime.metrics_server import served

            metrics = RunMetrics(run_id)
            bus.listen(metrics)
            place = stack.enter_context(served(metrics.registry, options.metrics, options.secrets))
        _open_log(run, bus, options, run_id, stack)
        if metrics is not None:
            bus.emit(Message(text=f"metrics for Prometheus at {place}"))
        yield metrics


def _open_log(run: Run, bus: EventBus, options: Options, run_id: str, stack: contextlib.ExitStack) -> None:
    """Open log and trace; on an object store the log alone: a trace is one long file."""
    logs = run.folder.child("logs")
    sink: Sink
    if run.folder.is_local:
        folder = Path(logs.url)
        folder.mkdir(parents=True, exist_ok=True)
        sink = LocalSink(folder, run_id)
    else:
        sink = SegmentSink(logs.write_bytes, run_id)
    with contextlib.suppress(Exception):  # old logs may stay; a store that fails is met by the run itself
        for name in surplus(logs.names(), KEPT_DRIVES - 1):
            logs.delete(name)
    bus.listen(
        stack.enter_context(JobLog(sink, run_id, _facts(run, options), known_secrets(options.secrets)))
    )
    if options.trace and run.folder.is_local:
        trace = (Path(logs.url) / f"trace-{run_id}.json").open("wb")
        stack.callback(_close, trace)
        bus.listen(TraceWriter(LimitedWriter(trace.write, TRACE_BYTES)))


def _close(trace: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # a full disk: what is left to write must not end the run
        trace.close()


def _facts(run: Run, options: Options) -> dict[str, Any]:
    """Say what was asked for, without secrets: addresses lose names and passwords."""
    asked = {name: getattr(options, name) for name in ("executor", "dask", "ray", "until", "metrics")}
    return {
        "folder": run.folder.url,
        **{name: redacted(value) for name, value in asked.items() if value},
        "with_secrets": options.secrets is not None,
    }


def heartbeat(
    beat: Callable[[], None],
    metrics: RunMetrics | None,
    controller: Callable[[], Controller],
    engines: Engines,
) -> Callable[[], None]:
    """Return what the controller calls each time its loop turns: the lock's heartbeat, and a look around.

    Parameters
    ----------
    beat : callable
        The lock's.
    metrics : RunMetrics or None
        None: only the lock's.
    controller : callable
        Returns the controller, which is made after this.
    engines : Engines
        Of the drive.
    """
    if metrics is None:
        return beat
    looking: list[Look] = []

    def turn() -> None:
        beat()
        try:
            if not looking:
                looking.append(Look(controller(), engines))
                metrics.watch(looking[0], looking[0].engine_of)
            metrics.turn()
        except Exception:  # what only looks must not end a run
            if looking and not looking[0].failed:
                looking[0].failed = True
                _LOG.exception("metrics could not look at the run; later failures are not shown")

    return turn


class Look:
    """Looks at queues, workers and tomograms; reads the controller's attributes and changes nothing.

    Call it from the driver's thread. What costs much is asked less often: workers every 5 s, tomograms so
    that counting them takes less than 0.2 % of the time.
    """

    def __init__(
        self, controller: Controller, engines: Engines, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failed = False
        self.engine_of = {
            step.name: (step.stage.engine, engines.kinds[step.stage.engine])
            for step in controller.graph.steps
        }
        self._controller, self._engines, self._clock = controller, engines, clock
        self._workers: dict[str, int] = {}
        self._ask_workers = self._count_units = 0.0
        self._seen: set[tuple[str, str]] = set()

    def __call__(self) -> Load:
        """Return what there is now."""
        controller = self._controller
        now = self._clock()
        if now >= self._ask_workers or self._engines._open.keys() != self._workers.keys():
            self._ask_workers = now + WORKERS_S
            self._workers = {kind: e._live_workers() for kind, e in self._engines._open.items()}
        return Load(
            {
                name: EngineLoad(len(queue), self._in_flight(name), self._engines.kinds[name])
                for name, queue in controller._queues.items()
            },
            self._workers,
            controller._pause.until,
            self._units(now) if now >= self._count_units else {},
        )

    def _in_flight(self, engine: str) -> int:
        attempts = list(self._controller._running.values())
        return sum(attempt.unit.step.stage.engine == engine for attempt in attempts)

    def _units(self, now: float) -> dict[tuple[str, str], int]:
        units: list[Unit] = list(self._controller.graph.units.values())
        counts = Counter((unit.step.name, unit.state) for unit in units)
        self._seen |= counts.keys()
        self._count_units = now + max(5.0, (self._clock() - now) / COUNT_SHARE)
        return {key: counts[key] for key in self._seen}  # states that nobody is in any more are told as 0
