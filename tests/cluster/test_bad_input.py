"""What people get wrong on clusters is named before work starts, or costs the one machine it is wrong on."""

from __future__ import annotations

import pytest

from cryoscale.runtime.secrets import Secrets
from tests.cluster.machines import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# Put on PYTHONPATH of a worker: it says that it is another version, or has another time.
OTHER_VERSION = "import cryoscale\ncryoscale.__version__ = '9.9.9'\n"
OTHER_CLOCK = "import time\n_plain = time.time\ntime.time = lambda: _plain() + 3600\n"


def two_workers(machines, bad_env=(), bad_words=(), before=lambda host: None, good=True):
    """A scheduler with a good worker beside it (or not), and a worker on another host that is somehow bad."""
    first, second, desk = machines.hosts
    machines.engine(first, "scheduler", "--host", first.ip)
    address = f"tls://{first.ip}:8786"
    if good:
        machines.engine(first, "worker", address, "--host", first.ip, "--workers", 1)
    before(second)
    machines.engine(
        second, "worker", address, "--host", second.ip, "--workers", 1, *bad_words, **dict(bad_env)
    )
    machines.ready(first, dask=2 if good else 1)
    return first, second, desk


def shim(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def test_a_wrong_address_is_named(make_machines, new_run):
    machines = make_machines(2)
    first, desk = machines.hosts
    run = new_run("execution.start_timeout_s=5")
    driver = machines.drive(desk, run, first, "--until", "pick")
    said = machines.end(driver, 60)
    assert driver.returncode == 75, said
    assert f"{first.ip}:8786" in said


def test_secrets_of_another_cluster_are_refused_on_both_sides(make_machines, new_run, tmp_path):
    machines = make_machines(2)
    first, desk = machines.hosts
    machines.engine(first, "scheduler", "--host", first.ip)
    machines.ready(first, dask=0)
    machines.secrets = Secrets.create(tmp_path / "others").folder
    driver = machines.drive(desk, new_run("execution.start_timeout_s=10"), first, "--until", "pick")
    worker = machines.engine(desk, "worker", f"tls://{first.ip}:8786", "--host", desk.ip, "--workers", 1)
    for process in (driver, worker):
        said = machines.end(process, 90)
        assert process.returncode not in (0, None), said
        assert "certificate" in said.lower()
        assert "Traceback" not in said


def test_a_worker_of_another_version_is_named_and_not_used(make_machines, new_run, tmp_path):
    machines = make_machines(3)
    first, second, desk = two_workers(machines, shim(tmp_path / "shim", OTHER_VERSION))
    run = new_run()
    driver = machines.drive(desk, run, first, "--until", "pick")
    machines.finish(driver)
    journal = machines.journal(run)
    assert set(journal.done_by({"identify", "ingest", "pick"})) == {first.name}
    told = [text for text in journal.messages if second.name in text]
    assert any("9.9.9" in text and "0.1.0" in text for text in told), journal.messages


def test_workers_all_of_another_version_stop_the_run_before_it_begins(make_machines, new_run, tmp_path):
    machines = make_machines(3)
    first, second, desk = two_workers(machines, shim(tmp_path / "shim", OTHER_VERSION), good=False)
    run = new_run("execution.start_timeout_s=10")
    driver = machines.drive(desk, run, first, "--until", "pick")
    said = machines.end(driver, 90)
    assert driver.returncode == 75, said
    assert "9.9.9" in said
    assert "0.1.0" in said
    assert second.name in said
    assert not machines.journal(run).tasks


@pytest.mark.parametrize("good", [True, False], ids=["one-of-two", "all"])
def test_a_shared_folder_that_is_not_shared(make_machines, new_run, shared, good):
    machines = make_machines(3)
    first, second, desk = two_workers(machines, before=lambda host: host.hide(shared / "runs"), good=good)
    run = new_run("execution.start_timeout_s=10")
    driver = machines.drive(desk, run, first, "--until", "pick")
    said = machines.end(driver, 90)
    journal = machines.journal(run)
    told = "\n".join([said, *journal.messages])
    assert second.name in told
    assert str(run) in told
    assert driver.returncode == (0 if good else 75), said
    assert set(journal.done_by({"identify", "ingest", "pick"})) == ({first.name} if good else set())


def test_storage_that_is_read_only_on_one_host(make_machines, new_run, shared):
    machines = make_machines(3)
    first, second, desk = two_workers(machines, before=lambda host: host.read_only(shared / "runs"))
    run = new_run()
    machines.finish(machines.drive(desk, run, first, "--until", "pick"))
    journal = machines.journal(run)
    assert any(second.name in text and "Read-only" in text for text in journal.messages), journal.messages
    assert set(journal.done_by({"identify", "ingest", "pick"})) == {first.name}


def test_a_clock_that_is_off_is_told(make_machines, new_run, tmp_path):
    machines = make_machines(3)
    first, second, desk = two_workers(machines, shim(tmp_path / "shim", OTHER_CLOCK))
    run = new_run()
    machines.finish(machines.drive(desk, run, first, "--until", "pick"))
    journal = machines.journal(run)
    assert any("clock" in text and second.name in text for text in journal.messages), journal.messages
    assert set(journal.done_by({"identify", "ingest", "pick"})) == {first.name, second.name}


def test_a_full_disk_pauses_the_run_until_it_is_mended(make_machines, new_run, shared, sources):
    small = shared / "small"
    small.mkdir(exist_ok=True)
    machines = make_machines(3, small_disk=(small, "2m"))
    first, _, desk = two_workers(machines)
    place = new_run(place=machines.hosts.path(small) / "run")
    run = small / "run"
    driver = machines.drive(desk, run, first, "--until", "pick")
    journal = machines.journal(run)
    until(
        lambda: any("No space left" in text for text in journal.messages), f"it pauses\n{machines.tail()}", 90
    )
    machines.hosts.resize("200m")
    machines.finish(driver)
    assert journal.sealed("pick") == len(sources)
    assert (place / "picks").exists()
