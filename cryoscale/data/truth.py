"""What is known of a simulated tomogram: one row per particle, and notes about everything else.

`truth/<tomogram>.parquet` holds the rows, `truth/<tomogram>.toml` the notes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.simulate import file_stem
from cryoscale.data.folder import Folder
from cryoscale.data.tables import read_table, write_table
from cryoscale.errors import StateError

TRUTH_LABELS = "truth"
"""Name of the true label volume of a simulated tomogram."""


def density_key(density: str) -> str:
    """Return the name under which a run keeps a density: its file's, without endings and odd characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", file_stem(density))


@dataclass(frozen=True)
class Truth:
    """The particles of one tomogram.

    Parameters
    ----------
    positions_N3 : (N, 3) float64
        Centres z, y, x, Å.
    class_N : (N,) uint8
        Label value, at least 1.
    class_names : tuple of str
        Name by label value; 0 is background. It names membranes and other things without rows, too.
    quaternion_N4 : (N, 4) float64
        x, y, z, w; turns xyz of the particle's frame into xyz of the tomogram.
    contrast_N : (N,) float32
        Each particle's own factor.
    membrane_distance_N : (N,) float32
        From the particle's centre to the middle of the nearest membrane, Å; infinite without membranes.
    placement_N : (N,) str
        "free", "at", "near" or "far".
    notes : dict
        All parameters, and what was built of them.
    """

    positions_N3: npt.NDArray[np.float64]
    class_N: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]
    quaternion_N4: npt.NDArray[np.float64]
    contrast_N: npt.NDArray[np.float32]
    membrane_distance_N: npt.NDArray[np.float32]
    placement_N: npt.NDArray[np.str_]
    notes: dict[str, Any]

    def __len__(self) -> int:
        return len(self.positions_N3)

    @property
    def particle_classes(self) -> tuple[str, ...]:
        """Names of the classes that have rows or were asked for, in the order of their values."""
        return self.class_names[1 : 1 + int(self.notes["particle_classes"])]

    def of_class(self, name: str) -> npt.NDArray[np.bool_]:
        """Return which rows belong to a class."""
        rows: npt.NDArray[np.bool_] = self.class_N == self.class_names.index(name)
        return rows


def write_truth(folder: Folder, tomogram: str, truth: Truth) -> None:
    """Write the rows, then the notes."""
    z, y, x = truth.positions_N3.reshape(-1, 3).T
    names = np.array(truth.class_names)
    columns: dict[str, Any] = {"z": z, "y": y, "x": x, "class": truth.class_N}
    columns["class_name"] = names[truth.class_N].astype(str)
    columns |= dict(zip(("qx", "qy", "qz", "qw"), truth.quaternion_N4.reshape(-1, 4).T, strict=True))
    columns["contrast"] = truth.contrast_N.astype(np.float32)
    columns["membrane_distance"] = truth.membrane_distance_N.astype(np.float32)
    columns["placement"] = truth.placement_N.astype(str)
    write_table(folder, f"{tomogram}.parquet", columns, notes={"unit": "angstrom", "axes": "zyx"})
    folder.write_toml(f"{tomogram}.toml", {**truth.notes, "class_names": list(truth.class_names)})


def read_truth(folder: Folder, tomogram: str) -> Truth:
    """Read what is known of a tomogram.

    Raises
    ------
    StateError
        Nothing is.
    """
    if not folder.exists(f"{tomogram}.toml"):
        raise StateError(f"{folder.path(tomogram)}.toml does not exist: nothing is known of '{tomogram}'.")
    table = read_table(folder, f"{tomogram}.parquet")
    notes = folder.read_toml(f"{tomogram}.toml")
    return Truth(
        positions_N3=np.stack([table[k] for k in "zyx"], axis=1).astype(np.float64).reshape(-1, 3),
        class_N=table["class"].astype(np.uint8),
        class_names=tuple(notes.pop("class_names")),
        quaternion_N4=np.stack([table[k] for k in ("qx", "qy", "qz", "qw")], axis=1).reshape(-1, 4),
        contrast_N=table["contrast"],
        membrane_distance_N=table["membrane_distance"],
        placement_N=table["placement"].astype(str),
        notes=notes,
    )
