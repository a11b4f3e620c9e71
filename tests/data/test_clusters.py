"""Clusters on storage, and every way to write a selection wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.data.clusters import ClusterFolder, Selection, StoredClustering, parse_selection
from cryoscale.data.folder import Folder
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.learn.losses import IGNORED
from cryoscale.testing.strategies import plain_toml


@pytest.fixture
def clusters(tmp_path: Path) -> ClusterFolder:
    return ClusterFolder(Folder.of(tmp_path))


def stored(seed: int = 0) -> StoredClustering:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 3))
    return StoredClustering(centres, centres.mean(0), centres.std(0), np.array([9, 5, 2, 1]))


def test_clustering_comes_back(clusters: ClusterFolder) -> None:
    assert not clusters.exists
    for read in (clusters.load, lambda: clusters.card):
        with pytest.raises(StateError, match="no clustering"):
            read()
    digest = clusters.save(stored(), {"n_clusters": 4})
    assert np.array_equal(clusters.load().centers_KF, stored().centers_KF)
    assert clusters.card == {"n_clusters": 4, "centers_sha256": digest}
    assert clusters.save(stored(), {"n_clusters": 4}) == digest
    assert clusters.save(stored(1), {"n_clusters": 4}) != digest


def test_earlier_clusterings_are_kept_by_hash(clusters: ClusterFolder) -> None:
    clusters.save(stored(0), {"n_clusters": 4, "lineage": ["older"]})
    first = clusters.keep_earlier()
    clusters.save(stored(1), {"n_clusters": 4, "lineage": clusters.lineage_of(first)})
    assert np.array_equal(clusters.load_earlier(first).centers_KF, stored(0).centers_KF)
    assert clusters.card["lineage"] == [first, "older"]
    with pytest.raises(StateError, match="is gone"):
        clusters.load_earlier("0" * 64)


@pytest.mark.parametrize(
    ("clustering", "accepted"), [("", True), ("older", True), ("first", True), ("x", False)]
)
def test_selection_is_for_this_clustering_or_one_whose_ids_it_keeps(
    clusters: ClusterFolder, clustering: str, accepted: bool
) -> None:
    first = clusters.save(stored(), {"n_clusters": 4, "lineage": ["older"]})
    name = first if clustering == "first" else clustering
    assert clusters.accepts(Selection(name, (("a", (1,)),), ((0, 0, 0),))) == accepted


def parse(text: str, clusters: ClusterFolder) -> Selection | None:
    clusters.folder.write_bytes("selection.toml", text.encode())
    return clusters.selection(4)


def test_selection_comes_back(clusters: ClusterFolder) -> None:
    assert clusters.selection(4) is None
    chosen = parse(
        '[classes.a]\nclusters = [3, 1, 3]\ncolor = "#0a0B0c"\n[classes.b]\nclusters = [0]', clusters
    )
    assert chosen is not None
    assert chosen.classes == (("a", (1, 3)), ("b", (0,)))
    assert chosen.colors[0] == (10, 11, 12)
    assert chosen.class_of_cluster(4).tolist() == [2, 1, 0, 1]
    clusters.folder.write_toml("selection.toml", chosen.to_toml())
    assert clusters.selection(4) == chosen


@pytest.mark.parametrize("text", ["", "[classes]", "[classes.a]\nclusters = []", 'clustering = "x"'])
def test_selection_that_chooses_nothing_is_none(clusters: ClusterFolder, text: str) -> None:
    assert parse(text, clusters) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[classes.a]\nclusters = [4]", ["'a'", "cluster 4", "0 to 3"]),
        ("[classes.a]\nclusters = [-1]", ["cluster -1"]),
        ("[classes.a]\nclusters = [1]\n[classes.b]\nclusters = [1]", ["cluster 1", "'a'", "'b'"]),
        ("[classes.a]\nclusters = 3", ["[classes.a]", "clusters = [numbers]"]),
        ("[classes.a]\nclusters = [true]", ["clusters = [numbers]"]),
        ("[classes.a]\nclusters = [1.0]", ["clusters = [numbers]"]),
        ("[classes.a]\ncluster = [1]", ["unknown key 'cluster'", "'clusters'"]),
        ("[classes.a]\nclusters = [1]\ncolour = 'red'", ["unknown key 'colour'", "'color'"]),
        ("[classes.a]\nclusters = [1]\ncolor = 'red'", ["'red'", "#e69f00"]),
        ("[class.a]\nclusters = [1]", ["unknown key 'class'", "'classes'"]),
        ("classes = [1, 2]", ["'classes' must be tables"]),
        ("clustering = 3\n[classes.a]\nclusters = [1]", ["clustering = 3"]),
        ("[classes.a", ["not valid TOML"]),
    ],
)
def test_message_says_what_is_wrong_with_the_selection(
    clusters: ClusterFolder, text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, clusters)
    for word in ["selection.toml", *words]:
        assert word in str(caught.value)


def test_more_classes_than_a_label_volume_holds() -> None:
    """The last value of a byte is not a class: it marks voxels that a training leaves out."""
    classes = {f"c{i}": {"clusters": [i]} for i in range(255)}
    with pytest.raises(ConfigurationError, match="at most 254"):
        parse_selection({"classes": classes}, 300, origin="selection.toml")
    classes.pop("c0")
    chosen = parse_selection({"classes": classes}, 300, origin="selection.toml")
    assert chosen is not None
    assert len(chosen.classes) == 254 == IGNORED - 1


CLASS = st.dictionaries(st.sampled_from(["clusters", "color", "x"]), plain_toml(leaves=4), max_size=3)
RAW = st.fixed_dictionaries(
    {},
    optional={
        "clustering": plain_toml(leaves=2),
        "classes": plain_toml() | st.dictionaries(st.text(max_size=4), CLASS | plain_toml(), max_size=4),
        "other": plain_toml(leaves=2),
    },
)


@settings(max_examples=200)
@given(RAW)
def test_garbage_is_a_configuration_error_and_nothing_else(raw: dict[str, Any]) -> None:
    try:
        chosen = parse_selection(raw, 4, origin="selection.toml")
    except ConfigurationError as error:
        assert "selection.toml" in str(error)  # noqa: PT017 - some values are fine
        return
    if chosen is not None:
        assert parse_selection(chosen.to_toml(), 4, origin="x") == chosen
        assert tomli_w.dumps(chosen.to_toml())
