"""A whole run with truth: by tomogram and pooled, classes by name, contacts, structures, bad input."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cryoscale.data.clusters import SELECTION
from cryoscale.data.ledger import UnitState
from cryoscale.data.pyramid import Pyramid, pyramid_levels
from cryoscale.data.rows import Picks, read_assignments, read_picks, write_assignments, write_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table, write_table
from cryoscale.data.truth import Truth, read_truth, write_truth
from cryoscale.errors import ConfigurationError, DataError, FormatError, StateError
from cryoscale.evaluate.evidence import ALL, Settings
from cryoscale.evaluate.known import known_from_positions, known_from_truth, known_of_run
from cryoscale.evaluate.matching import match_points
from cryoscale.evaluate.places import places_for_picks
from cryoscale.evaluate.run import evaluate_run, evaluate_tomogram
from cryoscale.evaluate.structure_scores import found_particles
from cryoscale.evaluate.tables import as_text, unmatched
from cryoscale.geometry import Box, Zyx
from tests.evaluate.scored_run import NAMES, SD, SHAPE, VOXEL, K, read_density, whole_run

CLASSES = NAMES[1:4]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return whole_run(tmp_path_factory.mktemp("scored") / "run")


@pytest.fixture(scope="module")
def report(run) -> dict:
    return evaluate_run(
        run, None, ["one", "two"], Settings(structures=True, reach_angstrom=70.0), read_density=read_density
    )


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
    assert membrane["by_class"]["$barrel at membranes"]["verdict"] == "enriched"
    assert membrane["by_class"]["small"]["verdict"] == "depleted"
    assert membrane["by_class"]["membrane"]["share_near"] == 1  # picks on it that are no particle
    assert set(membrane["enriched"]) == {str(k) for k in range(8, 12)}
    row = membrane["by_cluster"]["9"]
    assert max(row["q"], row["p_shift"], row["q_shift"]) < 0.05
    assert row["majority"] == "$barrel"
    planted = membrane["planted"]
    assert planted["found"] == planted["holding"] == ["8", "9", "10", "11"]
    assert planted["missed"] == planted["elsewhere"] == []


def test_labels_and_objects_by_name(report) -> None:
    labels = report["pooled"]["segmentation"]
    assert (labels["sample"], labels["samples"]) == ("tomogram", 2)
    assert "mean IoU by tomogram" in as_text(report["pooled"])
    assert "mean IoU by tomogram" not in as_text(report["tomograms"][0])  # it says what the mean IoU says
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
        assert row["fsc_0.5_angstrom"] < 3 * VOXEL
        assert row["half_fsc_0.143_angstrom"] < 2.5 * VOXEL
    few = evaluate_run(
        run, None, ["one"], Settings(structures=True, most_particles=12), read_density=read_density
    )
    row = few["pooled"]["structures"]["ribo<some>"]
    assert row["particles"] == 12
    correlation = report["pooled"]["structures"]["ribo<some>"]["fsc"]["correlation"]
    assert np.mean(row["fsc"]["correlation"]) < np.mean(correlation)


def resolution(row: dict, key: str = "fsc_0.5_angstrom") -> float:
    return row[key] or np.inf


def shuffled_truth(run: Run, what: str):
    def known_of(name: str, tomogram):
        known = known_of_run(run, name, Zyx.of(SHAPE), VOXEL)
        rng = np.random.default_rng(1)
        if what == "classes":
            return dataclasses.replace(known, class_M=rng.permutation(known.class_M))
        turns = known.truth.quaternion_N4.copy()
        for name in CLASSES:
            turns[known.of_class(name)] = rng.permutation(turns[known.of_class(name)])
        return dataclasses.replace(known, truth=dataclasses.replace(known.truth, quaternion_N4=turns))

    return known_of


def structures_of(run: Run, known_of) -> dict:
    settings = Settings(structures=True)
    return evaluate_run(run, known_of, ["one", "two"], settings, read_density=read_density)["pooled"][
        "structures"
    ]


def test_wrong_turns_do_not_reach_the_truth(run, report) -> None:
    """Compared with the density of the class, not with itself without noise, which is turned as wrongly."""
    wrong = structures_of(run, shuffled_truth(run, "turns"))
    for name in ("ribo<some>", "$barrel"):
        row = report["pooled"]["structures"][name]
        assert resolution(row) < 0.65 * resolution(wrong[name])
        assert resolution(row) < 0.65 * resolution(row, "random_fsc_0.5_angstrom")
        assert np.mean(row["fsc"]["correlation"]) > np.mean(row["random_fsc"]["correlation"]) + 0.2
    assert report["pooled"]["structures"]["ribo<some>"]["density"] == "ribo_some"


def test_wrong_classes_do_not_reach_the_truth(run, report) -> None:
    wrong = structures_of(run, shuffled_truth(run, "classes"))
    for name, row in report["pooled"]["structures"].items():
        assert np.mean(row["fsc"]["correlation"]) > np.mean(wrong[name]["fsc"]["correlation"]) + 0.12


def test_a_ball_has_no_turn(report) -> None:
    row = report["pooled"]["structures"]["small"]
    assert row["random_fsc_0.5_angstrom"] == pytest.approx(row["fsc_0.5_angstrom"], rel=0.1)


def test_found_particles_have_their_boxes_inside() -> None:
    """One particle at each of the six faces: the last voxel that a box may start at, and one beyond."""
    shape, box = (20, 24, 28), 8
    level = pyramid_levels(shape, VOXEL, count=1)[0]
    inside, outside = [], []
    for axis in range(3):
        for good, bad in ((4, 3), (shape[axis] - 4, shape[axis] - 3)):
            for rows, place in ((inside, good), (outside, bad)):
                index = np.array(shape) // 2
                index[axis] = place
                rows.append(index * VOXEL)
    for rows, expected in ((inside, 6), (outside, 0)):
        positions = np.array(rows, np.float64)
        truth = Truth(
            positions, np.ones(6, np.uint8), ("background", "a"), np.tile([0.0, 0, 0, 1], (6, 1)),
            np.ones(6, np.float32), np.ones(6, np.float32), np.full(6, "free"), {"particle_classes": 1},
        )  # fmt: skip
        found = found_particles("t", level, positions, known_from_truth(truth), "a", 5.0, box)
        assert len(found) == expected


def test_noise_has_no_structure(copied) -> None:
    noise = np.random.default_rng(0).normal(0, SD, SHAPE).astype(np.float32)
    Pyramid(copied.tomogram("one"), writable=True).write(0, Box.whole(SHAPE), noise)
    structures = evaluate_run(copied, None, ["one"], Settings(structures=True), read_density=read_density)[
        "pooled"
    ]["structures"]
    for name in CLASSES:
        row = structures[name]
        for key in ("fsc", "half_fsc"):
            assert abs(np.mean(row[key]["correlation"])) < 0.25
            assert row[key]["correlation"][-1] < 0.3
        assert resolution(row) > 4 * VOXEL


def test_without_densities_only_halves_are_compared(copied) -> None:
    copied.densities.delete("small.mrc")
    structures = evaluate_run(copied, None, ["one"], Settings(structures=True), read_density=read_density)[
        "pooled"
    ]["structures"]
    row = structures["small"]
    assert "fsc" in structures["$barrel"]
    assert "fsc" not in row
    assert row["half_fsc_0.143_angstrom"] < 2.5 * VOXEL
    few = evaluate_run(copied, None, ["one"], Settings(0.5, structures=True))["pooled"]["structures"]["small"]
    assert few["particles"] < 8
    assert "half_fsc" not in few


def test_shuffled_classes_score_at_chance(run) -> None:
    clusters = evaluate_run(run, shuffled_truth(run, "classes"), ["one", "two"])["pooled"]["clusters"]
    for measure in clusters["matched_picks"].values():
        assert measure["value"] == pytest.approx(measure["random"], abs=5 * measure["random_sd"])


def test_shuffled_clusters_choose_at_chance(copied) -> None:
    for name in ("one", "two"):
        ids, distances = read_assignments(copied.assignments, name)
        write_assignments(copied.assignments, name, np.random.default_rng(7).permutation(ids), distances)
    clusters = evaluate_run(copied, None, ["one", "two"])["pooled"]["clusters"]
    for row in clusters["by_class"].values():
        fifth = row["best_fifth_of_clusters_f1"]
        assert fifth == pytest.approx(row["best_fifth_random_f1"], abs=5 * row["best_fifth_random_f1_sd"])
        split, random = row["split_half_f1"], row["split_half_random_f1"]
        assert split == pytest.approx(random, abs=5 * row["split_half_random_f1_sd"])


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


def test_clusters_of_an_earlier_clustering_are_left_out(copied) -> None:
    """As after a re-fit with fewer clusters that stopped before assign; once an IndexError."""
    stored = copied.clusters.load()
    copied.clusters.save(stored, {**copied.clusters.card, "n_clusters": 6})
    copied.clusters.folder.write_bytes(SELECTION, b"[classes.small]\nclusters = [1]\n")
    scores = evaluate_run(copied, None, ["one"])["pooled"]
    assert "clusters" not in scores
    assert "selection" not in scores
    assert len(scores["left_out"]) == 1
    assert "clusters 0 to 5" in scores["left_out"][0]
    assert f"cryoscale run {copied.folder.url}" in scores["left_out"][0]


def test_results_of_picks_that_are_gone_are_left_out(copied, report) -> None:
    assert "left_out" not in report["pooled"]
    for number, stage in enumerate(("assign", "segment", "instances", "pick")):
        state = UnitState(stage, "one", "k", "done", finished=float(number + 1))
        folder = copied.ledger.child(stage, "one", "k")
        folder.write_bytes("sealed.json", json.dumps(dataclasses.asdict(state)).encode())
    scores = evaluate_run(copied, None, ["one", "two"])
    one, two = scores["tomograms"]
    assert not {"clusters", "segmentation", "instances"} & set(one)
    assert {"clusters", "segmentation", "instances"} <= set(two)
    assert [line.split(" of ")[0] for line in one["left_out"]] == ["clusters", "instances", "label volume"]
    assert all("pick was done again" in line for line in one["left_out"])
    assert scores["pooled"]["left_out"] == one["left_out"]
    picks = read_picks(copied.picks, "two")
    write_picks(copied.picks, "two", Picks(picks.positions_N3[:9], picks.scores_N[:9]))
    assert "and 9 picks" in evaluate_run(copied, None, ["two"])["pooled"]["left_out"][0]


def test_a_class_that_one_tomogram_lacks_is_matched_with_nothing_there(run) -> None:
    """Else its objects would count as right when any particle is near."""

    def known_of(name: str, tomogram):
        truth = read_truth(run.truth, name)
        kept = np.full(len(truth), True) if name == "one" else ~truth.of_class("ribo<some>")
        names = np.array(truth.class_names)[truth.class_N[kept]]
        return known_from_positions(truth.positions_N3[kept], names)

    scores = evaluate_run(run, known_of, ["one", "two"])
    one, two = (part["instances"]["ribo<some>"] for part in scores["tomograms"])
    assert (one["against"], one["f1"]) == ("ribo<some>", 1)
    assert (two["against"], two["truth"], two["matched"]) == ("ribo<some>", 0, 0)
    pooled = scores["pooled"]["instances"]["ribo<some>"]
    assert pooled["found"] == one["found"] + two["found"]
    assert pooled["matched"] == pooled["truth"] == one["truth"]


def test_random_places_lie_where_picks_can_be(copied) -> None:
    config = copied.config.model_copy(
        update={"pick": copied.config.pick.model_copy(update={"z_range": (10, 20)})}
    )
    copied.save_config(config)
    places = [places_for_picks(copied, name, 3) for name in ("one", "two")]
    drawn = places[0].draw(500)
    assert drawn.shape == (20, 500, 3)
    np.testing.assert_allclose(drawn.min((0, 1)), [100, 80, 80], atol=3)
    np.testing.assert_allclose(drawn.max((0, 1)), [190, 870, 870], atol=3)
    assert not np.isin(drawn, places[1].draw(500)).any()


def test_a_radius_of_half_the_tomogram(run) -> None:
    with pytest.raises(ConfigurationError, match="more than half of 'one'"):
        evaluate_run(run, None, ["one"], Settings(600.0))


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
