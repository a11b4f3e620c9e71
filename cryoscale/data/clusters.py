"""Clusters on storage: centres, the suggestion, and the selection that a person edits."""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cryoscale.data.folder import Folder
from cryoscale.errors import ConfigurationError, StateError

CENTERS = "centers.safetensors"
CARD = "clusters.toml"
SELECTION = "selection.toml"
SUGGESTION = "suggestion.toml"
MOST_CLASSES = 254  # of a uint8: 0 is background, and 255 marks voxels that a training leaves out

# Colours that people with red-green blindness tell apart; Okabe and Ito 2008.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (153, 153, 153),
)  # fmt: skip


@dataclass(frozen=True)
class StoredClustering:
    """A fitted k-means: centres in the units of the encodings, and the scaling used for distances."""

    centers_KF: npt.NDArray[np.float64]
    mean_F: npt.NDArray[np.float64]
    scale_F: npt.NDArray[np.float64]
    counts_K: npt.NDArray[np.int64]


def _parse(data: bytes) -> StoredClustering:
    arrays = safetensors.numpy.load(data)
    return StoredClustering(arrays["centers"], arrays["mean"], arrays["scale"], arrays["counts"])


@dataclass(frozen=True)
class ClusterFolder:
    """`clusters/`: centres, a card, assignments, and the selection."""

    folder: Folder

    def save(self, clustering: StoredClustering, card: Mapping[str, Any]) -> str:
        """Write a clustering, its card last, and return its hash."""
        data = safetensors.numpy.save(
            {
                "centers": np.ascontiguousarray(clustering.centers_KF, dtype=np.float64),
                "mean": np.ascontiguousarray(clustering.mean_F, dtype=np.float64),
                "scale": np.ascontiguousarray(clustering.scale_F, dtype=np.float64),
                "counts": np.ascontiguousarray(clustering.counts_K, dtype=np.int64),
            }
        )
        digest = hashlib.sha256(data).hexdigest()
        self.folder.delete(CARD)
        self.folder.write_bytes(CENTERS, data)
        self.folder.write_toml(CARD, {**card, "centers_sha256": digest})
        return digest

    @property
    def exists(self) -> bool:
        """Whether a finished clustering stands here."""
        return self.folder.exists(CARD)

    @property
    def card(self) -> dict[str, Any]:
        """The card; raises `StateError` when there is no clustering."""
        if not self.exists:
            raise StateError(f"{self.folder.url} holds no clustering ({CARD} is missing).")
        return self.folder.read_toml(CARD)

    def load(self) -> StoredClustering:
        """Read the centres; raises `StateError` when there are none."""
        if not self.exists:
            raise StateError(f"{self.folder.url} holds no clustering ({CARD} is missing).")
        return _parse(self.folder.read_bytes(CENTERS))

    def keep_earlier(self) -> str:
        """Put the present clustering aside as an input for a re-fit and return its hash."""
        digest = str(self.card["centers_sha256"])
        self.folder.write_bytes(f"earlier/{digest[:16]}.safetensors", self.folder.read_bytes(CENTERS))
        self.folder.write_toml(f"earlier/{digest[:16]}.toml", self.card)
        return digest

    def lineage_of(self, digest: str) -> list[str]:
        """List an earlier clustering and those whose ids it kept, newest first."""
        card = self.folder.read_toml(f"earlier/{digest[:16]}.toml")
        return [digest, *card.get("lineage", [])]

    def load_earlier(self, digest: str) -> StoredClustering:
        """Read a clustering that was put aside; raises `StateError` when it is gone."""
        name = f"earlier/{digest[:16]}.safetensors"
        if not self.folder.exists(name):
            raise StateError(f"{self.folder.path(name)}, whose ids the re-fit should keep, is gone.")
        return _parse(self.folder.read_bytes(name))

    def selection(self, n_clusters: int) -> Selection | None:
        """Read `selection.toml`; None when it is missing or chooses nothing.

        One made for another clustering may name clusters that this one does not have; `accepts` tells.

        Raises
        ------
        ConfigurationError
            It is not TOML, or `parse_selection` refuses it.
        """
        raw = self._raw_selection()
        if raw is None:
            return None
        most = n_clusters if not self.exists or self._fits(raw) else sys.maxsize
        return parse_selection(raw, most, origin=self.folder.path(SELECTION))

    def chosen(self) -> Selection | None:
        """Read the selection if it was made for this clustering; None for any other, or without a clustering.

        Raises
        ------
        ConfigurationError
            It is for this clustering, and `selection` refuses it.
        """
        raw = self._raw_selection() if self.exists else None
        if raw is None or not self._fits(raw):
            return None
        return parse_selection(raw, int(self.card["n_clusters"]), origin=self.folder.path(SELECTION))

    def accepts(self, selection: Selection) -> bool:
        """Whether a selection was made for this clustering, or for one whose ids it keeps."""
        return self._fits({"clustering": selection.clustering})

    def _fits(self, raw: Mapping[str, Any]) -> bool:
        named, card = raw.get("clustering", ""), self.card
        return not isinstance(named, str) or named in ("", card["centers_sha256"], *card.get("lineage", []))

    def _raw_selection(self) -> dict[str, Any] | None:
        if not self.folder.exists(SELECTION):
            return None
        try:
            return self.folder.read_toml(SELECTION)
        except StateError as error:  # a person wrote it
            raise ConfigurationError(str(error)) from error


@dataclass(frozen=True)
class Selection:
    """Which clusters make up which class; class values are 1, 2, … in this order.

    Parameters
    ----------
    clustering : str
        Hash of the clustering that the person looked at; empty for any.
    classes : tuple of (str, tuple of int)
        Class name and its cluster ids, sorted.
    """

    clustering: str
    classes: tuple[tuple[str, tuple[int, ...]], ...]
    colors: tuple[tuple[int, int, int], ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of their values."""
        return tuple(name for name, _ in self.classes)

    def class_of_cluster(self, n_clusters: int) -> npt.NDArray[np.int32]:
        """Return the class value of each cluster, 0 for those not chosen."""
        table = np.zeros(n_clusters, dtype=np.int32)
        for value, (_, clusters) in enumerate(self.classes, start=1):
            table[list(clusters)] = value
        return table

    @property
    def content(self) -> list[Any]:
        """What the selection means, for keys: colours and comments do not matter."""
        return [[name, list(clusters)] for name, clusters in self.classes]

    def to_toml(self) -> dict[str, Any]:
        """Return the tables of `selection.toml`."""
        classes = {
            name: {"clusters": list(clusters), "color": "#{:02x}{:02x}{:02x}".format(*color)}
            for (name, clusters), color in zip(self.classes, self.colors, strict=True)
        }
        return {"clustering": self.clustering, "classes": classes}


def parse_selection(raw: Mapping[str, Any], n_clusters: int, *, origin: str) -> Selection | None:
    """Validate what a person wrote.

    Raises
    ------
    ConfigurationError
        Unknown keys, cluster ids that do not exist, or a cluster in two classes.
    """
    _check_keys(raw, ("clustering", "classes"), origin)
    clustering = raw.get("clustering", "")
    if not isinstance(clustering, str):
        raise ConfigurationError(f"{origin}: clustering = {clustering!r} is not the hash of a clustering.")
    tables = raw.get("classes", {})
    if not isinstance(tables, Mapping):
        raise ConfigurationError(f"{origin}: 'classes' must be tables such as [classes.ribosome].")
    seen: dict[int, str] = {}
    classes, colors = [], []
    for number, (name, table) in enumerate(tables.items()):
        clusters = _cluster_ids(name, table, n_clusters, origin)
        for cluster in clusters:
            if cluster in seen:
                raise ConfigurationError(
                    f"{origin}: cluster {cluster} is in '{seen[cluster]}' and in '{name}'."
                )
            seen[cluster] = name
        if clusters:
            classes.append((name, clusters))
            colors.append(_color(table, number, name, origin))
    if not classes:
        return None
    if len(classes) > MOST_CLASSES:
        raise ConfigurationError(
            f"{origin}: {len(classes)} classes; a label volume holds at most {MOST_CLASSES}."
        )
    return Selection(clustering, tuple(classes), tuple(colors))


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3) or known[-1:]
            raise ConfigurationError(f"{where}: unknown key '{key}'; did you mean '{near[0]}'?")


def _cluster_ids(name: str, table: Any, n_clusters: int, origin: str) -> tuple[int, ...]:
    if isinstance(table, Mapping):
        _check_keys(table, ("color", "clusters"), f"{origin}: [classes.{name}]")
    clusters = table.get("clusters") if isinstance(table, Mapping) else None
    if not isinstance(clusters, list) or not all(type(c) is int for c in clusters):
        raise ConfigurationError(f"{origin}: [classes.{name}] needs clusters = [numbers], got {clusters!r}.")
    for cluster in clusters:
        if not 0 <= cluster < n_clusters:
            raise ConfigurationError(
                f"{origin}: class '{name}' names cluster {cluster}; there are clusters 0 to {n_clusters - 1}."
            )
    return tuple(sorted(set(clusters)))


def _color(table: Mapping[str, Any], number: int, name: str, origin: str) -> tuple[int, int, int]:
    text = table.get("color")
    if text is None:
        return PALETTE[number % len(PALETTE)]
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", str(text)):
        raise ConfigurationError(f"{origin}: class '{name}' has color {text!r}; write it as '#e69f00'.")
    value = int(str(text)[1:], 16)
    return value >> 16, (value >> 8) & 255, value & 255
