"""A whole run with truth: by tomogram and pooled, classes by name, contacts, structures, bad input."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cryoscale.data.clusters import SELECTION
from cryoscale.data.pyramid import Pyramid
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table, write_table
from cryoscale.data.truth import read_truth, write_truth
from cryoscale.errors import ConfigurationError, DataError, FormatError, StateError
from cryoscale.evaluate.evidence import ALL, Settings
from cryoscale.evaluate.known import known_from_positions, known_of_run
from cryoscale.evaluate.matching import match_points
from cryoscale.evaluate.run import evaluate_run, evaluate_tomogram
from cryoscale.evaluate.tables import unmatched
from cryoscale.geometry import Box, Zyx
from tests.evaluate.scored_run import NAMES, SD, SHAPE, VOXEL, K, whole_run

CLASSES = NAMES[1:4]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return whole_run(tmp_path_factory.mktemp("scored") / "run")


@pytest.fixture(scope="module")
def report(run) -> dict:
    return evaluate_run(run, None, ["one", "two"], Settings(structures=True, reach_angstrom=70.0))


def test_the_report_is_plain_json(report) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == ["run", "tomograms", "pooled", "failed"]
    assert [scores["tomogram"] for scores in report["tomograms"]] == ["one", "two"]
    assert report["pooled"]["pooled_over"] == ["one", "two"]


def test_picks_are_those_of_plain_matching(run, report) -> None:
    for scores in report["tomograms"]:
        truth = read_truth(run.truth, scores["tomogram"])
        picks = read_picks(run.picks, scores["tomogram"])
        assert scores["radius_angstrom"] == 3 * VOXEL
        match = match_points(picks.positions_N3, truth.positions_N3, 3 * VOXEL)
        assert scores["picks"]["f1"] == pytest.approx(match.f1)
        assert scores["picks"]["recall"] > 0.85
        assert scores["picks"]["random_recall"] < 0.15
        assert list(scores["picks"]["by_class"]) == list(CLASSES)
        for name, row in scores["picks"]["by_class"].items():
            one = match_points(picks.positions_N3, truth.positions_N3[truth.of_class(name)], 3 * VOXEL)
            assert (row["recall"], row["precision"]) == pytest.approx((one.recall, one.precision))
    counts = [scores["picks"]["matched"] for scores in report["tomograms"]]
    assert report["pooled"]["picks"]["matched"] == sum(counts)
    assert report["pooled"]["truth"] == sum(scores["truth"] for scores in report["tomograms"])


def test_clusters_beat_their_nulls(report) -> None:
    for scores in [*report["tomograms"], report["pooled"]]:
        clusters = scores["clusters"]
        assert clusters["n_clusters"] == K
        for which in ("all_picks", "matched_picks"):
            for measure in clusters[which].values():
                assert measure["value"] > measure["random"] + 0.1
        for row in clusters["by_class"].values():
            assert row["split_half_f1"] > row["split_half_random_f1"] + 0.2
            assert row["curve"]["f1"][-1] > row["curve"]["random"][-1] + 0.2
        counts = np.array(clusters["table"]["counts"])
        assert counts.sum() == scores["picks"]["found"]
        assert clusters["table"]["classes"] == ["no particle", *CLASSES]
        assert counts[:, 1:].sum() == scores["picks"]["matched"]
        assert "split_half_f1" not in clusters  # of several classes there is no one number


def test_the_planted_contact_is_found_and_nothing_else(report) -> None:
    membrane = report["pooled"]["clusters"]["membrane"]
    assert membrane["by_class"]["$barrel"]["verdict"] == "enriched"
    assert membrane["by_class"]["small"]["verdict"] == "depleted"
    assert set(membrane["enriched"]) == {str(k) for k in range(8, 12)}
    assert membrane["by_cluster"]["9"]["p_shift"] < 0.05


def test_labels_and_objects_by_name(report) -> None:
    labels = report["pooled"]["segmentation"]
    assert labels["unmatched"] == {"found": ["unheard of"], "truth": ["$barrel", "small"]}
    assert labels["by_class"]["membrane"]["dice"] > 0.9 > 0.1 > labels["by_class"]["membrane"]["random_dice"]
    assert labels["by_class"]["$barrel"]["found"] == 0
    instances = report["pooled"]["instances"]
    assert instances["ribo<some>"]["against"] == "ribo<some>"
    assert instances["ribo<some>"]["f1"] == 1
    assert instances["unheard of"]["against"] == ALL
    assert instances["unheard of"]["precision"] == 1
    assert instances["small"]["recall"] == 0 == instances["small"]["found"]
    assert unmatched(instances) == {"found": ["unheard of"], "truth": ["$barrel", "small"]}


def test_averages_of_found_particles_reach_the_truth(run, report) -> None:
    for name in CLASSES:
        row = report["pooled"]["structures"][name]
        assert row["particles"] > 30
        assert row["fsc_0.5_angstrom"] == row["half_fsc_0.143_angstrom"] == 2 * VOXEL
    few = evaluate_run(run, None, ["one"], Settings(structures=True, most_particles=12))
    row = few["pooled"]["structures"]["ribo<some>"]
    assert row["particles"] == 12
    correlation = report["pooled"]["structures"]["ribo<some>"]["fsc"]["correlation"]
    assert np.mean(row["fsc"]["correlation"]) < np.mean(correlation)


def test_noise_has_no_structure(copied) -> None:
    noise = np.random.default_rng(0).normal(0, SD, SHAPE).astype(np.float32)
    Pyramid(copied.tomogram("one"), writable=True).write(0, Box.whole(SHAPE), noise)
    structures = evaluate_run(copied, None, ["one"], Settings(structures=True))["pooled"]["structures"]
    for name in CLASSES:
        row = structures[name]
        for key in ("fsc", "half_fsc"):
            assert abs(np.mean(row[key]["correlation"])) < 0.25
            assert row[key]["correlation"][-1] < 0.3
        assert row["fsc_0.5_angstrom"] is None or row["fsc_0.5_angstrom"] > 4 * VOXEL


def test_without_scenes_only_halves_are_compared(copied) -> None:
    copied.scene("one").delete()
    row = evaluate_run(copied, None, ["one"], Settings(structures=True))["pooled"]["structures"]["small"]
    assert "fsc" not in row
    assert row["half_fsc_0.143_angstrom"] == 2 * VOXEL
    few = evaluate_run(copied, None, ["one"], Settings(0.5, structures=True))["pooled"]["structures"]["small"]
    assert few["particles"] < 8
    assert "half_fsc" not in few


def test_shuffled_classes_score_at_chance(run) -> None:
    def shuffled(name: str, tomogram):
        known = known_of_run(run, name, Zyx.of(SHAPE), VOXEL)
        classes = np.random.default_rng(1).permutation(known.class_M)
        return dataclasses.replace(known, class_M=classes)

    clusters = evaluate_run(run, shuffled, ["one", "two"])["pooled"]["clusters"]
    assert clusters["matched_picks"]["adjusted_rand"]["value"] == pytest.approx(0, abs=0.02)
    purity = clusters["matched_picks"]["purity"]
    assert purity["value"] == pytest.approx(purity["random"], abs=5 * purity["random_sd"])
    for row in clusters["by_class"].values():
        assert row["best_fifth_of_clusters_f1"] == pytest.approx(row["best_fifth_random_f1"], abs=0.12)


def test_positions_of_one_class_keep_the_keys_of_old(run) -> None:
    truth = read_truth(run.truth, "one")
    scores = evaluate_tomogram(run, "one", truth.positions_N3[truth.class_N == 1], 30.0)
    assert {"tomogram", "radius_angstrom", "truth", "picks", "clusters", "instances"} <= set(scores)
    wanted = {"found", "precision", "recall", "f1", "mean_error_angstrom", "recall_among_best"}
    assert wanted | {"best_threshold_f1", "average_precision"} <= set(scores["picks"])
    clusters = scores["clusters"]
    wanted = {"split_half_f1", "split_half_threshold_f1", "split_half_random_f1"}
    assert wanted | {"best_fifth_of_clusters_f1", "best_fifth_random_f1"} <= set(clusters)
    assert clusters["split_half_f1"] > clusters["split_half_threshold_f1"] + 0.2
    assert {row["against"] for row in scores["instances"].values()} == {ALL}


def test_selected_classes(copied, report) -> None:
    text = '[classes."ribo<some>"]\nclusters = [4, 5, 6, 7]\n[classes.other]\nclusters = [8, 9]\n'
    copied.clusters.folder.write_bytes(SELECTION, text.encode())
    selection = evaluate_run(copied, None, ["one", "two"])["pooled"]["selection"]
    assert selection["ribo<some>"]["f1"] > 0.8
    assert selection["other"]["against"] == ALL
    assert selection["small"]["found"] == 0


@pytest.fixture
def copied(run, tmp_path) -> Run:
    import shutil

    shutil.copytree(run.folder.url, tmp_path / "run")
    return Run.at(tmp_path / "run")


def test_a_tomogram_without_truth_does_not_stop_the_others(copied) -> None:
    copied.truth.delete("one.toml")
    report = evaluate_run(copied, None, ["one", "two"])
    assert list(report["failed"]) == ["one"]
    assert "nothing is known of 'one'" in report["failed"]["one"]
    assert [scores["tomogram"] for scores in report["tomograms"]] == ["two"]
    with pytest.raises(StateError, match="nothing is known"):
        evaluate_run(copied, None, ["one"])


def test_truth_of_another_tomogram(copied) -> None:
    truth = read_truth(copied.truth, "one")
    write_truth(copied.truth, "one", dataclasses.replace(truth, positions_N3=truth.positions_N3 * 2))
    with pytest.raises(FormatError, match="for another tomogram"):
        evaluate_run(copied, None, ["one"])
    bad = dataclasses.replace(truth, class_N=np.full(len(truth), 9, np.uint8))
    columns = read_table(copied.truth, "one.parquet") | {"class": bad.class_N}
    write_table(copied.truth, "one.parquet", columns)
    with pytest.raises(DataError):
        evaluate_run(copied, None, ["one"])


def test_tomograms_without_clusters_or_labels_are_pooled_for_the_rest(copied, report) -> None:
    copied.assignments.delete("one.parquet")
    copied.tomogram("one").delete("labels/classes")
    copied.instances.delete("one.parquet")
    scores = evaluate_run(copied, None, ["one", "two"])
    one, two = scores["tomograms"]
    assert "clusters" not in one
    assert "segmentation" not in one
    assert "instances" not in one
    assert scores["pooled"]["picks"]["matched"] == report["pooled"]["picks"]["matched"]
    assert scores["pooled"]["clusters"]["all_picks"] == two["clusters"]["all_picks"]
    assert scores["pooled"]["segmentation"] == two["segmentation"]


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan"), float("inf")])
def test_bad_radius_and_reach(value: float) -> None:
    with pytest.raises(ConfigurationError, match="radius must be above 0"):
        Settings(value)
    with pytest.raises(ConfigurationError, match="reach must be above 0"):
        Settings(reach_angstrom=value)


def test_classes_of_positions() -> None:
    known = known_from_positions(np.zeros((3, 3)), np.array(["b", "a", "b"]))
    assert known.class_names == ("background", "a", "b")
    assert known.class_M.tolist() == [2, 1, 2]
    assert known_from_positions(np.zeros((2, 3))).particle_classes == ("particle",)
    with pytest.raises(ConfigurationError, match="not among"):
        known_from_positions(np.zeros((1, 3)), np.array(["a"]), class_names=("b",))
    with pytest.raises(ConfigurationError, match="expected 1 classes"):
        known_from_positions(np.zeros((1, 3)), np.array(["a", "b"]))
