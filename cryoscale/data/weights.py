"""Trained networks on storage: safetensors, and a card that a person can read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch

from cryoscale.data.folder import Folder
from cryoscale.data.tables import Table, read_table, write_table
from cryoscale.errors import FormatError, StateError

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights.safetensors"
CARD = "model.toml"
CHECKPOINT = "checkpoint.safetensors"
PROGRESS = "progress.json"


_SAID = ("architecture", "classes", "particles", "patch", "slices", "preprocessing", "voxel_size_angstrom")
"""What applying a segmenter takes from its card, beside the weights."""


def identity_of(card: Mapping[str, Any]) -> str:
    """Name what a model computes, and what its outputs mean.

    Of an encoder it is the hash of its weights and, if it adds invariants, of these too; of others that of
    the weights and of all that is read from the card when they are applied: with other names for its classes
    a network makes another label volume.

    Raises
    ------
    StateError
        The card does not say which weights it is of.
    """
    weights, added = card.get("weights_sha256"), card.get("invariants")
    if not isinstance(weights, str):
        raise StateError(
            "a model card does not name its weights (weights_sha256 is missing): it is none of cryoscale's.",
            remedy="Give the folder of a model that a run has trained.",
        )
    if card.get("architecture", {}).get("name") == "autoencoder3d":
        if not added:
            return weights
        return hashlib.sha256((weights + json.dumps(added, sort_keys=True)).encode()).hexdigest()
    said = {key: card[key] for key in _SAID if key in card}
    return hashlib.sha256((weights + json.dumps(said, sort_keys=True)).encode()).hexdigest()


@dataclass(frozen=True)
class ModelFolder:
    """`models/<name>/`: weights, card, history; a checkpoint and its progress while training."""

    folder: Folder

    def save(
        self, state: Mapping[str, torch.Tensor], card: Mapping[str, Any], history: Mapping[str, Any]
    ) -> str:
        """Write a finished model, the card last, and return the hash of its weights.

        Raises `OvertakenError` when the model is somebody else's meanwhile, or finished.
        """
        data = safetensors.torch.save({key: value.contiguous().cpu() for key, value in state.items()})
        digest = hashlib.sha256(data).hexdigest()
        self.folder.guard(anew=True)
        self.folder.delete(CARD)
        self.folder.write_bytes(WEIGHTS, data)
        write_table(self.folder, "history.parquet", history)
        self.folder.write_toml(CARD, {**card, "weights_sha256": digest})
        self.end_training()
        return digest

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Write how far a training is, for people and for `status`; removed when the model is saved."""
        self.folder.write_json(PROGRESS, dict(progress))

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far a training is, or None when there is none going on (or none that was killed)."""
        try:
            found = self.folder.read_json(PROGRESS)
        except (FileNotFoundError, StateError):
            return None
        return found if isinstance(found, dict) else None

    def end_training(self) -> None:
        """Remove what only an unfinished training needs."""
        self.folder.delete(CHECKPOINT)
        self.folder.delete(PROGRESS)

    def finished(self, key: str) -> dict[str, Any] | None:
        """Return the card of an undamaged model that was made for a key, or None.

        A run that was killed after a training and before its seal finds the work of hours here.
        """
        if not self.exists:
            return None
        try:
            card = self.card
            if card.get("key") != key:
                return None
            self.load()
        except (OSError, StateError, FormatError):
            return None
        return card

    @property
    def exists(self) -> bool:
        """Whether a finished model stands here."""
        return self.folder.exists(CARD)

    @property
    def card(self) -> dict[str, Any]:
        """The model card; raises `StateError` when there is no finished model."""
        if not self.exists:
            raise StateError(f"{self.folder.url} holds no trained model ({CARD} is missing).")
        return self.folder.read_toml(CARD)

    @property
    def history(self) -> Table:
        """One row per epoch."""
        return read_table(self.folder, "history.parquet")

    def load(self) -> dict[str, torch.Tensor]:
        """Read the weights and check them against the card.

        Raises
        ------
        FormatError
            The file is not safetensors, or not the one that the card names.
        """
        data = self.folder.read_bytes(WEIGHTS)
        digest = hashlib.sha256(data).hexdigest()
        expected = self.card.get("weights_sha256")
        if digest != expected:
            raise FormatError(
                f"{self.folder.path(WEIGHTS)} has SHA-256 {digest[:12]}…, "
                f"its card says {str(expected)[:12]}….",
                remedy="Restore the file, or delete the model's folder and train again.",
            )
        return _parse(data, self.folder.path(WEIGHTS))


@dataclass(frozen=True)
class ModelCheckpoint:
    """The state of an unfinished training, valid for one key only.

    Parameters
    ----------
    folder : Folder
        The model's folder.
    key : str
        What the training depends on; a checkpoint of another key is ignored.
    """

    folder: Folder
    key: str

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state of an epoch, replacing the previous one in a single step.

        Tensors go into the file as such; the entry `progress`, plain numbers and lists, into its metadata.
        """
        notes = {"key": self.key, "progress": json.dumps(state["progress"], sort_keys=True)}
        tensors = {name: value for name, value in state.items() if name != "progress"}
        self.folder.write_bytes(CHECKPOINT, safetensors.torch.save(tensors, metadata=notes))

    def drop(self) -> None:
        """Remove the state, so that the training begins anew."""
        self.folder.delete(CHECKPOINT)

    def load(self) -> dict[str, Any] | None:
        """Read the state, or None when there is none of this key."""
        if not self.folder.exists(CHECKPOINT):
            return None
        data = self.folder.read_bytes(CHECKPOINT)
        notes = _metadata(data)
        if notes.get("key") != self.key:
            return None
        state: dict[str, Any] = dict(_parse(data, self.folder.path(CHECKPOINT)))
        return state | {"progress": json.loads(notes["progress"])}


def _parse(data: bytes, origin: str) -> dict[str, torch.Tensor]:
    try:
        return dict(safetensors.torch.load(data))
    except safetensors.SafetensorError as error:
        raise FormatError(f"{origin} is not a readable safetensors file: {error}.") from error


def _metadata(data: bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file: an 8-byte length, then a JSON header."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        return {}
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return {}
    notes = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return notes if isinstance(notes, dict) else {}
