"""What enters a unit's key and its grant: selection, latent space, voxel sizes; and what must agree."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
from cryoscale.data.clusters import ClusterFolder
from cryoscale.data.ledger import ALL, UnitLedger, recorded_failures
from cryoscale.data.run import Run
from cryoscale.data.weights import identity_of
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.pipeline.driver import REFITS, Options, _accept, _generations
from cryoscale.pipeline.order import steps_for
from cryoscale.pipeline.survey import survey_run
from cryoscale.pipeline.units import UnitGraph
from cryoscale.runtime.events import EventBus
from cryoscale.stages.pick import PickStage
from cryoscale.testing.phantoms import blobs
from tests.pipeline.driving import drive, settle


def source(folder: Path, name: str, size: float) -> Path:
    path = folder / f"{name}.mrc"
    write_mrc(path, blobs((32, 32, 32), seed=len(name), count=12)[0], size)
    return path


def graph_of(run: Run, **generations: Any) -> UnitGraph:
    """Return a graph whose units stand as the ledger says."""
    graph = survey_run(run).graph
    graph.generations = generations
    return graph


def key(config: RunConfig, run: Run, step: str, tomogram: str = "alpha") -> str:
    graph = UnitGraph(run, config, steps_for(config), {})
    for unit in graph.units.values():
        unit.state, unit.identity = "sealed", "x"
    return graph.key_of(graph.units[step, tomogram])


# -- voxel sizes --------------------------------------------------------------------------------------------


def test_tomograms_of_another_voxel_size_are_not_merged(make_run: Callable[..., Run], tmp_path: Path) -> None:
    sources = [source(tmp_path, name, size) for name, size in (("a", 10.0), ("bb", 5.0), ("ccc", 10.3))]
    run = make_run(sources=sources)
    ended = drive(run, until="pick")
    (failure,) = ended.failures
    assert (failure["stage"], failure["tomogram"]) == ("pick", "bb")
    for word in ("5 Å", "10 Å", "'a'", "working_voxel_size_angstrom = 10"):
        assert word in failure["reason"]
    assert {t.tomogram for t in ended.tasks if t.stage == "pick"} == {"a", "ccc"}
    settle(run, "run.working_voxel_size_angstrom=10")
    assert not drive(run, until="pick").failures


def test_without_a_common_level_the_odd_one_belongs_elsewhere(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run(sources=[source(tmp_path, "a", 10.0), source(tmp_path, "bb", 7.0)])
    (failure,) = drive(run, until="pick").failures
    assert failure["reason"].endswith("Put it into a run of its own.")


def test_what_stands_counts_more_than_a_name(make_run: Callable[..., Run], tmp_path: Path) -> None:
    old = [source(tmp_path, "mm", 10.0), source(tmp_path, "nnn", 10.0)]
    run = make_run(sources=old)
    assert not drive(run, until="pick").failures
    late = source(tmp_path, "a", 5.0)
    inputs = (*run.config.inputs, SourceConfig(name="a", path=str(late)))
    run.save_config(run.config.model_copy(update={"inputs": inputs}))
    assert [failure["tomogram"] for failure in drive(run, until="pick").failures] == ["a"]


def test_one_ingested_anew_must_agree_with_those_that_stand(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run(sources=[source(tmp_path, "a", 10.0), source(tmp_path, "bb", 10.0)])
    assert not drive(run, until="pick").failures
    first, second = run.config.inputs
    first = first.model_copy(update={"voxel_size_angstrom": 5.0})
    run.save_config(run.config.model_copy(update={"inputs": (first, second)}))
    ended = drive(run, until="pick")
    assert ended.stages == {"ingest"}
    assert [failure["tomogram"] for failure in ended.failures] == ["a"]


def test_the_reference_does_not_depend_on_what_is_done_first(make_run: Callable[..., Run]) -> None:
    run = make_run()
    graph = UnitGraph(run, run.config, steps_for(run.config), {})
    for name in ("identify", "ingest"):
        graph.units[name, "beta"].state = "sealed"
    graph.units["ingest", "beta"].value = {"voxel_size_angstrom": 5.0}
    late = graph.units["pick", "beta"]
    assert graph.ready(late) == "no"
    assert graph.access_for(late).reference is None
    first = graph.units["ingest", "alpha"]
    first.state, first.value = "sealed", {"voxel_size_angstrom": 10.0}
    assert late in graph.dependents(first)
    assert graph.ready(late) == "yes"
    assert graph.access_for(late).reference == ("alpha", 10.0)


def test_the_reference_is_the_next_by_name_when_the_first_cannot_be_ingested(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    graph = UnitGraph(run, run.config, steps_for(run.config), {})
    beta = graph.units["ingest", "beta"]
    beta.state, beta.value = "sealed", {"voxel_size_angstrom": 5.0}
    graph.units["ingest", "alpha"].state = "failed"
    assert graph.units["pick", "beta"] in graph.dependents(graph.units["ingest", "alpha"])
    assert graph.access_for(graph.units["pick", "beta"]).reference == ("beta", 5.0)


def test_voxel_size_of_an_input_is_in_the_key_of_its_ingest_alone(make_run: Callable[..., Run]) -> None:
    run = make_run()
    config = run.config
    alpha, beta = config.inputs
    changed = config.model_copy(
        update={"inputs": (alpha.model_copy(update={"voxel_size_angstrom": 7.0}), beta)}
    )
    assert key(config, run, "ingest") != key(changed, run, "ingest")
    assert key(config, run, "ingest", "beta") == key(changed, run, "ingest", "beta")
    assert key(config, run, "identify") == key(changed, run, "identify")


def test_voxel_size_of_an_input_counts_before_header_and_run(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run("ingest.voxel_size_angstrom=6", sources=[source(tmp_path, "a", 10.0)])
    drive(run, until="ingest")
    assert survey_run(run).graph.units["ingest", "a"].value["voxel_size_angstrom"] == 6.0
    given = run.config.inputs[0].model_copy(update={"voxel_size_angstrom": 7.0})
    run.save_config(run.config.model_copy(update={"inputs": (given,)}))
    drive(run, until="ingest")
    assert survey_run(run).graph.units["ingest", "a"].value["voxel_size_angstrom"] == 7.0


# -- selection ----------------------------------------------------------------------------------------------


def test_a_selection_is_read_once(copied_run: Run) -> None:
    graph = graph_of(copied_run)
    unit = graph.units["train_segmenter", ALL]
    chosen = graph.selection()
    assert chosen is not None
    before = graph.key_of(unit)
    for text in (b"[classes.all]\nclusters = [0]\n", b"[classes.all"):
        copied_run.clusters.folder.write_bytes("selection.toml", text)
        assert graph.selection() == chosen
        assert graph.key_of(unit) == before
        for name in (("train_segmenter", ALL), ("segment", "alpha")):
            assert graph.access_for(graph.units[name]).selection() == chosen


def test_stages_compute_on_the_selection_that_is_in_their_key(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person edits while the segmenter is being trained: the run ends with the selection it began with."""
    settle(copied_run, "segmenter.seed=3")
    real = ClusterFolder.chosen
    reads = []

    def read_and_edit(folder: ClusterFolder) -> Any:
        reads.append(real(folder))
        folder.folder.write_bytes("selection.toml", b"[classes.everything]\nclusters = [0, 1]\n")
        return reads[-1]

    graph = graph_of(copied_run)
    before = graph.selection()
    assert before is not None
    copied_run.clusters.folder.write_toml("selection.toml", before.to_toml())
    monkeypatch.setattr(UnitGraph, "frozen", lambda *_: False)
    monkeypatch.setattr(ClusterFolder, "chosen", read_and_edit)
    ended = drive(copied_run, until="train_segmenter")
    assert ended.stages == {"train_segmenter"}
    assert copied_run.model("segmenter").card["classes"]["names"] == list(before.class_names)
    assert len(reads) == 1


def test_a_selection_that_cannot_be_used_is_nobody_elses_matter(copied_run: Run) -> None:
    copied_run.clusters.folder.write_bytes("selection.toml", b"[classes.all]\nclusters = [99]\n")
    graph = graph_of(copied_run)
    for unit in graph.units.values():
        graph.frozen(unit)
        graph.ready(unit)
        if not unit.step.chosen:
            graph.key_of(unit)
            graph.access_for(unit)
    with pytest.raises(ConfigurationError, match="names cluster 99"):
        graph.selection()


def test_what_is_edited_before_the_gate_counts(copied_run: Run) -> None:
    settle(copied_run, "segmenter.seed=3")
    graph = graph_of(copied_run)
    graph._selection = None  # nobody passed the gate yet
    assert not graph.frozen(graph.units["train_segmenter", ALL])
    copied_run.clusters.folder.write_bytes("selection.toml", b"[classes.all]\nclusters = [0]\n")
    chosen = graph.selection()
    assert chosen is not None
    assert chosen.class_names == ("all",)


def test_no_selection_is_said_by_the_grant(copied_run: Run) -> None:
    copied_run.clusters.folder.delete("selection.toml")
    graph = graph_of(copied_run)
    with pytest.raises(StateError, match="no clusters are selected"):
        graph.access_for(graph.units["train_segmenter", ALL]).selection()


def test_a_taken_suggestion_keeps_the_work_for_another_clustering(copied_run: Run) -> None:
    folder = copied_run.clusters.folder
    clustering = copied_run.clusters.card["centers_sha256"]
    folder.write_toml(
        "suggestion.toml", {"clustering": clustering, "classes": {"globular": {"clusters": [1]}}}
    )
    folder.write_toml("selection.toml", {"clustering": "old", "classes": {"mine": {"clusters": [77]}}})
    _accept(copied_run, EventBus())
    assert graph_of(copied_run).selection() is not None
    assert b"mine" in folder.read_bytes("selection-earlier.toml")


def test_the_level_of_decoded_masks_is_in_the_key_where_it_is_used(make_run: Callable[..., Run]) -> None:
    run = make_run()
    for mode, depends in (("decoded", True), ("dense", False)):
        config = apply_settings(run.config, [f"segment.mode={mode}"])
        other = apply_settings(config, ["segmenter.level=-0.7"])
        assert (key(config, run, "segment") != key(other, run, "segment")) == depends, mode


# -- fits that are renewed ----------------------------------------------------------------------------------


def test_ids_are_kept_within_one_latent_space_only(copied_run: Run) -> None:
    space = identity_of(copied_run.model("encoder").card)
    assert copied_run.clusters.card["encoder"] == space
    entry = {"generation": 1, "earlier": "e" * 64}
    graph = graph_of(copied_run, cluster=entry | {"space": space})
    unit = graph.units["cluster", ALL]
    kept = graph.key_of(unit)
    assert graph.access_for(unit).earlier == "e" * 64
    for other in ({"space": "another"}, {"space": ""}, {}):
        graph.generations = {"cluster": entry | other}
        assert graph.access_for(unit).earlier == ""
        assert graph.key_of(unit) != kept
    graph.generations = {"cluster": entry | {"space": space, "replaces": ["k"], "together": ["cluster"]}}
    assert graph.key_of(unit) == kept


def test_a_new_encoder_ends_the_line_of_clusterings(copied_run: Run) -> None:
    old = copied_run.clusters
    chosen = old.selection(5)
    assert chosen is not None
    old.folder.write_toml("selection.toml", chosen.to_toml() | {"clustering": old.card["centers_sha256"]})
    assert not drive(copied_run, refit=("cluster",), until="cluster").failures
    assert copied_run.clusters.card["lineage"]
    settle(copied_run, "encoder.l1=0.01")
    assert drive(copied_run).waiting, "a selection of another latent space was taken for this one"
    assert copied_run.clusters.card["lineage"] == []


def ask(run: Run, *fits: str) -> dict[str, Any]:
    return _generations(run, run.config, Options(refit=fits))


def test_refit_given_again_after_a_kill_goes_on(copied_run: Run) -> None:
    digest = copied_run.clusters.card["centers_sha256"]
    first = ask(copied_run, "cluster")
    assert (first["cluster"]["generation"], first["cluster"]["earlier"]) == (1, digest)
    copied_run.clusters.folder.delete("clusters.toml")  # killed while the new clustering was written
    assert ask(copied_run, "cluster") == first
    (old,) = copied_run.ledger.names(f"cluster/{ALL}")
    copied_run.ledger.delete(f"cluster/{ALL}/{old}")  # killed after the new key was begun
    assert ask(copied_run, "cluster") == first
    UnitLedger(copied_run.ledger, "cluster", ALL, "new").seal({"hash": "h"})
    assert ask(copied_run, "cluster")["cluster"]["generation"] == 2


def test_a_wider_request_keeps_what_is_pending(copied_run: Run) -> None:
    first = dict(ask(copied_run, "cluster")["cluster"])
    copied_run.clusters.folder.delete("clusters.toml")
    both = ask(copied_run, "cluster", "train_encoder")
    assert {name: both["cluster"][name] for name in ("generation", "earlier", "space")} == {
        name: first[name] for name in ("generation", "earlier", "space")
    }
    assert both["train_encoder"]["generation"] == 1


def test_fits_renewed_together_are_one_request(copied_run: Run) -> None:
    both = ask(copied_run, "train_encoder", "cluster")
    UnitLedger(copied_run.ledger, "train_encoder", ALL, "new").seal({"hash": "h"})
    assert ask(copied_run, "cluster", "train_encoder") == both, "the encoder would be trained twice"
    UnitLedger(copied_run.ledger, "cluster", ALL, "new").seal({"hash": "h"})
    again = ask(copied_run, "train_encoder", "cluster")
    assert [again[name]["generation"] for name in ("train_encoder", "cluster")] == [2, 2]


def test_damaged_record_of_refits_is_named(copied_run: Run) -> None:
    copied_run.folder.child("ledger").write_bytes(REFITS, b"{")
    with pytest.raises(StateError, match=r"refits\.json is damaged"):
        drive(copied_run)


# -- grants -------------------------------------------------------------------------------------------------


def test_a_task_does_not_carry_all_inputs(make_run: Callable[..., Run]) -> None:
    run = make_run()
    alpha = run.config.inputs[0]
    many = tuple(alpha.model_copy(update={"name": f"t{n:05d}"}) for n in range(2000))
    config = run.config.model_copy(update={"inputs": many})
    graph = UnitGraph(run, config, steps_for(config), {})
    access = graph.access_for(graph.units["ingest", "t00007"])
    assert access.source()["name"] == "t00007"
    assert len(pickle.dumps(access)) < 10_000
    assert graph.access_for(graph.units["train_encoder", ALL]).config.inputs == ()


def test_failures_of_stages_that_a_driver_does_not_look_at(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StateError("refused by the test")

    run = make_run()
    monkeypatch.setattr(PickStage, "seal", refuse)
    expected = drive(run, until="pick").failures
    assert len(expected) == 2
    assert recorded_failures(run.ledger, ["pick", "encode"], {"alpha", "beta"}) == expected
    assert recorded_failures(run.ledger, ["ingest"], {"alpha", "beta"}) == []
    assert [row["tomogram"] for row in recorded_failures(run.ledger, ["pick"], {"beta"})] == ["beta"]
