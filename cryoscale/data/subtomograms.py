"""Boxes cut from a simulated tomogram with their truth: a training set, or an export for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.codecs

from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import open_store
from cryoscale.data.shards import ShardLayout
from cryoscale.data.tables import Table, read_table, write_table
from cryoscale.errors import LayoutError, StateError

ROWS_PER_SHARD = 128
TABLE = "particles.parquet"
ARRAYS = {"data": np.float32, "density": np.float32, "mask": np.uint8}
"""`data`: as in the tomogram, zero mean, unit sd, objects dark; `density`: the particle alone, noise-free,
objects positive; `mask`: where it exceeds its contour."""


class Subtomograms:
    """Arrays (N, S, S, S) `data`, `density`, `mask`, and a table of N rows, in one folder.

    The table has z, y, x (Å, of the particle), class, class_name, qx, qy, qz, qw, row (in the truth) and
    split ("train", "validation" or "test").

    Parameters
    ----------
    folder : Folder
        Where they are.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def create(self, count: int, size: int) -> None:
        """Make the empty arrays in place of what stood there."""
        self.folder.delete()
        store = open_store(self.folder, read_only=False)
        zarr.create_group(store)
        for name, dtype in ARRAYS.items():
            zarr.create_array(
                store, name=name, shape=(count, size, size, size), dtype=np.dtype(dtype),
                chunks=(min(16, count), size, size, size), compressors=zarr.codecs.ZstdCodec(level=1),
                shards=(min(ROWS_PER_SHARD, -(-count // 16) * 16 if count > 16 else count), size, size, size),
                fill_value=0, dimension_names=("n", "z", "y", "x"),
            )  # fmt: skip

    def write(self, first: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write one shard of each array: rows from `first` on.

        Raises
        ------
        LayoutError
            `first` is not the beginning of a shard.
        """
        if first % ROWS_PER_SHARD:
            raise LayoutError(f"row {first} does not begin a shard of {ROWS_PER_SHARD} rows.")
        store = open_store(self.folder, read_only=False)
        for name, values in arrays.items():
            array = zarr.open_array(store, path=name, mode="r+")
            some = values.astype(ARRAYS[name], copy=False)
            layout = ShardLayout.of(array.metadata.to_dict())
            if layout is None:  # written by somebody else: zarr-python cannot change a torn shard
                self.folder.delete(f"{name}/c/{first // ROWS_PER_SHARD}")
                array[first : first + len(some)] = some
                continue
            stop = (first + len(some), *array.shape[1:])
            layout.write(self.folder, name, (first, 0, 0, 0), stop, partial(_rows, some, first))

    def publish(self, table: Mapping[str, Any]) -> None:
        """Write the table last: with it the set is complete."""
        write_table(self.folder, TABLE, table)

    @property
    def table(self) -> Table:
        """One row per box; raises `StateError` for a set that is not complete."""
        return read_table(self.folder, TABLE)

    def read(self, name: str, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read some boxes of `data`, `density` or `mask`.

        Raises
        ------
        StateError
            There are none.
        """
        try:
            array = zarr.open_array(open_store(self.folder, read_only=True), path=name, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise StateError(f"{self.folder.url} has no array '{name}'.") from error
        return np.asarray(array[rows] if isinstance(rows, slice) else array.oindex[rows])


def _rows(
    values: npt.NDArray[Any], first: int, start: tuple[int, ...], stop: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return the asked rows of values whose first one has the number `first`."""
    return values[start[0] - first : stop[0] - first]
