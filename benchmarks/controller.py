"""The real controller over a cluster that computes nothing: what a block costs the driver and the storage.

::

    python -m benchmarks.controller drive  --workers 64 --tomograms 100 --blocks 1000
    python -m benchmarks.controller resume --tomograms 10000 --blocks 1000
    python -m benchmarks.controller middle --blocks 1000000

All is drawn from a seed. Times of the driver are CPU time of its thread without that of the fake cluster.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from cryoscale.data.ledger import Mark, UnitLedger
from cryoscale.runtime.events import Event, EventBus, TaskEnded
from cryoscale.testing.counted_store import KINDS, CountedStore
from cryoscale.testing.fake_cluster import FakeCluster, FakeDrive, Weather, fake_steps, one_step

PARTS = 10  # a drive is cut into so many parts of equal blocks, to see whether the cost per block is flat


class Slices:
    """A listener that notes the driver's CPU time after each tenth of the blocks."""

    def __init__(self, blocks: int, clock: Callable[[], float]) -> None:
        self._every, self._clock, self._seen = max(1, blocks // PARTS), clock, 0
        self.marks: list[float] = []

    def __call__(self, event: Event) -> None:
        """Count the block attempts that ended."""
        if isinstance(event, TaskEnded) and event.block >= 0:
            self._seen += 1
            if self._seen % self._every == 0:
                self.marks.append(self._clock())


def resident_mib() -> float:
    """Return the resident memory of this process now, MiB."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20


def drive(
    workers: int, tomograms: int, blocks: int, weather: Weather, *, stages: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Drive a project from nothing to its end and say what it took.

    Parameters
    ----------
    workers, tomograms, blocks : int
        Of the cluster; of the project; blocks per tomogram and stage.
    weather : Weather
        What happens to the workers.
    stages : int
        1, or 3 with a fit between.
    seed : int
        Of the draws.

    Returns
    -------
    row : dict
        Numbers for the table.
    """
    place = f"counted://{uuid.uuid4().hex}"
    CountedStore.reset()
    gc.collect()
    before = resident_mib()
    cluster = FakeCluster(workers, weather, seed)
    bus = EventBus()
    fake = FakeDrive(place, tomograms, fake_steps(blocks) if stages > 1 else one_step(blocks), bus=bus)
    total = tomograms * blocks * stages
    slices = Slices(total, lambda: time.thread_time() - cluster.own_s)
    bus.listen(slices)
    began = time.thread_time()
    with fake.over(cluster) as controller:
        controller.run()
    spent = time.thread_time() - began - cluster.own_s
    ends: dict[str, int] = {}
    for unit in fake.graph.units.values():
        ends[unit.state] = ends.get(unit.state, 0) + 1
    parts = [b - a for a, b in zip(slices.marks, slices.marks[1:], strict=False)]
    per = total / PARTS
    row = {
        "workers": workers, "tomograms": tomograms, "blocks": total, "units": ends,
        "driver_us_per_block": spent / total * 1e6,
        "first_tenth_us": parts[0] / per * 1e6 if parts else None,
        "last_tenth_us": parts[-1] / per * 1e6 if parts else None,
        "virtual_hours": cluster.now / 3600,
        "idle_share": 1 - cluster.busy_s / cluster.there_s if cluster.there_s else None,
        "drained_share": cluster.drained_s / cluster.there_s if cluster.there_s else None,
        "attempts": dict(cluster.counts),
        "quarantined": sum(len(u.quarantined) for u in fake.graph.units.values()),
        "operations_per_block": {kind: CountedStore.total(kind) / total for kind in KINDS},
        "resident_mib_before": before, "resident_mib": resident_mib(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip
    CountedStore.trees.clear()
    return row


def resume(tomograms: int, blocks: int, delay_s: float = 0.0) -> dict[str, Any]:
    """Take up a project that is finished: every unit is found sealed.

    Returns
    -------
    row : dict
        Numbers for the table.
    """
    place = f"counted://{uuid.uuid4().hex}"
    steps = one_step(blocks)
    fake = FakeDrive(place, tomograms, steps)
    for unit in fake.graph.units.values():
        ledger = UnitLedger(fake.graph.run.ledger, *unit.name, fake.graph.key_of(unit))
        record = {
            "stage": unit.step.name, "unit": unit.tomogram, "key": ledger.key, "state": "done",
            "planned": blocks, "done": blocks, "empty": 0, "quarantined": 0, "voxels": blocks,
            "seconds": 1.0, "started": 1.0, "finished": 2.0, "reason": "", "value": {"picks": 1234},
        }  # fmt: skip
        ledger.folder.write_json("sealed.json", record)
        ledger.folder.write_json("plan.json", {"plan": "x", "blocks": blocks, "voxels": 1, "started": 1.0})
        ledger.folder.write_bytes("created", b"")
    return _take_up(place, tomograms, blocks, delay_s)


def middle(blocks: int, done: float = 0.5, segment: int = 32) -> dict[str, Any]:
    """Take up one unit of many blocks, part of which have marks in segments.

    Returns
    -------
    row : dict
        Numbers for the table.
    """
    place = f"counted://{uuid.uuid4().hex}"
    fake = FakeDrive(place, 1, one_step(blocks))
    (unit,) = fake.graph.units.values()
    ledger = UnitLedger(fake.graph.run.ledger, *unit.name, fake.graph.key_of(unit))
    plan = unit.step.stage.plan(None)  # type: ignore[attr-defined]
    ledger.begin(plan.identity, plan.block_count, plan.voxels)
    ledger.mark_created()
    for block in range(int(blocks * done)):
        ledger.add(Mark(block, "done", 1, 1.0, 1.0))
        if ledger.pending >= segment:
            ledger.flush()
    ledger.flush()
    return _take_up(place, 1, blocks)


def _take_up(place: str, tomograms: int, blocks: int, delay_s: float = 0.0) -> dict[str, Any]:
    """Drive what stands at a place; time it, and how long it takes until the first block is handed out."""
    CountedStore.reset()
    cluster = FakeCluster(64, Weather())
    first: list[float] = []
    gc.collect()
    before, began, wall = resident_mib(), time.thread_time(), time.perf_counter()
    launch = cluster._launch

    def noted(*words: Any) -> None:
        if not first:
            first.append(time.perf_counter() - wall)
        launch(*words)

    cluster._launch = noted  # type: ignore[method-assign]
    fake = FakeDrive(place, tomograms, one_step(blocks))
    CountedStore.delay_s = delay_s
    with fake.over(cluster) as controller:
        controller.run()
    CountedStore.delay_s = 0.0
    row = {
        "tomograms": tomograms, "blocks": tomograms * blocks,
        "seconds": time.perf_counter() - wall, "driver_s": time.thread_time() - began - cluster.own_s,
        "seconds_to_first_block": first[0] if first else None,
        "finished": cluster.counts["finished"],
        "operations": {kind: CountedStore.total(kind) for kind in KINDS},
        "resident_mib_before": before, "resident_mib": resident_mib(),
    }  # fmt: skip
    CountedStore.trees.clear()
    return row


def weather_of(options: argparse.Namespace) -> Weather:
    """Read the weather from the command line."""
    return Weather(
        block_s=options.block_s, failures=options.failures, poison=options.poison, broken=options.broken,
        preemptions_per_hour=options.preemptions,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is named and print one JSON object per row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description=__doc__)
    parser.add_argument("what", choices=["drive", "resume", "middle"])
    parser.add_argument("--workers", type=int, nargs="+", default=[64])
    parser.add_argument("--tomograms", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=1000)
    parser.add_argument("--stages", type=int, choices=[1, 3], default=1)
    parser.add_argument("--block-s", type=float, default=20.0)
    parser.add_argument("--failures", type=float, default=1e-4)
    parser.add_argument("--poison", type=float, default=1e-6)
    parser.add_argument("--broken", type=float, default=0.0)
    parser.add_argument("--preemptions", type=float, default=1.0, help="per worker and hour")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each request takes (resume)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.what == "drive":
        for workers in options.workers:
            row = drive(workers, options.tomograms, options.blocks, weather_of(options),
                        stages=options.stages, seed=options.seed)  # fmt: skip
            print(json.dumps(row), flush=True)
    elif options.what == "resume":
        print(json.dumps(resume(options.tomograms, options.blocks, options.delay)))
    else:
        print(json.dumps(middle(options.blocks)))


if __name__ == "__main__":
    main()
