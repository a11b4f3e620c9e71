"""Classes of picks: what plain torch says of each box, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from cryoscale.data.access import Access
from cryoscale.data.classes import read_classes
from cryoscale.data.rows import Picks
from cryoscale.data.tables import read_table
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.geometry import Block
from cryoscale.stages import classify
from cryoscale.stages.classify import ClassifyStage
from cryoscale.stages.networks import CACHE
from cryoscale.testing.phantoms import small_run
from tests.pipeline.driving import drive
from tests.stages.applied import access_of, answers, install, network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryoscale.data.run import Run

NAMES = ["big one", "small", "rod"]


@pytest.fixture(scope="module")
def picked_run(tmp_path_factory: pytest.TempPathFactory, small_sources: list[Path]) -> Run:
    run = small_run(tmp_path_factory.mktemp("classify") / "run", small_sources)
    assert not drive(run, until="pick").failures
    return run


@pytest.fixture(autouse=True)
def no_networks_kept() -> Iterator[None]:
    yield
    CACHE.close()


def classified(access: Access) -> dict[str, object]:
    stage = ClassifyStage()
    plan = stage.plan(access)
    stage.create(access)
    with stage.open_worker(access) as function:
        for block in plan.phases[0]:
            function(block)
    return stage.seal(access)


@pytest.mark.parametrize(
    "architecture",
    [
        {"name": "dsm-net", "n_classes": 3, "channels": 2, "features": 8},
        {"name": "dsrf3d-v2", "n_classes": 3, "channels": 2, "box": [8, 8, 8]},
    ],
)
@pytest.mark.parametrize("rows", [4096, 10])
def test_classes_are_those_of_the_boxes(
    picked_run: Run, monkeypatch: pytest.MonkeyPatch, architecture: dict[str, object], rows: int
) -> None:
    monkeypatch.setattr(classify, "ROWS_PER_BLOCK", rows)
    module = network(**architecture)
    install(picked_run, module, particles={"names": NAMES})
    access = access_of(picked_run, writes="classes")
    facts = classified(access)
    found = read_classes(picked_run.classes, "alpha")
    reader = classify.classifier(access).reader(access)
    boxes = reader.gather(reader.voxels(access.picks().positions_N3))
    shares = answers(module, boxes[:, None])["cls"]
    assert len(boxes) > 30
    np.testing.assert_allclose(found.shares_NK, shares, atol=1e-4)
    np.testing.assert_array_equal(found.ids_N, found.shares_NK.argmax(axis=1))
    assert found.names == tuple(NAMES)
    np.testing.assert_array_equal(found.names_N, np.array(NAMES)[found.ids_N])
    table = read_table(picked_run.classes, "alpha.parquet")
    assert list(table) == ["class_id", "class_name", "probability", "p_big one", "p_small", "p_rod"]
    assert (table["class_id"].dtype, table["probability"].dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(table["probability"], found.shares_NK.max(axis=1))
    assert facts["rows"] == len(boxes)
    assert sum(facts["by_class"].values()) == len(boxes)  # type: ignore[attr-defined]


def test_no_picks_no_rows(picked_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    install(picked_run, network(name="dsm-net", n_classes=3, channels=2), particles={"names": NAMES})
    monkeypatch.setattr(Access, "pick_count", lambda *_: 0)
    monkeypatch.setattr(Access, "picks", lambda *_: Picks(np.empty((0, 3)), np.empty(0, np.float32)))
    facts = classified(access_of(picked_run, writes="classes"))
    assert facts["empty"]
    found = read_classes(picked_run.classes, "alpha")
    assert (len(found), found.names, found.shares_NK.shape) == (0, tuple(NAMES), (0, 3))


def test_a_part_that_is_missing_is_met(picked_run: Run) -> None:
    install(picked_run, network(name="dsm-net", n_classes=3, channels=2), particles={"names": NAMES})
    access, stage = access_of(picked_run, writes="classes"), ClassifyStage()
    stage.create(access)
    with pytest.raises(StateError, match="does not exist"):
        stage.seal(access)
    with stage.open_worker(access) as function:
        report = function(Block.of_rows(0, 0, access.pick_count()))
    assert report.voxels == access.pick_count() * 512
    assert stage.seal(access)["rows"] == access.pick_count()


def test_a_network_without_classes_is_refused(picked_run: Run) -> None:
    install(picked_run, network(name="edss3d", n_classes=3, channels=2))
    with pytest.raises(ConfigurationError, match="does not say of which class"):
        ClassifyStage().plan(access_of(picked_run, writes="classes"))
