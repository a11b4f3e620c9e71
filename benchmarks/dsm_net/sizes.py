"""How large the benchmark is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """One size of the benchmark; what is None is as in the recipes and papers.

    Attributes
    ----------
    shape, shape_c : (Z, Y, X) int, optional
        Voxels of the tomogram of A, B and D, and of C.
    binning : int
        So many voxels along each side become one: 2 makes boxes of 20 voxels of 2 nm out of 40 of 1 nm.
    box : int
        Voxels of the boxes before binning.
    classes : int, optional
        Kinds of particles in A, B and D.
    boxes : int, optional
        Boxes of each data set.
    split : (float, float, float)
        Shares to train on, to validate on, to test on.
    channels, features : int, optional
        Width of the networks, and of the dense layer of DSM-Net.
    epochs, patience, batch_size : int, optional
        Of all trainings alike.
    seeds : tuple of int
        Each row is trained once with each.
    """

    shape: tuple[int, int, int] | None = None
    shape_c: tuple[int, int, int] | None = None
    binning: int = 1
    box: int = 40
    classes: int | None = None
    boxes: int | None = None
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    channels: int | None = None
    features: int | None = None
    epochs: int | None = None
    patience: int | None = None
    batch_size: int | None = None
    seeds: tuple[int, ...] = (1, 2, 3)

    @property
    def reduced(self) -> bool:
        """Whether its numbers cannot be held against the published ones."""
        return self != SIZES["full"]

    @property
    def overrides(self) -> dict[str, Any]:
        """What of a recipe's numbers this size replaces."""
        kept = {key: getattr(self, key) for key in ("epochs", "patience", "batch_size")}
        return {key: value for key, value in kept.items() if value is not None}


SIZES = {
    "tiny": Size(
        shape=(48, 112, 112), shape_c=(48, 112, 112), binning=2, box=16, classes=2, boxes=16,
        split=(0.5, 0.25, 0.25), channels=4, features=16, epochs=1, patience=1, batch_size=8, seeds=(1,),
    ),
    "reduced": Size(
        shape=(128, 352, 352), shape_c=(160, 352, 352), binning=2, box=40, classes=4, boxes=400,
        split=(0.7, 0.1, 0.2), channels=16, features=256, epochs=18, patience=8, batch_size=8, seeds=(1,),
    ),
    "full": Size(),
}  # fmt: skip
