"""A driver killed with SIGKILL, at any moment and several times in a row, leaves nothing that matters."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoscale.data.run import Run
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.crashes import Moment, drive_and_die
from tests.conftest import SELECTION
from tests.pipeline.driving import drive

EVENTS, WRITES, DELETES = (
    90,
    330,
    130,
)  # about what an undisturbed run has of each; later moments end it whole


@pytest.fixture(scope="session")
def undisturbed(finished_run: Run) -> dict[str, str]:
    return artifact_digest(finished_run)


@pytest.fixture
def chosen_run(make_run: Callable[..., Run]) -> Run:
    """A fresh run with its selection there already, so that nothing waits."""
    run = make_run()
    run.clusters.folder.write_bytes("selection.toml", SELECTION.encode())
    return run


def finish(run: Run) -> dict[str, str]:
    end = drive_and_die(run.folder.url, Moment())
    assert not end.killed
    assert end.exit_code == 0, Path(run.folder.path("failures.csv")).read_text()
    assert not drive(run).tasks
    return artifact_digest(run)


def test_undisturbed_in_a_process_of_its_own(chosen_run: Run, undisturbed: dict[str, str]) -> None:
    assert not differences(undisturbed, finish(chosen_run))


def moments(seed: int, kills: int) -> list[Moment]:
    rng = random.Random(seed)
    return [
        rng.choice(
            [
                Moment(event=rng.randint(1, EVENTS)),
                Moment(write=rng.randint(1, WRITES), torn=rng.random() < 0.5),
                Moment(delete=rng.randint(1, DELETES)),
            ]
        )
        for _ in range(kills)
    ]


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 40))]
)
def test_killed_several_times(chosen_run: Run, undisturbed: dict[str, str], seed: int) -> None:
    for moment in moments(seed, 4):
        drive_and_die(chosen_run.folder.url, moment)
    assert not differences(undisturbed, finish(chosen_run))
