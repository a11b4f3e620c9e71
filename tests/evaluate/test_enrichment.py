"""Enrichment against published numbers, scipy, full enumeration, and data whose answer is planted."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate import distances
from cryoscale.evaluate import enrichment as e
from cryoscale.evaluate.contacts import Contacts, contact_scores
from cryoscale.evaluate.picks import near_label

Picks = tuple[np.ndarray, np.ndarray, np.ndarray]


def picks_of(tables: list[tuple[int, int, int, int]]) -> Picks:
    """Group, near and tomogram of picks from tables (near and far in "in", near and far in "out")."""
    group, near, tomogram = [], [], []
    for t, (a, b, c, d) in enumerate(tables):
        group += ["in"] * (a + b) + ["out"] * (c + d)
        near += [True] * a + [False] * b + [True] * c + [False] * d
        tomogram += [t] * (a + b + c + d)
    return np.array(group), np.array(near), np.array(tomogram)


def row_of(tables: list[tuple[int, int, int, int]]) -> e.Enrichment:
    return e.group_enrichment(*picks_of(tables))[0]


# Admissions to Berkeley by department, 1973 (Bickel et al. 1975): men in, men out, women in, women out.
BERKELEY = [
    (512, 313, 89, 19), (353, 207, 17, 8), (120, 205, 202, 391),
    (138, 279, 131, 244), (53, 138, 94, 299), (22, 351, 24, 317),
]  # fmt: skip


def test_the_common_odds_ratio_of_a_published_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """The odds ratio, interval and p that R's mantelhaen.test prints for this data."""
    row = row_of(BERKELEY)
    odds = [2.0**v for v in (row.log2_odds, row.low, row.high)]
    np.testing.assert_allclose(odds, [0.9046968, 0.7719074, 1.0603298], rtol=1e-6)
    assert row.verdict == "none"
    exact = row.p
    monkeypatch.setattr(e, "EXACT", 10)
    assert row_of(BERKELEY).p == pytest.approx(0.2323, abs=5e-5)
    assert exact == pytest.approx(0.2323, abs=0.005)
    # Thrown together, men seem favoured: departments differ (Simpson's paradox), so strata matter.
    group, near, _ = picks_of(BERKELEY)
    assert e.group_enrichment(group, near)[0].verdict == "enriched"


def test_two_tomograms_by_hand() -> None:
    row = row_of([(6, 4, 10, 30), (3, 7, 2, 18)])
    r = [6 * 30 / 50, 3 * 18 / 30]
    s = [4 * 10 / 50, 7 * 2 / 30]
    assert 2**row.log2_odds == pytest.approx(sum(r) / sum(s))
    assert (row.n, row.near) == (20, 9)
    assert row.share == pytest.approx(9 / 20)
    assert row.baseline == pytest.approx((10 * 10 / 40 + 10 * 2 / 20) / 20)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 25)] * 4))
def test_one_tomogram_is_fishers_test_and_woolfs_interval(table: tuple[int, int, int, int]) -> None:
    a, b, c, d = table
    row = row_of([table])
    assert row.p == pytest.approx(stats.fisher_exact([[a, b], [c, d]]).pvalue)
    assert 2**row.log2_odds == pytest.approx(a * d / (b * c))
    interval = stats.contingency.odds_ratio([[a, b], [c, d]], kind="sample").confidence_interval(0.95)
    assert (2**row.low, 2**row.high) == pytest.approx((interval.low, interval.high))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 4), min_size=1, max_size=3))
def test_p_by_enumeration_of_all_tables(tables: list[tuple[int, int, int, int]]) -> None:
    group, _, _ = picks_of(tables)
    if len(np.unique(group)) < 2:
        return
    chances = []
    for a, b, c, d in tables:
        n, m, g = a + b + c + d, a + c, a + b
        ways = {
            k: math.comb(m, k) * math.comb(n - m, g - k) / math.comb(n, g)
            for k in range(min(m, g) + 1)
            if g - k <= n - m
        }
        chances.append(ways)
    total: dict[int, float] = {}
    for combination in itertools.product(*(c.items() for c in chances)):
        key = sum(k for k, _ in combination)
        total[key] = total.get(key, 0) + math.prod(p for _, p in combination)
    seen = total[sum(t[0] for t in tables)]
    expected = sum(p for p in total.values() if p <= seen * (1 + 1e-7))
    assert row_of(tables).p == pytest.approx(expected)


def test_both_groups_of_two_mirror_each_other() -> None:
    first, second = e.group_enrichment(*picks_of([(9, 3, 5, 20), (7, 2, 1, 9)]))
    assert (first.group, second.group) == ("in", "out")
    assert first.log2_odds == pytest.approx(-second.log2_odds)
    assert (first.low, first.high) == pytest.approx((-second.high, -second.low))
    assert first.p == pytest.approx(second.p)
    assert (first.verdict, second.verdict) == ("enriched", "depleted")


def test_empty_cells_and_tomograms_that_cannot_tell() -> None:
    zero = row_of([(8, 0, 5, 40)])
    assert 2**zero.log2_odds == pytest.approx(8.5 * 40.5 / (0.5 * 5.5))  # Haldane and Anscombe
    assert 0 < zero.low < zero.log2_odds < zero.high < math.inf
    silent = row_of([(4, 0, 9, 0), (0, 3, 0, 8)])
    assert (silent.log2_odds, silent.p, silent.verdict) == (0, 1, "none")
    assert (silent.low, silent.high) == (-math.inf, math.inf)
    alone = e.group_enrichment([3, 3], np.array([True, False]))[0]
    assert math.isnan(alone.baseline)
    assert alone.p == 1
    # A tomogram that cannot tell changes nothing.
    assert row_of([(6, 4, 10, 30), (5, 0, 7, 0)]).log2_odds == pytest.approx(
        row_of([(6, 4, 10, 30)]).log2_odds
    )


def simulated(seed: int, *, planted: float, clusters: int = 30, n: int = 3000) -> Picks:
    """Picks in three tomograms of different share near; cluster 7 stands nearer by a factor on its odds."""
    rng = np.random.default_rng(seed)
    group, tomogram = rng.integers(0, clusters, n), rng.integers(0, 3, n)
    odds = np.array([0.1, 0.3, 0.6])[tomogram] * np.where(group == 7, planted, 1.0)
    return group, rng.random(n) < odds / (1 + odds), tomogram


def test_a_planted_enrichment_is_found_and_no_other() -> None:
    rows = e.group_enrichment(*simulated(0, planted=4.0))
    found = [row for row in rows if row.verdict != "none"]
    assert [row.group for row in found] == [7]
    assert found[0].verdict == "enriched"
    assert found[0].low < 2 < found[0].high
    assert found[0].share > 1.5 * found[0].baseline
    down = e.group_enrichment(*simulated(1, planted=0.1))
    assert [(row.group, row.verdict) for row in down if row.verdict != "none"] == [(7, "depleted")]


def test_the_interval_covers_and_false_discoveries_stay_rare() -> None:
    covered, false = 0, 0
    for seed in range(60):
        rows = e.group_enrichment(*simulated(100 + seed, planted=1.0, clusters=10, n=600))
        false += any(row.verdict != "none" for row in rows)
        covered += sum(row.low <= 0 <= row.high for row in rows)
    assert false <= 7  # 3 expected at most: with no true effect, q < 0.05 is 5 % of all sets
    assert 0.92 < covered / 600 < 0.99


def test_confounding_by_tomogram_is_no_enrichment() -> None:
    rng = np.random.default_rng(0)
    tomogram = np.repeat([0, 1], 1000)
    group = (rng.random(2000) < np.where(tomogram == 0, 0.8, 0.1)).astype(int)
    near = rng.random(2000) < np.where(tomogram == 0, 0.6, 0.1)
    assert all(row.verdict == "none" for row in e.group_enrichment(group, near, tomogram))
    assert all(row.verdict != "none" for row in e.group_enrichment(group, near))


def test_shuffles_agree_with_the_exact_p() -> None:
    picks = simulated(3, planted=2.0, clusters=6, n=300)
    null = e.shuffled_enrichment(*picks, repeats=2000, seed=0)
    exact = [row.p for row in e.group_enrichment(*picks)]
    assert null.groups == tuple(range(6))
    np.testing.assert_allclose(null.p_G, exact, atol=0.035)
    assert (null.familywise_p_G >= null.p_G).all()
    assert (null.discoveries_R > 0).mean() < 0.08
    again = e.shuffled_enrichment(*picks, repeats=2000, seed=0)
    np.testing.assert_array_equal(again.p_G, null.p_G)


def test_shifts_see_through_neighbours_that_are_alike() -> None:
    """Runs of one cluster and runs of near picks, unrelated: 'permute' cries wolf, 'shift' does not."""
    wolf = {"permute": 0, "shift": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = np.repeat(rng.integers(0, 5, 40), 25)
        near = np.repeat(rng.random(20) < 0.3, 50)
        for how in wolf:
            null = e.shuffled_enrichment(group, near, how=how, repeats=199, seed=seed)  # type: ignore[arg-type]
            wolf[how] += int(null.familywise_p_G.min() < 0.05)
    assert wolf["permute"] >= 15
    assert wolf["shift"] <= 4
    rng = np.random.default_rng(0)
    near = np.repeat(rng.random(60) < 0.3, 50)
    planted = np.where(near, 1, rng.integers(0, 5, 3000))
    assert e.shuffled_enrichment(planted, near, how="shift", repeats=199, seed=0).familywise_p_G[1] < 0.05


def contacts(seed: int, *, run_length: int, planted: bool) -> Contacts:
    """Rows in runs that share cluster and nearness, as neighbours do; cluster 3 is near if it is planted."""
    rng = np.random.default_rng(seed)
    near = np.repeat(rng.random(800 // run_length) < 0.3, run_length)
    ids = np.repeat(rng.integers(0, 8, 800 // run_length), run_length)
    if planted:
        ids[near & (rng.random(800) < 0.4)] = 3
        ids[~near & (ids == 3)] = 4
    classes = np.where(near & (ids == 3), "a", "b").astype(str)
    return Contacts(str(seed), 100.0, near, ids, classes, (classes == "a") | (rng.random(800) < 0.02))


def test_neighbours_alone_make_no_verdict() -> None:
    """The exact test alone calls most of these clusters: it takes picks for independent."""
    called = exact = 0
    for seed in range(4):
        parts = [contacts(2 * seed + n, run_length=20, planted=False) for n in range(2)]
        rows = contact_scores(parts, seed=seed)["by_cluster"].values()
        called += sum(row["verdict"] != "none" for row in rows)
        exact += sum(row["q"] < 0.05 for row in rows)
    assert exact > 10 > 2 >= called


def test_a_planted_contact_is_told_from_a_missed_one() -> None:
    parts = [contacts(seed, run_length=2, planted=True) for seed in range(2)]
    scores = contact_scores(parts, seed=0)
    assert scores["enriched"] == ["3"]
    assert scores["planted"] == {"holding": ["3"], "found": ["3"], "missed": [], "elsewhere": []}
    assert scores["by_cluster"]["3"]["majority"] == "a"
    assert {"a at membranes", "b", "b at membranes"} == set(scores["by_class"])
    rng = np.random.default_rng(0)
    far = [dataclasses.replace(part, near_N=rng.permutation(part.near_N)) for part in parts]
    missed = contact_scores(far, seed=0)["planted"]
    assert missed == {"holding": ["3"], "found": [], "missed": ["3"], "elsewhere": []}
    other = [dataclasses.replace(part, planted_N=part.ids_N == 5) for part in parts]
    assert contact_scores(other, seed=0)["planted"]["elsewhere"] == ["3"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 12)] * 3), st.integers(1, 13))
def test_distances_are_those_of_the_distance_transform(
    seed: int, shape: tuple[int, int, int], slab: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.normal(size=shape), 1, mode="wrap") > 0.15).astype(
        np.uint8
    ) * rng.integers(1, 4, shape)
    index = rng.integers(0, shape, (20, 3))
    found = distances.label_distances(index, labels, [1, 3], 7.5, slab=slab)
    other = ~np.isin(labels, [1, 3])
    if other.all():
        assert np.isinf(found).all()
        return
    expected = ndimage.distance_transform_edt(other) * 7.5 if other.any() else np.zeros(shape)
    np.testing.assert_allclose(found, expected[tuple(index.T)], atol=1e-9)
    np.testing.assert_array_equal(found <= 15, near_label(index, np.where(other, 0, 1), 1, 2.0))


@pytest.mark.parametrize("slab", [1, 2, 3, 4, 9])
def test_a_surface_at_the_face_of_a_slab_counts(slab: int) -> None:
    for full in (slice(4, None), slice(None, 4)):
        labels = np.zeros((8, 5, 5), np.uint8)
        labels[full] = 1
        expected = ndimage.distance_transform_edt(labels == 0)
        index = np.argwhere(labels == 0)
        found = distances.label_distances(index, labels, [1], 1.0, slab=slab)
        np.testing.assert_allclose(found, expected[tuple(index.T)])


def test_distances_of_places_between_voxels() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4] = 2
    assert distances.label_distances(
        [[6.25, 1.5, 3.0], [4.4, 0, 0], [3.4, 0, 0]], labels, [2], 10.0
    ) == pytest.approx([math.hypot(22.5, 5), 0, 6])
    assert distances.label_distances(np.empty((0, 3)), labels, [2], 10.0).shape == (0,)
    with pytest.raises(ConfigurationError, match="must lie in"):
        distances.label_distances([[9, 0, 0]], labels, [2], 10.0)


def test_random_points_fill_what_is_allowed() -> None:
    forbidden = np.zeros((6, 10, 12), bool)
    forbidden[:, :5] = True
    points = distances.random_points((6, 10, 12), 4000, seed=0, margin=1, forbidden_ZYX=forbidden)
    voxels = np.rint(points).astype(int)
    assert points.shape == (4000, 3)
    assert voxels.min(axis=0).tolist() == [1, 5, 1]
    assert voxels.max(axis=0).tolist() == [4, 8, 10]
    counts = np.bincount(voxels[:, 0])[1:]
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(
        points, distances.random_points((6, 10, 12), 4000, seed=0, margin=1, forbidden_ZYX=forbidden)
    )
    with pytest.raises(ConfigurationError, match="no room"):
        distances.random_points((4, 4, 4), 1, seed=0, margin=2)
    with pytest.raises(ConfigurationError, match="hardly any"):
        distances.random_points((4, 4, 4), 1, seed=0, forbidden_ZYX=np.ones((4, 4, 4), bool))


def test_distance_ratio_by_hand() -> None:
    found = distances.distance_enrichment(
        [1, 5, 10, 15, np.inf], [1, 2, 12, 13, 14, 15, 16, 90], [0, 10, 20, 30]
    )
    assert found.picks_B.tolist() == [2, 2, 0]
    assert found.expected_B.tolist() == [1, 2.5, 0]
    assert found.ratio_B[:2].tolist() == [2, 0.8]
    assert np.isnan(found.ratio_B[2])
    assert np.isnan(found.low_B).all()  # one unit


def spread(seed: int, *, planted: bool) -> distances.DistanceEnrichment:
    """A membrane plane in each of 12 tomograms; picks anywhere, or every third one beside it."""
    rng = np.random.default_rng(seed)
    tomogram = np.repeat(np.arange(12), 40)
    places = rng.uniform(0, 300, 4800)
    middle = rng.uniform(50, 250, 12)
    picks = rng.uniform(0, 300, 480)
    if planted:
        picks[::3] = middle[tomogram[::3]] + rng.uniform(-20, 20, 160)
    return distances.distance_enrichment(
        np.abs(picks - middle[tomogram]), np.abs(places - np.repeat(middle, 400)), [0, 20, 60, 150],
        unit_N=tomogram, unit_M=np.repeat(np.arange(12), 400), repeats=300, seed=seed,
    )  # fmt: skip


def test_a_planted_nearness_is_found_and_chance_is_not() -> None:
    found = spread(0, planted=True)
    assert found.low_B[0] > 2
    assert found.high_B[1] < 1
    assert (found.low_B <= found.ratio_B).all()
    assert (found.ratio_B <= found.high_B).all()
    covered = [
        (r.low_B <= 1) & (r.high_B >= 1) for r in (spread(1 + seed, planted=False) for seed in range(30))
    ]
    assert 0.8 < np.mean(covered) <= 1


def test_block_names() -> None:
    names = distances.block_ids([[0, 0, 0], [9.4, 0, 0], [9.6, 0, 0], [0, 0, 0]], 10, [1, 1, 1, 2])
    assert names.tolist() == ["1:0.0.0", "1:0.0.0", "1:1.0.0", "2:0.0.0"]


def test_bad_input() -> None:
    near = np.array([True, False])
    for call in (
        lambda: e.group_enrichment([1, 2], [1.0, 2.0]),
        lambda: e.group_enrichment([1, 2, 3], near),
        lambda: e.group_enrichment([1, 2], near, [0]),
        lambda: e.group_enrichment([], np.empty(0, bool)),
        lambda: e.group_enrichment([1, 2], near, alpha=1.0),
        lambda: e.shuffled_enrichment([1, 2], near, how="turn", seed=0),  # type: ignore[arg-type]
        lambda: distances.distance_enrichment([1.0], [1.0], [0, 0]),
        lambda: distances.distance_enrichment([np.nan], [1.0], [0, 1]),
        lambda: distances.distance_enrichment([np.inf], [1.0], [0, 1]),
        lambda: distances.distance_enrichment([1.0], [1.0], [0, 1], unit_N=[1, 2]),
    ):
        with pytest.raises(ConfigurationError):
            call()
