"""Classes of picks, and the margin of clusters over a threshold."""

from __future__ import annotations

import numpy as np
import pytest

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.picks import classes_of_picks, cluster_margins, near_label


def test_classes_by_the_nearest_match() -> None:
    truth = [[0, 0, 0], [10, 0, 0], [20, 0, 0]]
    picks = [[11, 0, 0], [10.5, 0, 0], [0, 1, 0], [40, 0, 0]]
    assert classes_of_picks(picks, truth, [3, 1, 2], 2.0).tolist() == [0, 1, 3, 0]
    with pytest.raises(ConfigurationError, match="3 classes"):
        classes_of_picks(picks, truth, [1, 2], 2.0)
    with pytest.raises(ConfigurationError, match="at least 1"):
        classes_of_picks(picks, truth, [0, 1, 2], 2.0)


def test_near_a_label() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:, 5, :] = 2
    picks = [[3, 5, 3], [3, 8, 3], [3, 9, 3], [3.4, 1.6, 3]]
    assert near_label(picks, labels, 2, 3.0).tolist() == [True, True, False, True]
    assert not near_label(picks, labels, 1, 3.0).any()
    with pytest.raises(ConfigurationError, match="outside"):
        near_label([[0, 0, 10]], labels, 2, 3.0)


@pytest.fixture(scope="module")
def mixed() -> dict:
    """Two classes of 100 with overlapping scores, and 100 picks of nothing with lower ones."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 1000, (300, 3))
    score = np.concatenate([rng.normal(5, 1, 200), rng.normal(2, 1, 100)])
    return {"positions": positions, "score": score, "class": np.repeat([0, 1, 2], 100), "rng": rng}


def test_clusters_that_know_the_class_beat_the_threshold(mixed: dict) -> None:
    truth = {"a": mixed["positions"][:100], "b": mixed["positions"][100:200]}
    clusters = mixed["class"] * 4 + mixed["rng"].integers(0, 4, 300)
    found = cluster_margins(mixed["positions"], mixed["score"], clusters, truth, 3.0, n_clusters=20)
    assert [m.name for m in found] == ["a", "b"]
    for margin in found:
        assert margin.selection.f1 > 0.98
        assert 0.6 < margin.threshold.best_f1 < 0.72
        assert margin.margin > 0.25
        assert margin.chance_f1 < 0.6
        assert margin.recall > 0.99
    few = cluster_margins(mixed["positions"], mixed["score"], clusters, truth, 3.0, n_clusters=10)
    assert all(len(m.selection.clusters) == 2 for m in few)


def test_random_clusters_have_no_margin(mixed: dict) -> None:
    truth = {"a": mixed["positions"][:100]}
    clusters = mixed["rng"].integers(0, 20, 300)
    (found,) = cluster_margins(mixed["positions"], mixed["score"], clusters, truth, 3.0, n_clusters=20)
    assert found.margin < 0
    assert found.selection.f1 == pytest.approx(found.chance_f1, abs=0.06)
