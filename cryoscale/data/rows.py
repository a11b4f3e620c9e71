"""Picks, encodings and assignments: one row per pick, in the same order for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from cryoscale.data.chunk_codecs import chunk_codec
from cryoscale.data.folder import Folder
from cryoscale.data.objects import write_parts
from cryoscale.data.pyramid import open_store
from cryoscale.data.tables import Table, count_rows, read_notes, read_table, write_table
from cryoscale.errors import LayoutError, StateError

ROWS_PER_BLOCK = 4096  # rows of an encode block and of a shard of the encodings
PICK_TILE_VOXELS = 128  # picks are sorted by tiles of this edge at the working level


@dataclass(frozen=True)
class Picks:
    """The picks of one tomogram: positions in Å (z, y, x), and a score that is larger for better ones."""

    positions_N3: npt.NDArray[np.float64]
    scores_N: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.positions_N3)

    @classmethod
    def from_table(cls, table: Table) -> Picks:
        """Take the columns z, y, x, score."""
        positions = np.stack([table["z"], table["y"], table["x"]], axis=1).astype(np.float64)
        return cls(positions, table["score"].astype(np.float32))

    def to_table(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns z, y, x (float64, Å) and score (float32)."""
        z, y, x = self.positions_N3.astype(np.float64).reshape(-1, 3).T
        return {"z": z, "y": y, "x": x, "score": self.scores_N.astype(np.float32)}


def write_picks(
    folder: Folder, tomogram: str, picks: Picks, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write `picks/<tomogram>.parquet`; the rows are expected in their final order."""
    notes = {"unit": "angstrom", "axes": "zyx", **(notes or {})}
    write_table(folder, f"{tomogram}.parquet", picks.to_table(), notes=notes)


def read_pick_notes(folder: Folder, tomogram: str) -> dict[str, str]:
    """Return what is noted beside the picks of a tomogram, touching metadata only."""
    return read_notes(folder, f"{tomogram}.parquet")


def read_picks(folder: Folder, tomogram: str) -> Picks:
    """Read `picks/<tomogram>.parquet`; raises `StateError` when there is none."""
    return Picks.from_table(read_table(folder, f"{tomogram}.parquet"))


def count_picks(folder: Folder, tomogram: str) -> int:
    """Return how many picks a tomogram has, touching metadata only."""
    return count_rows(folder, f"{tomogram}.parquet")


class Encodings:
    """The (N, F) float32 array of a tomogram's encodings; row n is pick n.

    Parameters
    ----------
    folder : Folder
        `encodings/<tomogram>.zarr`.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def create(self, rows: int, dimension: int) -> None:
        """Make the empty array, replacing what stood there."""
        self.folder.delete()
        zarr.create_array(
            open_store(self.folder, read_only=False),
            shape=(rows, dimension),
            dtype="float32",
            chunks=(ROWS_PER_BLOCK, dimension),
            compressors=zarr.codecs.ZstdCodec(level=1),
            fill_value=0,
            dimension_names=("pick", "feature"),
        )

    def _open(self, mode: str) -> Any:
        try:
            return zarr.open_array(open_store(self.folder, read_only=mode == "r"), mode=mode)
        except (FileNotFoundError, ValueError) as error:
            raise StateError(f"{self.folder.url} does not exist.") from error

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and features."""
        rows, features = self._open("r").shape
        return int(rows), int(features)

    def write(self, start: int, encodings_NF: npt.NDArray[np.float32]) -> None:
        """Write one block of rows: a whole chunk, or the last, shorter one."""
        array = self._open("r+")
        stop = start + len(encodings_NF)
        if start % ROWS_PER_BLOCK or (stop % ROWS_PER_BLOCK and stop != array.shape[0]):
            raise LayoutError(f"rows {start} to {stop} are not whole blocks of {ROWS_PER_BLOCK}")
        for first in range(start, stop, ROWS_PER_BLOCK):
            self._write_chunk(array, first // ROWS_PER_BLOCK, encodings_NF[first - start :][:ROWS_PER_BLOCK])

    def _write_chunk(self, array: Any, number: int, rows_NF: npt.NDArray[np.float32]) -> None:
        """Put one chunk in place of the old one in a single step; zarr-python would change a part of it."""
        metadata = array.metadata.to_dict()
        codec = chunk_codec(metadata["codecs"], array.dtype)
        key = f"c/{number}/0"
        if codec is None:  # written by somebody else
            self.folder.delete(key)  # a torn one cannot be changed
            first = number * ROWS_PER_BLOCK
            array[first : first + len(rows_NF)] = rows_NF
            return
        chunk_NF = np.zeros(array.chunks, np.float32)
        chunk_NF[: len(rows_NF)] = rows_NF
        if chunk_NF.view(np.uint32).any():
            write_parts(self.folder, key, [codec.encode(chunk_NF)])
        else:
            self.folder.delete(key)  # nothing but the fill value

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Read rows `start` to `stop`."""
        return np.asarray(self._open("r")[start:stop], dtype=np.float32)


def write_assignments(
    folder: Folder, tomogram: str, ids_N: npt.NDArray[np.int32], distances_N: npt.NDArray[np.float32]
) -> None:
    """Write `assignments/<tomogram>.parquet`: cluster_id and distance to its centre, row n for pick n."""
    columns = {"cluster_id": ids_N.astype(np.int32), "distance": distances_N.astype(np.float32)}
    write_table(folder, f"{tomogram}.parquet", columns)


def read_assignments(folder: Folder, tomogram: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Read cluster ids and distances; raises `StateError` when there are none."""
    table = read_table(folder, f"{tomogram}.parquet")
    return table["cluster_id"].astype(np.int32), table["distance"].astype(np.float32)
