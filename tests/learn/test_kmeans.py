import dask
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.kmeans import Clustering, assign, fit_kmeans, match_to


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def blobs(n=1500, k=6, features=5, seed=0):
    rows_NF, labels = make_blobs(n, features, centers=k, cluster_std=0.6, random_state=seed)
    return (rows_NF * np.arange(1, features + 1) + 3).astype(np.float32), labels


def cut(rows_NF, *stops):
    return np.split(rows_NF, stops)


def standard(rows_NF):
    rows_NF = rows_NF.astype(np.float64)
    return (rows_NF - rows_NF.mean(0)) / rows_NF.std(0)


class Loader:
    """A chunk that is read when asked for; picklable, as workers need it."""

    def __init__(self, rows_NF):
        self.rows_NF = rows_NF

    def __call__(self):
        return self.rows_NF


def test_finds_what_scikit_learn_finds():
    rows_NF, labels = blobs()
    found = fit_kmeans(cut(rows_NF, 400, 1100), n_clusters=6)
    reference = KMeans(6, n_init=10, random_state=0).fit(standard(rows_NF))
    assert found.inertia == pytest.approx(reference.inertia_, rel=1e-3)
    ids_N, _ = assign(rows_NF, found)
    assert adjusted_rand_score(labels, ids_N) > 0.99


def test_matches_scikit_learn_where_clusters_overlap():
    rows_NF = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    found = fit_kmeans(cut(rows_NF, 700, 1400), n_clusters=12, tol=1e-6)
    reference = KMeans(12, n_init=10, random_state=0).fit(standard(rows_NF))
    assert found.inertia < reference.inertia_ * 1.02


def test_counts_inertia_and_centres_belong_together():
    rows_NF, _ = blobs(n=900)
    found = fit_kmeans(cut(rows_NF, 300, 600), n_clusters=7, tol=1e-9)
    ids_N, distance_N = assign(rows_NF, found)
    assert ids_N.dtype == np.int32
    assert distance_N.dtype == np.float32
    np.testing.assert_array_equal(np.bincount(ids_N, minlength=7), found.counts_K)
    assert (distance_N.astype(np.float64) ** 2).sum() == pytest.approx(found.inertia, rel=1e-5)
    for k in range(7):
        np.testing.assert_allclose(found.centers_KF[k], rows_NF[ids_N == k].mean(0), rtol=1e-4, atol=1e-4)


def test_mean_and_scale_are_those_of_all_rows():
    rows_NF, _ = blobs()
    rows_NF += 1000  # where one-pass sums of squares in float32 break down
    found = fit_kmeans(cut(rows_NF, 10, 11, 1200), n_clusters=6)
    np.testing.assert_allclose(found.mean_F, rows_NF.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.scale_F, rows_NF.astype(np.float64).std(0), rtol=1e-9)


def test_without_standardising_distances_keep_their_proportions():
    rows_NF, _ = blobs()
    found = fit_kmeans([rows_NF], n_clusters=6, standardise=False)
    assert len(set(found.scale_F)) == 1
    reference = KMeans(6, n_init=10, random_state=0).fit(rows_NF.astype(np.float64))
    assert found.inertia * found.scale_F[0] ** 2 == pytest.approx(reference.inertia_, rel=1e-3)


def test_the_same_call_gives_the_same_bits():
    rows_NF, _ = blobs()
    chunks = [Loader(part) for part in cut(rows_NF, 500, 900)]
    one, two = (fit_kmeans(chunks, [500, 400, 600], n_clusters=9, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.centers_KF, two.centers_KF)
    assert one.inertia == two.inertia


def test_the_scheduler_does_not_change_the_bits():
    rows_NF, _ = blobs()
    one = fit_kmeans(cut(rows_NF, 500, 900), n_clusters=9)
    with dask.config.set(scheduler="threads", num_workers=2):
        two = fit_kmeans(cut(rows_NF, 500, 900), n_clusters=9)
    np.testing.assert_array_equal(one.centers_KF, two.centers_KF)


def test_a_distributed_client_does_not_change_the_bits():
    distributed = pytest.importorskip("distributed")
    rows_NF, _ = blobs()
    chunks = [Loader(part) for part in cut(rows_NF, 500, 900)]
    one = fit_kmeans(chunks, [500, 400, 600], n_clusters=9)
    with (
        dask.config.set(scheduler=None),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        two = fit_kmeans(chunks, [500, 400, 600], n_clusters=9)
    np.testing.assert_array_equal(one.centers_KF, two.centers_KF)
    assert one.inertia == two.inertia


def test_ids_go_by_size_then_by_coordinates():
    centers = np.array([[0, 9.0], [6, 1], [5, 7], [20, 0]])
    sizes = [4, 7, 7, 9]
    jitter = np.random.default_rng(0).normal(0, 0.01, size=(27, 2))
    rows_NF = (
        np.repeat(centers, sizes, axis=0)
        + jitter
        - np.repeat([jitter[sum(sizes[:k]) : sum(sizes[: k + 1])].mean(0) for k in range(4)], sizes, axis=0)
    )
    found = fit_kmeans([rows_NF], n_clusters=4)
    assert found.counts_K.tolist() == [9, 7, 7, 4]
    np.testing.assert_allclose(found.centers_KF[[0, 3]], [[20, 0], [0, 9]], atol=1e-4)
    np.testing.assert_allclose(found.centers_KF[1:3], [[5, 7], [6, 1]], atol=1e-4)


def test_constant_features_count_for_nothing_even_later():
    rows_NF, labels = blobs()
    dead_NF = np.concatenate([rows_NF, np.zeros((len(rows_NF), 3), np.float32)], axis=1)
    found = fit_kmeans(cut(dead_NF, 800), n_clusters=6)
    np.testing.assert_array_equal(found.centers_KF[:, 5:], 0)
    assert np.isfinite(found.centers_KF).all()
    ids_N, _ = assign(dead_NF, found)
    assert adjusted_rand_score(labels, ids_N) > 0.99
    revived_NF = dead_NF.copy()
    revived_NF[:, 5:] = 100
    np.testing.assert_array_equal(assign(revived_NF, found)[0], ids_N)


def test_an_empty_cluster_is_moved_to_where_rows_lie_far_from_their_centre():
    rows_NF, labels = blobs(k=4)
    start_KF = np.concatenate([[rows_NF[labels == k].mean(0) for k in range(3)], np.full((1, 5), 1e4)])
    found = fit_kmeans(cut(rows_NF, 700), n_clusters=4, init=start_KF)
    assert found.counts_K.min() > 0
    assert adjusted_rand_score(labels, assign(rows_NF, found)[0]) > 0.99


def test_several_empty_clusters_at_once():
    rows_NF, _ = blobs(n=1600, k=8)
    start_KF = np.concatenate(
        [rows_NF[:4].astype(np.float64), np.full((4, 5), -1e4) * np.arange(1, 5)[:, None]]
    )
    found = fit_kmeans(cut(rows_NF, 500, 900), n_clusters=8, init=start_KF)
    assert found.counts_K.min() > 0
    assert found.n_clusters == 8


def test_a_sample_is_enough_to_start():
    rows_NF, labels = blobs(n=4000, k=10)
    found = fit_kmeans(cut(rows_NF, 1000, 2500), n_clusters=10, sample_rows=300)
    assert adjusted_rand_score(labels, assign(rows_NF, found)[0]) > 0.99


def test_empty_chunks_are_passed_over():
    rows_NF, _ = blobs()
    empty = np.empty((0, 5), np.float32)
    one = fit_kmeans([empty, rows_NF[:700], empty, rows_NF[700:]], n_clusters=6)
    two = fit_kmeans([rows_NF[:700], rows_NF[700:]], n_clusters=6)
    np.testing.assert_array_equal(one.centers_KF, two.centers_KF)


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="5 encodings are fewer than n_clusters = 6"):
        fit_kmeans([np.zeros((5, 2))], n_clusters=6)


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="0 encodings"):
        fit_kmeans([], n_clusters=2)


def test_too_few_different_rows_are_refused():
    rows_NF = np.repeat(np.eye(3), 10, axis=0)
    with pytest.raises(DataError, match="Only 3 of 30 encodings differ"):
        fit_kmeans([rows_NF], n_clusters=4)
    with pytest.raises(DataError, match="stay empty"):
        fit_kmeans([rows_NF], n_clusters=4, init=np.random.default_rng(0).normal(size=(4, 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_encodings_are_refused(value):
    rows_NF, _ = blobs()
    found = fit_kmeans([rows_NF], n_clusters=6)
    rows_NF[1234, 2] = value
    with pytest.raises(DataError, match="NaN or infinity"):
        fit_kmeans(cut(rows_NF, 1000), n_clusters=6)
    with pytest.raises(DataError, match="Encoding 1234 is not finite"):
        assign(rows_NF, found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunks": [Loader(np.eye(4))]}, "need their lengths"),
        ({"chunks": [np.eye(4)], "lengths": [4, 4]}, "1 chunks with 2 lengths"),
        ({"chunks": [np.eye(4)], "init": np.zeros((3, 4))}, "init has shape"),
        ({"chunks": [np.eye(4)], "restarts": 0}, "restarts = 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        fit_kmeans(**arguments, n_clusters=2)


def test_a_chunk_of_another_length_is_named():
    with pytest.raises(DataError, match="expected 5 rows"):
        fit_kmeans([Loader(np.eye(4))], [5], n_clusters=2)


def test_assign_agrees_with_scikit_learn_and_ignores_the_other_rows():
    rows_NF, _ = blobs(n=9000)
    found = fit_kmeans([rows_NF[:2000]], n_clusters=11)
    ids_N, distance_N = assign(rows_NF, found)
    expected = pairwise_distances_argmin(found.standardised(rows_NF), found.standardised(found.centers_KF))
    np.testing.assert_array_equal(ids_N, expected)
    part_ids, part_distances = assign(rows_NF[4000:4200], found)
    np.testing.assert_array_equal(part_ids, ids_N[4000:4200])
    np.testing.assert_array_equal(part_distances, distance_N[4000:4200])


def test_assign_takes_nothing_and_refuses_other_features():
    rows_NF, _ = blobs()
    found = fit_kmeans([rows_NF], n_clusters=3)
    assert [len(part) for part in assign(rows_NF[:0], found)] == [0, 0]
    with pytest.raises(ConfigurationError, match="5 features"):
        assign(rows_NF[:, :4], found)


def clustering(centers, counts=None):
    centers_KF = np.asarray(centers, dtype=np.float64)
    counts_K = np.arange(len(centers_KF), 0, -1) if counts is None else np.asarray(counts)
    features = centers_KF.shape[1]
    return Clustering(centers_KF, np.zeros(features), np.ones(features), counts_K, 1.0, 1)


def test_match_to_keeps_the_ids_of_clusters_that_came_back():
    rng = np.random.default_rng(0)
    earlier = clustering(rng.normal(size=(8, 3)) * 10)
    order = rng.permutation(8)
    new = clustering(earlier.centers_KF[order] + rng.normal(size=(8, 3)) * 0.1)
    matched = match_to(earlier, new)
    np.testing.assert_allclose(matched.centers_KF, earlier.centers_KF, atol=0.5)
    np.testing.assert_array_equal(matched.counts_K, new.counts_K[np.argsort(order)])


def test_match_to_gives_new_clusters_the_free_ids_by_size():
    earlier = clustering([[0.0], [10], [20]])
    new = clustering([[50.0], [20.1], [0.1], [90], [10.1]])
    assert match_to(earlier, new).centers_KF.ravel().tolist() == [0.1, 10.1, 20.1, 50, 90]


def test_match_to_with_fewer_clusters_keeps_the_ids_that_exist():
    earlier = clustering([[0.0], [10], [20], [30]])
    new = clustering([[29.9], [10.1], [0.1]])
    assert match_to(earlier, new).centers_KF.ravel().tolist() == [0.1, 10.1, 29.9]


def test_match_to_itself_changes_nothing():
    found = fit_kmeans([blobs()[0]], n_clusters=6)
    np.testing.assert_array_equal(match_to(found, found).centers_KF, found.centers_KF)


def test_match_to_refuses_other_features():
    with pytest.raises(ConfigurationError, match="2 features"):
        match_to(clustering([[0.0], [1]]), clustering([[0.0, 1], [1, 1]]))
