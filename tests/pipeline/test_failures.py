"""A failure never stops the run and never hides; the surroundings condemn nothing."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cryoscale.data.ledger import UnitLedger, unit_states
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, DataError, SurroundingsError
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.pipeline import engines
from cryoscale.stages.ingest import IngestStage
from cryoscale.stages.pick import PickStage
from cryoscale.stages.segment import SegmentStage
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.faults import Deadly, FullDisk, MortalExecutor, failing_block, truncate
from cryoscale.testing.phantoms import blobs, write_phantom
from tests.pipeline.driving import drive, settle

SHAPE = (40, 48, 56)


def failures_csv(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run.folder.read_bytes("failures.csv").decode())))


def broken_truncated(path: Path) -> None:
    truncate(write_phantom(path, SHAPE, seed=5))


def broken_nan(path: Path) -> None:
    volume = blobs(SHAPE, seed=5)[0]
    volume[20, 20, 20] = np.nan
    write_mrc(path, volume, 10.0)


def broken_constant(path: Path) -> None:
    write_mrc(path, np.full(SHAPE, 3.5, np.float32), 10.0)


def broken_small(path: Path) -> None:
    write_mrc(path, blobs((6, 48, 56), seed=5)[0], 10.0)


def broken_voxel_size(path: Path) -> None:
    write_phantom(path, SHAPE, seed=5)
    data = bytearray(path.read_bytes())
    data[40:52] = bytes(12)  # the cell in the header
    path.write_bytes(data)


def broken_empty_file(path: Path) -> None:
    path.write_bytes(b"")


def broken_text(path: Path) -> None:
    path.write_bytes(b"not a tomogram " * 1000)


def broken_gone(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("spoil", "stage", "words"),
    [
        (broken_truncated, "identify", ["bad.mrc"]),
        (broken_nan, "ingest", ["bad.mrc", "NaN"]),
        (broken_constant, "ingest", ["bad.mrc", "every voxel", "3.5"]),
        (broken_small, "pick", ["'bad'", "patch.size_voxels"]),
        (broken_voxel_size, "ingest", ["bad.mrc", "voxel size", "--voxel-size"]),
        (broken_empty_file, "identify", ["bad.mrc"]),
        (broken_text, "identify", ["bad.mrc"]),
        (broken_gone, "identify", ["bad.mrc"]),
    ],
)
def test_one_bad_file_among_good_ones(
    make_run: Callable[..., Run],
    tmp_path: Path,
    small_sources: list[Path],
    spoil: Callable[[Path], None],
    stage: str,
    words: list[str],
) -> None:
    spoil(tmp_path / "bad.mrc")
    run = make_run(sources=[*small_sources, tmp_path / "bad.mrc"])
    ended = drive(run, until="pick")
    assert ended.exit_code == 1
    assert ended.sealed["pick"] == 2
    (failure,) = failures_csv(run)
    assert (failure["stage"], failure["tomogram"]) == (stage, "bad")
    for word in words:
        assert word in failure["reason"]
    (state,) = [s for s in unit_states(run.ledger) if s.state == "failed"]
    assert (state.stage, state.unit) == (stage, "bad")
    # a whole file in its place mends all
    write_phantom(tmp_path / "bad.mrc", SHAPE, seed=5)
    mended = drive(run, until="pick", retry_quarantined=True)
    assert mended.exit_code == 0
    assert {t.tomogram for t in mended.tasks} == {"bad"}
    assert not run.folder.exists("failures.csv")


def test_fits_are_made_on_the_tomograms_that_stand(
    make_run: Callable[..., Run], tmp_path: Path, small_sources: list[Path]
) -> None:
    broken_truncated(tmp_path / "bad.mrc")
    run = make_run(sources=[*small_sources, tmp_path / "bad.mrc"])
    ended = drive(run, until="assign")
    assert ended.sealed["assign"] == 2
    assert run.clusters.card["tomograms"] == ["alpha", "beta"]


def test_no_usable_tomogram_blocks_the_fits(make_run: Callable[..., Run], tmp_path: Path) -> None:
    broken_text(tmp_path / "bad.mrc")
    ended = drive(make_run(sources=[tmp_path / "bad.mrc"]))
    assert ended.exit_code == 1
    assert ended.stages == {"identify"}


def test_tomogram_without_picks_goes_through_empty(copied_run: Run) -> None:
    settle(copied_run, "pick.threshold=1e9", "pick.threshold_rule=score", "encoder.weights="
           + copied_run.model("encoder").folder.url)  # fmt: skip
    ended = drive(copied_run, until="encode")
    assert ended.exit_code == 0, ended.failures
    states = {(s.stage, s.unit): s.state for s in unit_states(copied_run.ledger)}
    assert states["pick", "alpha"] == states["encode", "alpha"] == "empty"


def test_failing_block_is_tried_three_times_then_alone_then_quarantined(
    make_run: Callable[..., Run], finished_run: Run
) -> None:
    run = make_run()
    with failing_block(IngestStage, lambda b: b.core.start == (32, 0, 32), lambda: DataError("bad luck")):
        ended = drive(run, until="pick")
    tried = [t for t in ended.tasks if t.stage == "ingest" and t.tomogram == "alpha" and t.status != "done"]
    assert [(t.attempt, t.status) for t in tried] == [
        (1, "failed"), (2, "failed"), (3, "failed"), (4, "quarantined"),
    ]  # fmt: skip
    assert len({t.block for t in tried}) == 1
    assert ended.exit_code == 1
    rows = failures_csv(run)
    assert {(r["stage"], r["tomogram"], r["reason"]) for r in rows} == {
        ("ingest", "alpha", "bad luck"), ("ingest", "beta", "bad luck")}  # fmt: skip
    (state,) = [s for s in unit_states(run.ledger) if (s.stage, s.unit) == ("ingest", "alpha")]
    assert (state.quarantined, state.done) == (1, 7)  # the other blocks of the phase are done
    again = drive(run, until="pick")
    assert not again.tasks, "quarantined blocks are not tried again unasked"
    assert again.exit_code == 1
    mended = drive(run, until="pick", retry_quarantined=True)
    assert mended.exit_code == 0
    assert len([t for t in mended.tasks if t.stage == "ingest" and t.tomogram == "alpha"]) == 1 + 1 + 1
    mine, whole = artifact_digest(run), artifact_digest(finished_run)
    both = [k for k in whole if k.startswith("picks") or (k.startswith("tomo") and "labels" not in k)]
    assert both
    assert not differences({k: mine[k] for k in both}, {k: whole[k] for k in both})


def test_bugs_are_quarantined_like_bad_data(make_run: Callable[..., Run]) -> None:
    run = make_run()
    with failing_block(PickStage, lambda b: True, lambda: ZeroDivisionError("oops")):
        ended = drive(run, until="pick")
    assert {f["reason"] for f in ended.failures} == {"oops"}


def test_attempts_are_counted_as_configured(make_run: Callable[..., Run]) -> None:
    run = make_run("execution.attempts=1")
    with failing_block(PickStage, lambda b: True, lambda: DataError("no")) as raised:
        drive(run, until="pick")
    assert len(raised) == 2 * 2  # once, then alone; two tomograms


def test_full_disk_pauses_then_stops_with_the_work_kept(
    make_run: Callable[..., Run], finished_run: Run
) -> None:
    run = make_run()
    disk = FullDisk(lambda path: "/1/c/" in path)  # level 1 does not fit
    with disk.mounted(), pytest.raises(SurroundingsError, match="work kept"):
        drive(run, until="pick")
    assert disk.refused == 4  # the first try, and one after each of two pauses: both tomograms in turn
    assert not [s for s in unit_states(run.ledger) if s.quarantined or s.state == "failed"]
    assert not run.folder.exists("failures.csv")
    again = drive(run, until="pick")
    assert again.exit_code == 0
    assert [t.block for t in again.tasks if (t.stage, t.tomogram) == ("ingest", "alpha")] == [8, -1]
    mine, whole = artifact_digest(run), artifact_digest(finished_run)
    both = [k for k in mine if k in whole]
    assert not differences({k: mine[k] for k in both}, {k: whole[k] for k in both})


def test_disk_with_space_again_is_no_failure(make_run: Callable[..., Run]) -> None:
    run = make_run()
    disk = FullDisk(lambda path: disk.refused < 2 and "/1/c/" in path)
    with disk.mounted():
        ended = drive(run, until="ingest")
    assert ended.exit_code == 0
    assert disk.refused == 2
    assert len([m for m in ended.messages if "paused" in m and "No space" in m]) == 2


def test_full_disk_for_the_ledger_is_a_clear_stop(make_run: Callable[..., Run]) -> None:
    run = make_run()
    disk = FullDisk(lambda path: "/marks/" in path or path.endswith("/sealed.json"))
    with disk.mounted(), pytest.raises(SurroundingsError, match="space"):
        drive(run, until="ingest")
    assert drive(run, until="ingest").exit_code == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_other_refusals_of_the_system_quarantine_nothing(make_run: Callable[..., Run], number: int) -> None:
    run = make_run()
    with (
        failing_block(IngestStage, lambda b: True, lambda: OSError(number, "refused")),
        pytest.raises(SurroundingsError),
    ):
        drive(run, until="ingest")
    assert not [s for s in unit_states(run.ledger) if s.quarantined]


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], MortalExecutor]:
    """Replace the executor by one whose workers die under the named tasks."""

    def use(*deadly: str) -> MortalExecutor:
        executor = MortalExecutor(Deadly(frozenset(deadly)))
        monkeypatch.setattr(engines, "open_executor", lambda *_: executor)
        return executor

    return use


def test_deadly_block_is_quarantined_and_the_innocent_live(
    make_run: Callable[..., Run], mortal: Callable[..., MortalExecutor]
) -> None:
    run = make_run()
    executor = mortal("ingest/alpha/3")
    ended = drive(run, until="pick")
    assert ended.exit_code == 1
    (failure,) = failures_csv(run)
    assert (failure["stage"], failure["tomogram"], failure["block"]) == ("ingest", "alpha", "3")
    assert "killed" in failure["reason"]
    deaths = [t for t in executor.lost if t.identifier.startswith("ingest/alpha/3#")]
    assert [t.alone for t in deaths] == [False, False, False, True, True]
    assert len(executor.lost) > len(deaths), "nobody was lost beside the killer: the test says nothing"
    assert ended.sealed["pick"] == 1  # beta
    (state,) = [s for s in unit_states(run.ledger) if (s.stage, s.unit) == ("ingest", "alpha")]
    assert (state.quarantined, state.done) == (1, 7)


def test_deadly_seal_fails_its_tomogram_alone(
    make_run: Callable[..., Run], mortal: Callable[..., MortalExecutor]
) -> None:
    mortal("pick/beta/seal")
    run = make_run()
    ended = drive(run, until="pick")
    assert ended.sealed["pick"] == 1
    assert [(f["stage"], f["tomogram"]) for f in ended.failures] == [("pick", "beta")]


def test_segment_refuses_one_block_and_instances_wait(copied_run: Run) -> None:
    settle(copied_run, "segment.overlap_voxels=2")
    with failing_block(SegmentStage, lambda b: b.index == 0, lambda: DataError("no")):
        ended = drive(copied_run)
    assert ended.stages == {"segment"}
    assert ended.exit_code == 1
    assert ended.sealed["instances"] == 0


def test_memory_that_a_plan_does_not_have_is_said_before_any_block(make_run: Callable[..., Run]) -> None:
    run = make_run("execution.memory_budget=10MB")
    ended = drive(run)
    assert ended.exit_code == 1
    assert not ended.tasks
    assert not run.folder.exists("tomograms")
    for failure, name in zip(ended.failures, ("alpha", "beta"), strict=True):
        assert f"of {name} needs" in failure["reason"]
        assert "execution.memory_budget" in failure["reason"]


def test_unfinished_unit_leaves_its_marks(make_run: Callable[..., Run]) -> None:
    run = make_run()
    with failing_block(IngestStage, lambda b: b.level == 1, lambda: DataError("no")):
        drive(run, until="ingest")
    (key,) = run.ledger.names("ingest/alpha")
    assert UnitLedger(run.ledger, "ingest", "alpha", key).state().done == 8


def test_one_bad_folder_fails_its_tomogram_alone(make_run: Callable[..., Run]) -> None:
    run = make_run()
    disk = FullDisk(lambda path: "alpha.ome.zarr/0/c/" in path)
    with disk.mounted():
        ended = drive(run, until="pick")
    assert [(f["stage"], f["tomogram"]) for f in ended.failures] == [("ingest", "alpha")]
    assert run.picks.exists("beta.parquet")
    assert drive(run, until="pick").failures == []


def test_a_name_that_no_tomogram_has_is_refused(make_run: Callable[..., Run]) -> None:
    run = make_run("run.fit_tomograms=['alhpa']")
    with pytest.raises(ConfigurationError, match="did you mean 'alpha'"):
        drive(run)


def test_a_selection_that_cannot_be_used_is_said_and_exits_2(copied_run: Run) -> None:
    copied_run.clusters.folder.write_bytes("selection.toml", b"[classes.particle]\nclusters = [999]\n")
    ended = drive(copied_run)
    assert ended.result.exit_code == 2
    assert "999" in ended.result.problem
