"""The cluster stage: engines, rows that do not fit the budget, and the same clusters either way."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest

from cryoscale.config import apply_settings
from cryoscale.data.run import Run
from cryoscale.stages import cluster
from tests.stages.granting import grant


def fitted(run: Run, *words: str) -> tuple[Any, dict[str, Any]]:
    """Fit anew with other settings; returns what is stored and its card."""
    _, access = grant(run, "cluster")
    stage, access = grant(
        run, "cluster", key="/".join(words) or "plain", config=apply_settings(access.config, list(words))
    )
    with dask.config.set(scheduler="synchronous"):
        stage.compute(access)
    return run.clusters.load(), run.clusters.card


def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Note what the stage asks of the fit."""
    from cryoscale.learn import kmeans

    asked: list[dict[str, Any]] = []
    fit = kmeans.fit_kmeans
    monkeypatch.setattr(kmeans, "fit_kmeans", lambda *a, **k: asked.append(k) or fit(*a, **k))
    return asked


def test_dask_ml_finds_the_same_clusters(copied_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told(monkeypatch)
    own, card = fitted(copied_run)
    peer, peer_card = fitted(copied_run, "cluster.engine=dask-ml")
    assert [words["engine"] for words in asked] == ["lloyd", "dask-ml"]
    assert peer_card["inertia"] == pytest.approx(card["inertia"], rel=0.02)
    assert len(own.centers_KF) == len(peer.centers_KF)


def test_rows_beyond_the_budget_are_read_in_each_iteration_and_give_the_same_bytes(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = told(monkeypatch)
    monkeypatch.setattr(cluster, "ROWS_PER_LOAD", 7)  # many chunks, the last one shorter
    _, held = fitted(copied_run, "execution.memory_budget=64GB")
    _, read = fitted(copied_run, "execution.memory_budget=1MB")
    assert [words["in_memory"] for words in asked] == [True, False]
    assert held["centers_sha256"] == read["centers_sha256"]
    assert (held["inertia"], held["iterations"]) == (read["inertia"], read["iterations"])


def test_the_promise_holds_the_rows_only_where_they_fit(copied_run: Run) -> None:
    _, access = grant(copied_run, "cluster")

    def promise(*words: str) -> int:
        stage, other = grant(copied_run, "cluster", config=apply_settings(access.config, list(words)))
        return stage.bytes_needed(other)

    small, large = promise("execution.memory_budget=1MB"), promise("execution.memory_budget=64GB")
    assert small < large < promise("execution.memory_budget=64GB", "cluster.engine=dask-ml")


def test_loaders_cover_every_row_once(copied_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, access = grant(copied_run, "cluster")
    monkeypatch.setattr(cluster, "ROWS_PER_LOAD", 5)
    loaders, lengths = cluster._chunks(access)
    rows = [loader() for loader in loaders]
    assert [len(part) for part in rows] == lengths
    whole = [access.encodings(tomogram).read() for tomogram in access.tomograms]
    np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(whole))
