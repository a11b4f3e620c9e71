"""Machines come late, or not at all; drivers end and begin again elsewhere."""

from __future__ import annotations

import signal

import pytest

from tests.cluster.machines import ON_DASK, ON_RAY, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_machine_that_joins_late_gets_work_of_both_engines(make_machines, new_run, same):
    machines = make_machines(3)
    first, late, desk = machines.hosts
    machines.lead(first)
    machines.ready(first, dask=1, ray=1)
    run = new_run()
    journal = machines.journal(run)
    driver = machines.drive(desk, run, first)
    until(lambda: journal.tasks, f"work begins\n{machines.tail()}")
    machines.join(late, first)
    assert "all done" in machines.finish(driver)
    everywhere = journal.done_by(ON_DASK | ON_RAY | {"identify"})
    assert set(everywhere) == {first.name, late.name}, f"{everywhere}\n{machines.tail()}"
    same(run)


def test_without_workers_a_run_waits_says_so_and_ends_with_75(make_machines, new_run):
    machines = make_machines(2)
    first, desk = machines.hosts
    machines.engine(first, "scheduler", "--host", first.ip)
    machines.ready(first, dask=0)
    run = new_run("execution.start_timeout_s=8")
    driver = machines.drive(desk, run, first, "--until", "pick")
    said = machines.end(driver)
    assert driver.returncode == 75, said
    assert f"{first.ip}:8786" in said
    assert "waited up to 8 s" in said
    machines.engine(first, "worker", f"tls://{first.ip}:8786", "--host", first.ip, "--workers", 1)
    machines.ready(first, dask=1)
    machines.finish(machines.drive(desk, run, first, "--until", "pick"))
    assert machines.journal(run).sealed("pick") == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_driver_that_ends_is_taken_over_on_another_host(make_machines, new_run, same, number):
    machines = make_machines(3)
    first, desk, other = machines.hosts
    machines.lead(first)
    machines.ready(first, dask=1, ray=1)
    run = new_run()
    journal = machines.journal(run)
    driver = machines.drive(desk, run, first, TOLD_STALE_LOCK_S="24")
    until(lambda: journal.done_by(ON_RAY), f"both engines are at work\n{machines.tail()}")
    before = len(journal.tasks)
    driver.signal(number)
    said = machines.end(driver, 60)
    assert driver.returncode == (143 if number == signal.SIGTERM else driver.returncode), said
    waited = () if number == signal.SIGTERM else ("--wait-for-driver", 100)
    second = machines.drive(other, run, first, *waited, TOLD_STALE_LOCK_S="24")
    assert "all done" in machines.finish(second)
    same(run)
    # what the first one had sealed was not done again
    assert journal.sealed("train_encoder") == 1
    assert len(journal.tasks) > before
