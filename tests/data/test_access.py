"""A stage opens what it declares and nothing else."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable

import pytest

from cryoscale.data.access import ARTIFACTS, Access
from cryoscale.data.run import Run
from cryoscale.errors import UndeclaredAccessError
from cryoscale.pipeline.order import steps_for

OPENERS: dict[str, Callable[[Access], object]] = {
    "source": Access.source,
    "tomogram": Access.open_tomogram,
    "picks": Access.picks,
    "encodings": Access.encodings,
    "encoder": lambda access: access.model("encoder"),
    "segmenter": lambda access: access.model("segmenter"),
    "clusters": Access.clusters,
    "assignments": Access.assignments,
    "labels": Access.label_volume,
}


def grant(run: Run, reads: set[str], writes: str) -> Access:
    return Access(run, run.config, "alpha", (), frozenset(reads), writes, "k")


@pytest.mark.parametrize("artifact", sorted(OPENERS))
def test_what_is_declared_opens_and_what_is_not_does_not(finished_run: Run, artifact: str) -> None:
    assert OPENERS[artifact](grant(finished_run, {artifact}, "picks")) is not None
    assert OPENERS[artifact](grant(finished_run, set(), artifact)) is not None  # a stage reads what it writes
    nothing = grant(finished_run, set(OPENERS) - {artifact, "review", "selection"}, "instances")
    with pytest.raises(UndeclaredAccessError, match=artifact):
        OPENERS[artifact](nothing)


def test_reading_does_not_allow_writing(finished_run: Run) -> None:
    access = grant(finished_run, {"tomogram", "labels"}, "picks")
    with pytest.raises(UndeclaredAccessError, match="write 'tomogram'"):
        access.tomogram_folder()
    with pytest.raises(UndeclaredAccessError, match="write 'labels'"):
        access.label_volume(write=True)
    assert access.output().url == finished_run.picks.url


def test_grant_travels(finished_run: Run) -> None:
    access = grant(finished_run, {"picks"}, "encodings")
    again = pickle.loads(pickle.dumps(access))
    assert len(again.picks()) == len(access.picks())
    assert again == access


def test_stages_declare_known_artifacts_and_each_is_written_once(finished_run: Run) -> None:
    stages = [step.stage for step in steps_for(finished_run.config)]
    for stage in stages:
        assert stage.reads | {stage.writes} <= ARTIFACTS, stage.name
        assert stage.writes not in stage.reads - {"source"}, stage.name
    written = [stage.writes for stage in stages]
    assert len(set(written)) == len(written)


def test_unknown_source_is_named(finished_run: Run) -> None:
    access = dataclasses.replace(grant(finished_run, {"source"}, "tomogram"), tomogram="nobody")
    with pytest.raises(UndeclaredAccessError, match="nobody"):
        access.source()
