"""Our own reduction beside dask-ml, scikit-learn and plain float64; and that no cut changes a bit of it."""

import warnings
from fractions import Fraction

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning

from cryoscale.errors import ConfigurationError
from cryoscale.learn import kmeans, lloyd, passes
from cryoscale.learn.clustering import Clustering, assign
from cryoscale.learn.kmeans import fit_kmeans


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def separated():
    return make_blobs(3000, 6, centers=7, cluster_std=0.4, random_state=1)[0].astype(np.float32)


def overlapping():
    return np.random.default_rng(2).normal(size=(3000, 6)).astype(np.float32)


class Loader:
    def __init__(self, rows_NF):
        self.rows_NF, self.calls = rows_NF, 0

    def __call__(self):
        self.calls += 1
        return self.rows_NF


def extended_noise(n=5000, features=9, seed=0, scale=1.0):
    rows_NF = np.random.default_rng(seed).normal(size=(n, features)).astype(np.float32) * np.float32(scale)
    return lloyd.extended(rows_NF), rows_NF


def same(one, two):
    np.testing.assert_array_equal(one.centers_KF, two.centers_KF)
    np.testing.assert_array_equal(one.counts_K, two.counts_K)
    assert (one.inertia, one.n_iter) == (two.inertia, two.n_iter)


@pytest.mark.parametrize("rows_NF", [separated(), overlapping()], ids=["separated", "overlapping"])
@pytest.mark.parametrize("standardise", [True, False])
def test_our_reduction_dask_ml_and_scikit_learn_are_equal_from_the_same_start(rows_NF, standardise):
    start_KF = rows_NF[:: len(rows_NF) // 7][:7]
    words = {"n_clusters": 7, "init": start_KF, "max_iter": 100, "tol": 0.0, "standardise": standardise}
    chunks = np.split(rows_NF, [700, 1900])
    own = fit_kmeans(chunks, engine="lloyd", **words)
    peer = fit_kmeans(chunks, engine="dask-ml", **words)
    np.testing.assert_allclose(own.centers_KF, peer.centers_KF, atol=1e-5)
    np.testing.assert_array_equal(own.counts_K, peer.counts_K)
    np.testing.assert_array_equal(assign(rows_NF, own)[0], assign(rows_NF, peer)[0])
    assert own.inertia == pytest.approx(peer.inertia, rel=1e-6)
    scaled_NF = own.standardised(rows_NF)
    sk = KMeans(7, init=own.standardised(start_KF), n_init=1, max_iter=100, tol=0).fit(scaled_NF)
    np.testing.assert_array_equal(np.sort(np.bincount(sk.labels_))[::-1], own.counts_K)
    assert own.inertia == pytest.approx(sk.inertia_, rel=1e-5)


def test_each_iteration_is_that_of_scikit_learn():
    rows_NF = overlapping()
    for iterations in (1, 2, 5):
        own = fit_kmeans([rows_NF], n_clusters=9, init=rows_NF[:9], max_iter=iterations, tol=0.0)
        scaled_NF = own.standardised(rows_NF)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            sk = KMeans(9, init=scaled_NF[:9], n_init=1, max_iter=iterations, tol=0).fit(scaled_NF)
        assert own.n_iter == iterations
        distances = cdist(own.standardised(own.centers_KF), sk.cluster_centers_)
        np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("rows_per_task", [1, 900, 10**6])
def test_no_cut_and_no_order_of_rows_changes_a_bit(monkeypatch, in_memory, rows_per_task):
    rows_NF = overlapping()
    mean_F, scale_F = rows_NF.mean(0, dtype=np.float64), rows_NF.std(0, dtype=np.float64)
    monkeypatch.setattr(kmeans, "_standards", lambda *_: (mean_F, scale_F, 1.0))
    words = {"n_clusters": 11, "init": rows_NF[:11], "tol": 0.0, "max_iter": 30}
    plain = fit_kmeans([rows_NF], **words)
    monkeypatch.setattr(passes, "ROWS_PER_TASK", rows_per_task)
    monkeypatch.setattr(passes, "BRANCHES", 2)
    same(plain, fit_kmeans(np.split(rows_NF, [1, 500, 501, 2222]), in_memory=in_memory, **words))
    shuffled_NF = np.random.default_rng(5).permutation(rows_NF)
    same(plain, fit_kmeans(np.split(shuffled_NF, [100, 1000]), in_memory=in_memory, **words))


def test_from_storage_each_iteration_loads_again_and_finds_the_same():
    chunks = [Loader(part) for part in np.split(overlapping(), [900, 1800])]
    words = {"lengths": [900, 900, 1200], "n_clusters": 8, "max_iter": 6, "tol": 0.0}
    held = fit_kmeans(chunks, **words)
    calls = [chunk.calls for chunk in chunks]
    read = fit_kmeans(chunks, in_memory=False, **words)
    same(held, read)
    assert [chunk.calls - once for chunk, once in zip(chunks, calls, strict=True)] == [
        once + read.n_iter for once in calls
    ]  # the summary instead of holding, and one more per iteration


def test_dask_ml_is_refused_from_storage():
    with pytest.raises(ConfigurationError, match="in memory"):
        fit_kmeans([overlapping()], n_clusters=3, engine="dask-ml", in_memory=False)


@pytest.mark.parametrize("clusters", [1, 2, 100, 255, 256, 300])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_nearest_centre_is_that_by_float64_differences(clusters, scale):
    rows_NE, rows_NF = extended_noise(3000, scale=scale)
    centers_KF = np.random.default_rng(1).normal(size=(clusters, 9)) * scale
    expected = cdist(rows_NF.astype(np.float64), centers_KF, "sqeuclidean").argmin(axis=1)
    np.testing.assert_array_equal(lloyd.Centers(centers_KF).nearest(rows_NE), expected)


def test_centres_too_near_for_float32_are_told_apart():
    """All scores of float32 products are rounding noise here: only the differences know."""
    rows_NE, rows_NF = extended_noise(2500)
    rng = np.random.default_rng(3)
    centers_KF = rng.normal(size=(40, 9)) * 1e-6
    centers_KF[:, 0] = 100
    expected = cdist(rows_NF.astype(np.float64), centers_KF, "sqeuclidean").argmin(axis=1)
    assert len(np.unique(expected)) > 10
    np.testing.assert_array_equal(lloyd.Centers(centers_KF).nearest(rows_NE), expected)


def test_equally_near_centres_go_to_the_lowest_id():
    rows_NE, rows_NF = extended_noise(1500)
    centers_KF = np.repeat(rows_NF[:5].astype(np.float64), 3, axis=0)
    assert set(lloyd.Centers(centers_KF).nearest(rows_NE).tolist()) == {0, 3, 6, 9, 12}


def test_totals_are_exact():
    rows_NF = np.random.default_rng(0).normal(size=(20_000, 4)) * [1, 1e-3, 10, 1000]
    mean_F, scale_F = rows_NF.mean(0), rows_NF.std(0)
    units = passes.Units(mean_F, scale_F, lloyd.quantum(len(rows_NF), 1.0))
    rows_NE = units.prepare(rows_NF.astype(np.float32))
    np.testing.assert_allclose(rows_NE[:, :-2], (rows_NF - mean_F) / scale_F, atol=2e-6)
    centers_KF = rows_NE[:6, :-2].astype(np.float64)
    found = lloyd.totals(rows_NE, centers_KF)
    ids_N = cdist(rows_NE[:, :-2].astype(np.float64), centers_KF, "sqeuclidean").argmin(axis=1)
    for k in range(6):
        member_NF = rows_NE[ids_N == k, :-2].astype(np.float64)
        exact = [float(sum(map(Fraction, column.tolist()))) for column in member_NF.T]
        assert found.sums_KF[k].tolist() == exact
        assert found.counts_K[k] == len(member_NF)


def test_rows_of_all_magnitudes_are_added_without_rounding():
    rng = np.random.default_rng(0)
    rows_NF = (rng.normal(size=(4000, 3)) * 10.0 ** rng.uniform(-16, 1, size=(4000, 3))).astype(np.float32)
    rows_NF[17] = 3e6
    units = passes.Units(rows_NF.mean(0, dtype=np.float64), rows_NF.std(0, dtype=np.float64), 2.0**-24)
    rows_NE = units.prepare(rows_NF)
    centers_KF = np.zeros((1, 3))
    exact = [float(sum(map(Fraction, column.tolist()))) for column in rows_NE[:, :-2].T]
    for order in (np.arange(4000), np.arange(4000)[::-1], rng.permutation(4000)):
        assert lloyd.totals(rows_NE[order], centers_KF).sums_KF[0].tolist() == exact
    assert not np.mod(rows_NE[:, :-2].astype(np.float64), 2.0**-24).any()


@given(st.integers(1, 10**12), st.floats(0, 100))
def test_the_quantum_keeps_all_sums_within_float64(total, spread):
    step = lloyd.quantum(total, spread)
    assert step >= 2.0**-24
    assert np.frexp(step)[0] == 0.5
    assert total * (spread + 1) <= 2.0**52 * step


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e30), max_size=200))
def test_the_exact_sum_is_exact(values):
    assert lloyd.exact_sum(np.array(values)) == sum(map(Fraction, values), Fraction(0))


def test_summaries_of_parts_are_that_of_the_whole():
    rows_NE, rows_NF = extended_noise(9000)
    centers_KF = rows_NF[:20].astype(np.float64)
    whole, far = lloyd.summary(rows_NE, centers_KF), lloyd.farthest(rows_NE, centers_KF, 20)
    cut = np.split(rows_NE, [10, 4000])
    one, two, three = (lloyd.summary(part, centers_KF) for part in cut)
    first, second, third = (lloyd.farthest(part, centers_KF, 20) for part in cut)
    squared_NK = cdist(rows_NF.astype(np.float64), centers_KF, "sqeuclidean")
    assert whole.inertia == (three + one + two).inertia
    assert float(whole.inertia) == pytest.approx(squared_NK.min(axis=1).sum(), rel=1e-12)
    np.testing.assert_array_equal(whole.counts_K, np.bincount(squared_NK.argmin(axis=1), minlength=20))
    np.testing.assert_array_equal(far.rows_MF, (first + second + third).first(20).rows_MF)
    np.testing.assert_array_equal(far.rows_MF, rows_NF[np.argsort(-squared_NK.min(axis=1))[:20]])


def test_assignments_do_not_depend_on_the_other_rows_and_are_exact():
    rng = np.random.default_rng(4)
    rows_NF = rng.normal(size=(20_000, 9)).astype(np.float32) + 50
    found = Clustering(
        rows_NF[:30].astype(np.float64), np.full(9, 50.0), np.full(9, 0.7), np.ones(30, np.int64), 0, 1
    )
    ids_N, distance_N = assign(rows_NF, found)
    squared_NK = cdist(found.standardised(rows_NF), found.standardised(found.centers_KF), "sqeuclidean")
    np.testing.assert_array_equal(ids_N, squared_NK.argmin(axis=1))
    np.testing.assert_allclose(distance_N, np.sqrt(squared_NK.min(axis=1)), rtol=1e-6)
    for part in (slice(3, 4), slice(100, 9000)):
        np.testing.assert_array_equal(assign(rows_NF[part], found)[1], distance_N[part])


def test_tasks_hold_many_chunks_and_there_are_enough_of_them():
    rows = passes.Rows([np.zeros((4096, 2))] * 64, None)
    with dask.config.set(scheduler="threads", num_workers=2):
        sizes = [sum(n for _, n in group.chunks) for group in rows.groups()]
    assert sizes == [65_536] * 4
    assert [sum(n for _, n in group.chunks) for group in rows.groups()] == [131_072] * 2


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_cluster_of_processes_like_ours_finds_the_same_bits(in_memory):
    distributed = pytest.importorskip("distributed")
    rows_NF = overlapping()
    chunks = np.split(rows_NF, [800, 900, 2000])
    one = fit_kmeans(chunks, n_clusters=8, in_memory=in_memory)
    with (
        dask.config.set(scheduler=None),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        assert passes.slots() == 2
        two = fit_kmeans(chunks, n_clusters=8, in_memory=in_memory)
    same(one, two)


def test_a_cluster_that_is_empty_for_a_while_does_not_end_the_fit() -> None:
    rows_NF = np.repeat(np.array([0.0, 0.1, *[10.0] * 9], np.float32), 2)[:, None]
    found = fit_kmeans([rows_NF], n_clusters=2, init=np.array([[5.0], [-6.0]]), standardise=False)
    np.testing.assert_allclose(np.sort(found.centers_KF.ravel()), [0.05, 10.0], atol=1e-5)
    assert sorted(found.counts_K) == [4, 18]
