"""The part all executors share, on one whose engine the test plays itself."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError, StateError, SurroundingsError
from cryoscale.runtime.executor import Executor, ExecutorSettings, open_executor
from cryoscale.runtime.probe import Finding
from cryoscale.runtime.task import Outcome
from cryoscale.testing.executors import drain
from cryoscale.testing.works import task


class Puppet(Executor):
    name = "puppet"

    def __init__(self, settings=None, window=4, workers=1):
        super().__init__(settings or ExecutorSettings())
        self.size, self.workers = window, workers
        self.launched, self.to_report, self.history = [], [], []

    @property
    def window(self):
        return self.size

    def _start(self):
        pass

    def _launch(self, ticket, task, payload):
        assert len(self._running) <= self.size
        if task.alone or any(other.alone for other in self._running.values()):
            assert len(self._running) == 1, "something runs beside a task that is alone"
        self.history.append(task.identifier)
        self.launched.append((ticket, Outcome(task, "finished")))

    def _collect(self, timeout):
        ended, self.launched = self.launched, []
        return ended if self.workers else []

    def _live_workers(self):
        return self.workers

    def _close(self):
        pass


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=20))
def test_any_mixture_runs_in_order_within_the_window_and_alone_when_asked(window, alone):
    executor = Puppet(window=window)
    executor.start()
    for number, flag in enumerate(alone):
        executor.submit(task("square", number, identifier=f"{number}", alone=flag))
    assert executor.in_flight == len(alone)
    outcomes = drain(executor)
    assert executor.history == [f"{number}" for number in range(len(alone))]
    assert sorted(o.task.identifier for o in outcomes) == sorted(executor.history)
    assert executor.in_flight == 0


def test_nothing_in_flight_returns_at_once():
    executor = Puppet()
    executor.start()
    assert executor.wait(3600) == []


def test_no_worker_is_reported_and_the_task_stays():
    executor = Puppet(ExecutorSettings(start_timeout_s=0.0), workers=0)
    executor.begin()
    executor.submit(task("square", 1))
    with pytest.raises(SurroundingsError, match=r"no worker answered under puppet.*Check that workers run"):
        executor.wait(60)
    executor.workers = 1
    executor.launched = [(ticket, Outcome(held, "finished")) for ticket, held in executor._running.items()]
    assert len(drain(executor)) == 1


def test_two_processes_of_one_host_do_not_undo_each_other_s_findings():
    executor = Puppet()
    said = []
    executor.tell = lambda text, level: said.append(text)
    now = time.time()
    for _ in range(3):
        assert not executor._judge(Finding("no run.toml", "node7", 1, now), now, "tcp://node7:1")
        assert not executor._judge(Finding("no run.toml", "node7", 2, now), now, "tcp://node7:2")
        assert executor._judge(Finding("", "node7", 3, now), now, "tcp://node7:3")
    assert len(said) == 1, said
    assert str(executor._nobody("no worker answered")).count("On node7: no run.toml") == 1
    assert executor._judge(Finding("", "node7", 1, now), now, "tcp://node7:1")
    assert executor._judge(Finding("", "node7", 2, now), now, "tcp://node7:2")
    assert "node7" not in str(executor._nobody("no worker answered"))


def test_no_progress_names_what_hangs():
    executor = Puppet(ExecutorSettings(no_progress_timeout_s=0.0))
    executor.start()
    executor._collect = lambda timeout: []
    executor.submit(task("square", 1, identifier="pick/tomo7/block3"))
    with pytest.raises(SurroundingsError, match=r"no task has ended.*1 workers, 1 tasks.*pick/tomo7/block3"):
        executor.wait(60)


def test_submit_before_start_is_refused():
    with pytest.raises(StateError, match="not started"):
        Puppet().submit(task("square", 1))


def test_unknown_names_and_impossible_settings_are_refused():
    with pytest.raises(ConfigurationError, match=r"no executor 'slurm'.*serial, dask, ray"):
        open_executor("slurm")
    with pytest.raises(ConfigurationError, match="threads_per_worker must be at least 1, got 0"):
        ExecutorSettings(threads_per_worker=0)


def test_serial_runs_one_task_per_wait_in_order():
    with open_executor("serial") as executor:
        for number in (3, 1, 2):
            executor.submit(task("square", number))
        assert [[o.value for o in executor.wait(0)] for _ in range(3)] == [[9], [1], [4]]


def test_importing_the_room_loads_no_engine():
    code = (
        "import sys; import cryoscale.runtime.executor, cryoscale.runtime.dask, cryoscale.runtime.ray, "
        "cryoscale.runtime.serial, cryoscale.runtime.devices, cryoscale.runtime.progress; "
        "print([m for m in ('ray', 'dask', 'distributed', 'torch', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
