"""Runs with the weights of a supervised network: every stage, resumed block by block, exported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest
import starfile

from cryoscale.cli import run_command
from cryoscale.data.classes import read_classes
from cryoscale.data.ledger import UnitLedger, unit_states
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.data.volumes import ImageVolume
from cryoscale.data.weights import ModelFolder
from cryoscale.formats.points import read_positions
from cryoscale.geometry import Box
from cryoscale.stages.apply import ApplyStage
from cryoscale.stages.networks import CACHE
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.phantoms import small_run
from tests.pipeline.driving import drive
from tests.stages.applied import card_for, network

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ["big one", "small", "rod"]
ALL = ("segment.probabilities=true", "segment.densities=true", "segment.volumes=both")


@pytest.fixture(autouse=True)
def no_networks_kept() -> Iterator[None]:
    yield
    CACHE.close()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder as another run would leave it."""
    folder = tmp_path_factory.mktemp("weights")
    module = network(name="dsm-net", n_classes=3, channels=2, features=8)
    card = card_for(
        module, particles={"names": NAMES}, classes={"names": ["particle"], "colors": [[1, 2, 3]]}
    )
    from cryoscale.data.folder import Folder

    ModelFolder(Folder.of(str(folder))).save(module.state_dict(), card, {})
    return str(folder)


@pytest.fixture(scope="module")
def applied_run(tmp_path_factory: pytest.TempPathFactory, small_sources: list[Path], weights: str) -> Run:
    run = small_run(
        tmp_path_factory.mktemp("applied") / "run", small_sources, "supervised.model=dsm-net",
        f'supervised.weights="{weights}"', *ALL,
    )  # fmt: skip
    result = drive(run)
    assert not result.failures, result.failures
    assert result.exit_code == 0
    return run


def test_every_stage_is_sealed(applied_run: Run) -> None:
    states = unit_states(applied_run.ledger)
    assert {s.stage for s in states} == {
        "identify", "ingest", "pick", "train_supervised", "classify", "segment", "instances",
    }  # fmt: skip
    assert {s.state for s in states} == {"done"}
    assert LabelVolume(applied_run.tomogram("beta"), "classes").facts.class_names == tuple(NAMES)
    before = artifact_digest(applied_run)
    assert not drive(applied_run).tasks
    assert not differences(before, artifact_digest(applied_run))


def test_a_torn_volume_is_made_again(
    applied_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mark is gone, and the shards of its block are torn: that block alone runs, to the same bytes."""
    shutil.copytree(applied_run.folder.url, tmp_path / "run")
    run = Run.at(tmp_path / "run")
    expected = artifact_digest(run)

    def refuse(*_: object) -> None:
        raise RuntimeError("no seal")

    run.ledger.delete("segment/alpha")
    with monkeypatch.context() as broken:
        broken.setattr(ApplyStage, "seal", refuse)
        assert drive(run).exit_code == 1
    (key,) = run.ledger.names("segment/alpha")
    UnitLedger(run.ledger, "segment", "alpha", key).forget([0])
    torn = [run.tomogram("alpha").child(*place) for place in (
        ("labels", "classes", "0"), ("probabilities", "classes", "rod", "0"), ("densities", "classes", "0"),
    )]  # fmt: skip
    for folder in torn:
        data = folder.read_bytes("c/0/0/0")
        folder.write_bytes("c/0/0/0", data[: len(data) // 2])
    again = drive(run)
    assert not again.failures
    assert again.ran["segment"] == 2  # the block, the seal
    assert not differences(expected, artifact_digest(run))


def test_exports(applied_run: Run, tmp_path: Path) -> None:
    assert run_command(["export", applied_run.folder.url, "--to", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {"alpha_classes.star", "alpha_classes.csv", "classes_import.star", "alpha_classes.mrc",
            "alpha_classes-big-one.mrc", "beta_probabilities_classes_rod.mrc",
            "beta_densities_classes.mrc"} <= written  # fmt: skip
    found = read_classes(applied_run.classes, "alpha")
    star = starfile.read(tmp_path / "alpha_classes.star")
    np.testing.assert_array_equal(star["rlnClassNumber"], found.ids_N + 1)
    np.testing.assert_allclose(star["rlnAutopickFigureOfMerit"], found.probability_N, atol=1e-3)
    back = read_positions(tmp_path / "alpha_classes.csv", shape=(40, 64, 64), voxel_size_angstrom=10.0,
                          tomogram="alpha")  # fmt: skip
    assert back.class_N is not None
    assert list(back.class_N) == list(found.names_N)
    for kind, part in (("probabilities", "rod"), ("densities", "")):
        image = ImageVolume(applied_run.tomogram("beta"), kind, "classes", part)  # type: ignore[arg-type]
        file = tmp_path / f"beta_{kind}_classes{'_' * bool(part)}{part}.mrc"
        with mrcfile.open(file, permissive=False) as volume:
            assert volume.data.dtype == np.float32
            assert volume.voxel_size.x == 10
            np.testing.assert_array_equal(
                volume.data, image.pyramid.read(0, Box.whole(image.pyramid.shape(0)))
            )
    with mrcfile.open(tmp_path / "alpha_classes-rod.mrc") as volume:
        assert set(np.unique(volume.data)) <= {0, 1}
