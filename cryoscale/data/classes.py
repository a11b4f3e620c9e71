"""What a network says each pick is: `classes/<tomogram>.parquet`, one row per pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.data.folder import Folder
from cryoscale.data.tables import read_table, write_table

SHARE = "p_"  # before the name of a class: its column of probabilities


@dataclass(frozen=True)
class Classes:
    """Classes of the picks of one tomogram.

    Parameters
    ----------
    names : tuple of str
        Of the classes 0, 1, ….
    ids_N : (N,) int32
        The most likely one of each pick, the smaller on a tie.
    shares_NK : (N, K) float32
        Probability of each class; rows add up to 1.
    """

    names: tuple[str, ...]
    ids_N: npt.NDArray[np.int32]
    shares_NK: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids_N)

    @property
    def probability_N(self) -> npt.NDArray[np.float32]:
        """Probability of the most likely class."""
        return self.shares_NK[np.arange(len(self)), self.ids_N]

    @property
    def names_N(self) -> npt.NDArray[np.str_]:
        """Name of the most likely class."""
        return np.array(self.names)[self.ids_N]


def write_classes(
    folder: Folder, tomogram: str, names: Sequence[str], shares_NK: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """Write the table of a tomogram, and return the class of each row.

    Its columns are class_id (int32), class_name, probability (float32), and `p_<name>` (float32) for each
    class.
    """
    ids_N: npt.NDArray[np.int32] = shares_NK.argmax(axis=1).astype(np.int32)
    found = Classes(tuple(names), ids_N, shares_NK)
    columns = {"class_id": ids_N, "class_name": found.names_N, "probability": found.probability_N}
    columns |= {f"{SHARE}{name}": np.ascontiguousarray(shares_NK[:, k]) for k, name in enumerate(names)}
    write_table(folder, f"{tomogram}.parquet", columns, notes={"rows": "picks"})
    return ids_N


def read_classes(folder: Folder, tomogram: str) -> Classes:
    """Read the table of a tomogram; raises `StateError` when there is none."""
    table = read_table(folder, f"{tomogram}.parquet")
    names = tuple(column.removeprefix(SHARE) for column in table if column.startswith(SHARE))
    shares = [table[f"{SHARE}{name}"] for name in names]
    return Classes(names, table["class_id"].astype(np.int32), np.stack(shares, axis=1).astype(np.float32))
