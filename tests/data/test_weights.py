"""Models on storage: the weights are those that the card names, checkpoints belong to one key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoscale.data.folder import Folder
from cryoscale.data.weights import CHECKPOINT, WEIGHTS, ModelCheckpoint, ModelFolder
from cryoscale.errors import FormatError, StateError

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3).T, "layer.bias": torch.ones(2)}
HISTORY = {"epoch": np.array([1, 2]), "train_loss": np.array([0.5, 0.25])}


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    made = ModelFolder(Folder.of(tmp_path / "encoder"))
    made.save(STATE, {"architecture": {"name": "x"}}, HISTORY)
    return made


def test_model_comes_back(model: ModelFolder) -> None:
    state = model.load()
    assert {k: v.tolist() for k, v in state.items()} == {k: v.tolist() for k, v in STATE.items()}
    assert model.history["train_loss"].tolist() == [0.5, 0.25]
    assert model.card["architecture"] == {"name": "x"}


def test_same_weights_same_hash(model: ModelFolder, tmp_path: Path) -> None:
    other = ModelFolder(Folder.of(tmp_path / "other"))
    assert other.save(dict(reversed(STATE.items())), {}, HISTORY) == model.card["weights_sha256"]
    assert other.save(STATE | {"layer.bias": torch.zeros(2)}, {}, HISTORY) != model.card["weights_sha256"]


def test_weights_that_are_not_those_of_the_card(model: ModelFolder) -> None:
    data = bytearray(model.folder.read_bytes(WEIGHTS))
    data[-1] ^= 1
    model.folder.write_bytes(WEIGHTS, bytes(data))
    with pytest.raises(FormatError, match="its card says"):
        model.load()


def test_unfinished_model_is_no_model(tmp_path: Path) -> None:
    model = ModelFolder(Folder.of(tmp_path))
    assert not model.exists
    with pytest.raises(StateError, match="no trained model"):
        _ = model.card
    model.folder.write_bytes(WEIGHTS, b"x")  # a save that was killed before its card
    assert not model.exists


def test_card_goes_before_the_weights_change(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that dies half way leaves no card that names other weights."""
    write = Folder.write_bytes

    def die(folder: Folder, name: str, data: bytes) -> None:
        write(folder, name, data)
        if name == WEIGHTS:
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        model.save({"other": torch.zeros(1)}, {}, HISTORY)
    assert not model.exists


def test_checkpoint_comes_back_for_its_key_only(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    mine = ModelCheckpoint(folder, "k1")
    assert mine.load() is None
    mine.save({"weight": torch.ones(2), "progress": {"epoch": 3, "losses": [0.5]}})
    again = mine.load()
    assert again is not None
    assert again["progress"] == {"epoch": 3, "losses": [0.5]}
    assert again["weight"].tolist() == [1, 1]
    assert ModelCheckpoint(folder, "k2").load() is None


@pytest.mark.parametrize("data", [b"", b"\x00" * 4, b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_broken_checkpoint_is_ignored(tmp_path: Path, data: bytes) -> None:
    folder = Folder.of(tmp_path)
    folder.write_bytes(CHECKPOINT, data)
    assert ModelCheckpoint(folder, "k1").load() is None


def test_save_removes_the_checkpoint(model: ModelFolder) -> None:
    ModelCheckpoint(model.folder, "k").save({"w": torch.ones(1), "progress": {}})
    model.save(STATE, {}, HISTORY)
    assert not model.folder.exists(CHECKPOINT)
