"""Subtomograms of a simulated run with their truth, as one training set.

Shape suffixes: N subtomograms, ZYX voxels, 4 quaternion x, y, z, w, 3 coordinates z, y, x.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.run import Run
from cryoscale.data.subtomograms import TABLE, Subtomograms
from cryoscale.data.tables import Table, concatenate
from cryoscale.data.tomogram import VOXEL_SIZE_TOLERANCE, Tomogram
from cryoscale.errors import ConfigurationError, StateError

NEEDED = ("class", "class_name", "split", "z", "y", "x", "qx", "qy", "qz", "qw")


@dataclass(frozen=True)
class Boxes:
    """Subtomograms and what is true of them.

    Parameters
    ----------
    data_NZYX : (N, Z, Y, X) float32
        As in the tomogram: zero mean, unit sd, objects dark.
    density_NZYX : (N, Z, Y, X) float32
        The particle alone, without noise, objects positive.
    mask_NZYX : (N, Z, Y, X) uint8
        Where it is.
    class_N : (N,) int64
        Row of `class_names`.
    class_names : tuple of str
        By label value.
    split_N : (N,) str
        "train", "validation" or "test".
    tomogram_N, row_N : (N,) str, int64
        Where each comes from.
    quaternion_N4, offsets_N3 : (N, 4), (N, 3) float64
        Its turn, and where its centre lies beyond the middle voxel, voxels.
    voxel_size_angstrom : float
        Voxel size.
    """

    data_NZYX: npt.NDArray[np.float32]
    density_NZYX: npt.NDArray[np.float32]
    mask_NZYX: npt.NDArray[np.uint8]
    class_N: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    split_N: npt.NDArray[np.str_]
    tomogram_N: npt.NDArray[np.str_]
    row_N: npt.NDArray[np.int64]
    quaternion_N4: npt.NDArray[np.float64]
    offsets_N3: npt.NDArray[np.float64]
    voxel_size_angstrom: float

    def __len__(self) -> int:
        return len(self.data_NZYX)

    @property
    def side(self) -> int:
        """Voxels along an edge."""
        return int(self.data_NZYX.shape[-1])

    @property
    def names_N(self) -> npt.NDArray[np.str_]:
        """Name of the class of each."""
        return np.array(self.class_names)[self.class_N]

    def digest(self) -> str:
        """Hash what is in the boxes, for what is made from them."""
        digest = hashlib.sha256(repr((self.data_NZYX.shape, self.class_names)).encode())
        for values in (self.data_NZYX, self.density_NZYX, self.mask_NZYX, self.class_N):
            digest.update(np.ascontiguousarray(values).data)
        digest.update("".join(self.split_N).encode())
        return digest.hexdigest()[:16]


def read_boxes(run: Run, tomograms: Sequence[str] = ()) -> Boxes:
    """Read the subtomograms of a run into memory.

    Parameters
    ----------
    run : Run
        Of a simulation that cut subtomograms.
    tomograms : sequence of str
        Only those of these; none: of all.

    Raises
    ------
    StateError
        There are none.
    ConfigurationError
        An unknown tomogram, boxes of different sides or voxel sizes, or of one class only.
    """
    names = [source.name for source in run.config.inputs]
    unknown = sorted(set(tomograms) - set(names))
    if unknown:
        raise ConfigurationError(
            f"{run.folder.url} has no tomogram '{unknown[0]}'.", remedy=f"There are: {', '.join(names)}."
        )
    wanted = [name for name in names if not tomograms or name in tomograms]
    sets = {name: Subtomograms(run.subtomograms(name)) for name in wanted}
    sets = {name: found for name, found in sets.items() if found.folder.exists(TABLE)}
    if not sets:
        raise StateError(
            f"{run.folder.url} holds no subtomograms{' of these tomograms' if tomograms else ''}.",
            remedy="Simulate a run that cuts them, for example: cryoscale simulate OUT --recipe dsm-net-a; "
            "or set simulate.subtomograms.count of a simulated run.",
        )
    sizes = [Tomogram(run.tomogram(name)).facts.levels[0].voxel_size_angstrom for name in sets]
    if max(sizes) / min(sizes) - 1 > VOXEL_SIZE_TOLERANCE:
        raise ConfigurationError(
            f"subtomograms of {run.folder.url} have voxels from {min(sizes):g} to {max(sizes):g} Å.",
            remedy="Name tomograms of one voxel size with --tomogram.",
        )
    return _joined(run, sets, sizes[0])


def _joined(run: Run, sets: dict[str, Subtomograms], voxel_size: float) -> Boxes:
    tables = [_checked(found) for found in sets.values()]
    counts = [len(table["class"]) for table in tables]
    table = concatenate([{key: t[key] for key in (*NEEDED, "row")} for t in tables])
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in ("data", "density", "mask"):
        parts = [found.read(name, slice(0, n)) for found, n in zip(sets.values(), counts, strict=True) if n]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ConfigurationError(
                f"subtomograms of {run.folder.url} have sides of "
                f"{', '.join(sorted({str(part.shape[-1]) for part in parts}))} voxels.",
                remedy="Name tomograms whose boxes agree with --tomogram.",
            )
        arrays[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    values, first = np.unique(table["class"], return_index=True)
    class_names = tuple(str(name) for name in table["class_name"][first])
    if len(class_names) < 2:
        raise ConfigurationError(
            f"all {sum(counts)} subtomograms of {run.folder.url} are of one class, '{class_names[0]}'.",
            remedy="Classes are found, or told apart, among several: simulate more of them.",
        )
    positions_N3 = np.stack([table[axis] for axis in "zyx"], axis=1).astype(np.float64) / voxel_size
    return Boxes(
        arrays["data"], arrays["density"], arrays["mask"],
        np.searchsorted(values, table["class"]).astype(np.int64), class_names, table["split"].astype(str),
        np.repeat(list(sets), counts), table["row"].astype(np.int64),
        np.stack([table[q] for q in ("qx", "qy", "qz", "qw")], axis=1).astype(np.float64),
        positions_N3 - np.rint(positions_N3), voxel_size,
    )  # fmt: skip


def _checked(found: Subtomograms) -> Table:
    table = found.table
    missing = [name for name in (*NEEDED, "row") if name not in table]
    if missing:
        raise ConfigurationError(
            f"{found.folder.path(TABLE)} has no column '{missing[0]}'.",
            remedy="Cut the subtomograms again with this version.",
        )
    return table
