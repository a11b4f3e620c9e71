"""A run on three hosts loses one to the network and one to a dead power supply, and makes the same bytes."""

from __future__ import annotations

import pytest

from tests.cluster.machines import ON_DASK, ON_RAY, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_one_host_is_cut_off_and_another_killed(make_machines, new_run, same):
    machines = make_machines(4)
    first, second, third, desk = machines.hosts
    machines.lead(first)
    for host in (second, third):
        machines.join(host, first)
    machines.ready(first, dask=3, ray=3)

    run = new_run()
    journal = machines.journal(run)
    driver = machines.drive(desk, run, first)
    everywhere = {host.name for host in (first, second, third)}
    for stages in (ON_DASK, ON_RAY):
        until(
            lambda stages=stages: everywhere <= set(journal.done_by(stages)), f"{stages}\n{machines.tail()}"
        )
    third.cut()
    until(lambda: journal.started("train_segmenter"), f"the second training begins\n{machines.tail()}")
    second.kill()
    assert "all done" in machines.finish(driver)
    same(run)
    # what was lost was seen as lost: a worker's end condemns no block
    assert not [task for task in journal.tasks if task["status"] not in ("done", "empty", "lost")]
