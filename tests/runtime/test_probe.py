"""What a worker says about itself, and how the driver judges it."""

from __future__ import annotations

import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.runtime import probe
from cryoscale.runtime.packing import pack, unpack_outcome
from cryoscale.runtime.probe import Finding, Guard, clock_problem, examine, run_guarded, unfit, versions
from cryoscale.runtime.task import WorkCache
from cryoscale.testing.works import task


class Counting:
    """Counts its looks in this process."""

    looks = 0

    def __init__(self, said=""):
        self.said = said

    def __call__(self, worker):
        Counting.looks += 1
        return self.said


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(probe, "_proved", set())
    Counting.looks = 0


def test_versions_name_what_decides_bytes_without_local_parts():
    said = versions("dask")
    assert said["Python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert {"cryoscale", *probe.DECISIVE, "dask", "distributed"} < said.keys()
    assert "ray" not in said
    assert all("+" not in version for version in said.values())
    assert versions("ray")["ray"]


def test_a_process_examines_itself_once_per_guard():
    for key in ("a", "a", "b"):
        assert Finding(*examine(Guard(key, versions(), Counting()).packed())).problem == ""
    assert Counting.looks == 2


def test_an_unfit_process_stays_unfit_until_it_is_not():
    assert "no folder" in examine(Guard("a", {}, Counting("no folder")).packed())[0]
    assert examine(Guard("a", {}, Counting()).packed())[0] == ""
    assert examine(Guard("a", {}, Counting("not asked any more")).packed())[0] == ""


def test_other_versions_are_named_before_the_rest_is_unpacked():
    guard = pickle.dumps(("a", {**versions(), "zarr": "1.0", "openvino": ""}, b"of another version"))
    problem = examine(guard)[0]
    assert f"zarr {versions()['zarr']} instead of 1.0" in problem
    assert ("openvino" in problem) == bool(versions()["openvino"])
    assert "could not be examined" in examine(pickle.dumps(("a", versions(), b"nonsense")))[0]


def test_a_task_is_not_touched_by_an_unfit_worker():
    single = task("square", 3)
    reply = run_guarded(Guard("a", {"numpy": "0.0.1"}).packed(), pack(single), WorkCache())
    found = unfit(reply)
    assert found is not None
    assert "numpy" in found.problem
    reply = run_guarded(Guard("a", versions()).packed(), pack(single), WorkCache())
    assert unfit(reply) is None
    assert unpack_outcome(single, reply).value == 9


@given(st.floats(-1e6, 1e6), st.floats(0, 100), st.floats(0, 1))
def test_a_clock_is_told_only_when_it_is_surely_off(offset, way, share):
    asked = 1e9
    answered = asked + way
    finding = Finding("", "node7", 1, asked + share * way + offset)
    said = clock_problem(finding, asked, answered)
    if abs(offset) <= probe.CLOCK_S:
        assert said == ""
    if abs(offset) > probe.CLOCK_S + way + 1e-3:
        assert "node7" in said
        assert ("behind" in said) == (offset < 0)
