"""A selection belongs to one clustering: what another's says is nobody's error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoscale.data.clusters import ClusterFolder, StoredClustering
from cryoscale.data.folder import Folder
from cryoscale.errors import ConfigurationError


@pytest.fixture
def clusters(tmp_path: Path) -> ClusterFolder:
    folder = ClusterFolder(Folder.of(tmp_path))
    centres = np.random.default_rng(0).normal(size=(4, 3))
    stored = StoredClustering(centres, centres.mean(0), centres.std(0), np.array([9, 5, 2, 1]))
    folder.save(stored, {"n_clusters": 4, "lineage": ["older"]})
    return folder


def write(clusters: ClusterFolder, clustering: str, classes: str) -> None:
    clusters.folder.write_bytes("selection.toml", f'clustering = "{clustering}"\n{classes}'.encode())


@pytest.mark.parametrize(
    "classes", ["[classes.a]\nclusters = [2]", "[classes.a]\nclusters = [99]", "classes = 3"]
)
def test_selection_for_another_clustering_is_none(clusters: ClusterFolder, classes: str) -> None:
    write(clusters, "another", classes)
    assert clusters.chosen() is None


def test_selection_with_unknown_ids_of_another_clustering_can_be_looked_at(clusters: ClusterFolder) -> None:
    write(clusters, "another", "[classes.a]\nclusters = [99]")
    found = clusters.selection(4)
    assert found is not None
    assert found.classes == (("a", (99,)),)
    assert not clusters.accepts(found)


@pytest.mark.parametrize("own", ["", "older"])
def test_selection_for_this_clustering_is_checked(clusters: ClusterFolder, own: str) -> None:
    write(clusters, own, "[classes.a]\nclusters = [3]")
    chosen = clusters.chosen()
    assert chosen is not None
    assert chosen.classes == (("a", (3,)),)
    write(clusters, own, "[classes.a]\nclusters = [4]")
    for read in (clusters.chosen, lambda: clusters.selection(4)):
        with pytest.raises(ConfigurationError, match="names cluster 4; there are clusters 0 to 3"):
            read()


def test_without_clustering_nothing_is_chosen(clusters: ClusterFolder) -> None:
    write(clusters, "", "[classes.a]\nclusters = [1]")
    clusters.folder.delete("clusters.toml")
    assert clusters.chosen() is None


def test_selection_that_is_no_toml_is_named(clusters: ClusterFolder) -> None:
    clusters.folder.write_bytes("selection.toml", b"[classes")
    with pytest.raises(ConfigurationError, match=r"selection\.toml is not valid TOML"):
        clusters.chosen()
