"""Engines without work are looked after as long as the run goes on elsewhere."""

from __future__ import annotations

from cryoscale.pipeline.controller import Controller
from cryoscale.pipeline.order import Step
from cryoscale.testing.fake_cluster import FakeBlocks, FakeCluster, FakeDrive, Weather


def test_an_engine_that_has_no_work_any_more_is_tended(tmp_path):
    steps = [
        Step(FakeBlocks("first", 2, "model"), (), lambda c: []),
        Step(FakeBlocks("second", 8), ("first",), lambda c: []),
    ]
    drive = FakeDrive(str(tmp_path), 1, steps)
    idle = []
    with FakeCluster(1, Weather()) as model, FakeCluster(1, Weather()) as cpu:
        model.tend = lambda: idle.append(not model.in_flight and cpu.in_flight > 0)
        engines = {"cpu": lambda: cpu, "model": lambda: model}
        Controller(drive.graph, engines, drive.bus, drive.limits, clock=cpu.clock).run()
    assert sum(idle) >= 4, "nobody would notice that its cluster has gone"
