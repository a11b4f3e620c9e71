"""Nothing is done twice, changed parameters redo exactly what depends on them, and fits are frozen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from cryoscale.config.run import SourceConfig
from cryoscale.data.ledger import ALL, UnitLedger, unit_states
from cryoscale.data.run import Run
from cryoscale.errors import DataError
from cryoscale.stages.pick import PickStage
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.phantoms import write_phantom
from tests.pipeline.driving import drive, settle

EVERYTHING = (
    "identify", "ingest", "pick", "train_encoder", "encode", "cluster", "assign", "review",
    "train_segmenter", "segment", "instances",
)  # fmt: skip


def from_on(stage: str) -> set[str]:
    return set(EVERYTHING[EVERYTHING.index(stage) :])


def add_tomogram(run: Run, path: Path) -> None:
    config = run.config
    inputs = (*config.inputs, SourceConfig(name=path.stem, path=str(path)))
    run.save_config(config.model_copy(update={"inputs": inputs}))


def test_all_stages_left_what_they_should(finished_run: Run) -> None:
    states = unit_states(finished_run.ledger)
    assert {s.stage for s in states} == set(EVERYTHING)
    assert {s.state for s in states} == {"done"}
    instances = {s.unit: s.value["instances"] for s in states if s.stage == "instances"}
    assert min(instances.values()) > 10, "the tiny run finds nothing: tests on it would say nothing"
    assert not finished_run.folder.child("parts").size_bytes()


def test_second_run_does_nothing(copied_run: Run) -> None:
    before = artifact_digest(copied_run)
    again = drive(copied_run)
    assert not again.tasks
    assert again.exit_code == 0
    assert not differences(before, artifact_digest(copied_run))


def test_one_mark_gone_runs_one_block(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, finished_run: Run
) -> None:
    run = make_run()
    with monkeypatch.context() as broken:
        broken.setattr(PickStage, "seal", _refuse)
        assert drive(run, until="pick").exit_code == 1
    broken_unit = _only_key(run, "pick", "alpha")
    assert drive(run, until="pick").ran == {"pick": 2}  # two seals and no block: the marks stood
    # take the mark of a block away in a unit whose seal never ran
    run.picks.delete()
    run.ledger.delete("pick")
    with monkeypatch.context() as broken:
        broken.setattr(PickStage, "seal", _refuse)
        drive(run, until="pick")
    UnitLedger(run.ledger, "pick", "alpha", broken_unit).forget([0])
    again = drive(run, until="pick")
    assert [(t.tomogram, t.block) for t in again.tasks] == [("alpha", 0), ("alpha", -1), ("beta", -1)]
    ours = {k: v for k, v in artifact_digest(run).items() if k.startswith("picks/")}
    theirs = {k: v for k, v in artifact_digest(finished_run).items() if k.startswith("picks/")}
    assert ours == theirs


class Killed(BaseException):
    """The driver dies here."""


@pytest.mark.parametrize(("stage", "artifact"), [("pick", "picks"), ("instances", "instances")])
def test_seal_that_the_ledger_did_not_hear_of_runs_again(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch, stage: str, artifact: str
) -> None:
    """What the blocks left for the seal must still be there: else the second seal finds nothing."""
    before = artifact_digest(copied_run)
    copied_run.ledger.delete(stage)
    plain = UnitLedger.seal

    def die(ledger: UnitLedger, *rest: object, **words: object) -> None:
        if ledger.stage == stage:
            raise Killed
        plain(ledger, *rest, **words)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(UnitLedger, "seal", die)
        with pytest.raises(Killed):
            drive(copied_run)
    again = drive(copied_run)
    assert again.exit_code == 0
    assert [t.block for t in again.tasks if (t.stage, t.tomogram) == (stage, "alpha")] == [-1]
    assert not differences(before, artifact_digest(copied_run))
    assert any(path.startswith(artifact) for path in before)


def test_one_mark_of_many_gone_runs_that_block_alone(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    with monkeypatch.context() as broken:
        broken.setattr("cryoscale.stages.ingest.publish_tomogram", _refuse)
        drive(run, until="ingest")
    ledger = UnitLedger(run.ledger, "ingest", "beta", _only_key(run, "ingest", "beta"))
    ledger.forget([5])
    again = drive(run, until="ingest")
    assert [t.block for t in again.tasks if t.tomogram == "beta"] == [5, -1]


def _refuse(*_: object) -> None:
    raise DataError("refused by the test")


def _only_key(run: Run, stage: str, unit: str) -> str:
    (key,) = run.ledger.names(f"{stage}/{unit}")
    return key


@pytest.mark.parametrize(
    ("setting", "redone"),
    [
        ("pick.threshold=4", from_on("pick")),
        ("encoder.l1=0.01", from_on("train_encoder")),
        ("cluster.seed=8", from_on("cluster")),
        ("review.members_shown=2", {"review"}),
        ("segmenter.seed=3", from_on("train_segmenter")),
        ("segment.overlap_voxels=2", {"segment", "instances"}),
        ("instances.min_voxels=9", {"instances"}),
        ("execution.block_voxels=64", set()),
        ("execution.attempts=7", set()),
        ("encoder.threads=2", set()),
        ("segmenter.threads=2", set()),
    ],
)
def test_change_redoes_what_depends_on_it(copied_run: Run, setting: str, redone: set[str]) -> None:
    settle(copied_run, setting)
    again = drive(copied_run)
    assert again.stages == redone
    assert not again.failures
    assert not drive(copied_run).tasks


def test_working_back_and_forth_gives_the_first_bytes(copied_run: Run) -> None:
    first = artifact_digest(copied_run)
    threshold = copied_run.config.pick.threshold
    settle(copied_run, "pick.threshold=5")
    drive(copied_run)
    assert differences(first, artifact_digest(copied_run))
    settle(copied_run, f"pick.threshold={threshold}")
    back = drive(copied_run)
    assert back.stages == from_on("pick")
    assert not differences(first, artifact_digest(copied_run))


def test_back_from_a_change_that_stopped_half_way(copied_run: Run) -> None:
    """The tomogram is ingested anew, with other shards, and back; the label volumes in its group stay."""
    first = artifact_digest(copied_run)
    settle(copied_run, "ingest.shard=64")
    drive(copied_run, until="ingest")
    settle(copied_run, "ingest.shard=32")
    back = drive(copied_run)
    assert back.stages == {"ingest"}
    assert not differences(first, artifact_digest(copied_run))


def test_tomogram_added_later_meets_frozen_fits(copied_run: Run, tmp_path: Path) -> None:
    before = artifact_digest(copied_run)
    add_tomogram(copied_run, write_phantom(tmp_path / "gamma.mrc", (40, 48, 56), seed=9))
    added = drive(copied_run)
    assert not added.failures
    assert added.stages == set(EVERYTHING) - {"train_encoder", "cluster", "train_segmenter"}
    assert {t.tomogram for t in added.tasks} == {"gamma", ""}
    after = artifact_digest(copied_run)
    frozen = {k: v for k, v in before.items() if "review" not in k}
    assert not differences(frozen, {k: v for k, v in after.items() if k in frozen})
    assert [k for k in after if k.startswith("instances/gamma")]


def test_refit_keeps_ids_and_the_selection(copied_run: Run, tmp_path: Path) -> None:
    old = copied_run.clusters
    digest, centres = old.card["centers_sha256"], old.load().centers_KF
    selection = old.selection(5)
    assert selection is not None
    tied = selection.to_toml() | {"clustering": digest}
    old.folder.write_toml("selection.toml", tied)
    add_tomogram(copied_run, write_phantom(tmp_path / "gamma.mrc", (40, 48, 56), seed=9))
    again = drive(copied_run, refit=("cluster",))
    assert "cluster" in again.stages
    assert "train_encoder" not in again.stages
    assert not again.waiting, "the selection of the earlier clustering was not accepted"
    assert digest in copied_run.clusters.card["lineage"]
    new = copied_run.clusters.load().centers_KF
    distance = np.sqrt(((new[:, None] - centres[None]) ** 2).sum(axis=-1))
    best = linear_sum_assignment(distance)
    assert np.trace(distance) == pytest.approx(distance[best].sum(), rel=1e-6)
    assert not drive(copied_run).tasks  # a re-fit asked for once is done once


def test_selection_for_another_clustering_waits(copied_run: Run) -> None:
    selection = copied_run.clusters.folder.read_toml("selection.toml")
    card = copied_run.clusters.card["centers_sha256"]
    copied_run.clusters.folder.write_toml("selection.toml", selection | {"clustering": card})
    settle(copied_run, "cluster.seed=7", "cluster.n_clusters=4")
    again = drive(copied_run)
    assert again.waiting
    assert again.exit_code == 0
    assert not {"train_segmenter", "segment"} & again.stages


def test_selection_edit_redoes_from_the_segmenter(copied_run: Run) -> None:
    text = b"[classes.particle]\nclusters = [1, 2, 3]\n"
    copied_run.clusters.folder.write_bytes("selection.toml", text)
    assert drive(copied_run).stages == from_on("train_segmenter")


def test_colours_of_the_selection_redo_nothing(copied_run: Run) -> None:
    selection = copied_run.clusters.selection(5)
    assert selection is not None
    plain = selection.to_toml()
    plain["classes"]["particle"]["color"] = "#112233"
    copied_run.clusters.folder.write_toml("selection.toml", plain)
    assert not drive(copied_run).tasks


def test_touched_source_is_hashed_again_and_no_more(make_run: Callable[..., Run], tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "gamma.mrc", (40, 48, 56), seed=9)
    run = make_run(sources=[source])
    drive(run, until="pick")
    os.utime(source, ns=(1, 1))
    assert drive(run, until="pick").ran == {"identify": 1}


def test_changed_source_redoes_its_tomogram_with_the_frozen_encoder(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    source = write_phantom(tmp_path / "gamma.mrc", (40, 48, 56), seed=9)
    run = make_run(sources=[source])
    drive(run, until="encode")
    write_phantom(source, (40, 48, 56), seed=10)
    assert drive(run, until="encode").stages == {"identify", "ingest", "pick", "encode"}


def test_source_gone_after_ingest_costs_nothing(make_run: Callable[..., Run], tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "gamma.mrc", (40, 48, 56), seed=9)
    run = make_run(sources=[source])
    drive(run, until="ingest")
    source.unlink()
    again = drive(run, until="pick")
    assert again.stages == {"pick"}
    assert again.exit_code == 0


def test_another_mask_redoes_the_picks(make_run: Callable[..., Run], tmp_path: Path) -> None:
    import numpy as np

    from cryoscale.formats.mrc_write import write_mrc

    source = write_phantom(tmp_path / "gamma.mrc", (40, 48, 56), seed=9)
    mask = np.ones((40, 48, 56), np.int8)
    write_mrc(tmp_path / "mask-gamma.mrc", mask, 10.0)
    run = make_run(f"pick.mask={tmp_path}/mask-{{tomogram}}.mrc", sources=[source])
    drive(run, until="pick")
    assert not drive(run, until="pick").tasks
    mask[:, :24] = 0
    write_mrc(tmp_path / "mask-gamma.mrc", mask, 10.0)
    os.utime(tmp_path / "mask-gamma.mrc", ns=(1, 1))
    assert drive(run, until="pick").stages == {"pick"}


def test_given_weights_enter_by_their_hash(copied_run: Run, make_run: Callable[..., Run]) -> None:
    """Another training under the same path is another input."""
    model = copied_run.model("encoder")
    run = make_run(f"encoder.weights={model.folder.url}", name="second")
    first = drive(run, until="encode")
    assert first.exit_code == 0, first.failures
    assert run.model("encoder").card["weights_sha256"] == model.card["weights_sha256"]
    assert not drive(run, until="encode").tasks
    state = {name: tensor + 1 for name, tensor in model.load().items()}
    model.save(state, model.card, model.history)
    assert drive(run, until="encode").stages == {"train_encoder", "encode"}
    model.folder.delete()  # imported is imported: the other run may go
    assert not drive(run, until="encode").tasks


def test_unit_of_the_whole_data_set_has_one_key(finished_run: Run) -> None:
    for stage in ("train_encoder", "cluster", "review", "train_segmenter"):
        assert finished_run.ledger.names(stage) == [ALL]


def test_other_invariants_mean_other_encodings_of_the_same_weights(copied_run: Run) -> None:
    before = copied_run.model("encoder").card
    settle(copied_run, "encoder.invariant_weight=0")
    again = drive(copied_run)
    after = copied_run.model("encoder").card
    assert before["weights_sha256"] == after["weights_sha256"]
    assert {"train_encoder", "encode", "cluster", "assign", "review"} <= again.stages
    assert copied_run.clusters.load().centers_KF.shape[1] == after["architecture"]["dimension"]
