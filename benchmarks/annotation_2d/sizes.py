"""How large the measurement is, and what each network is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Words = tuple[str, ...]  # of --set, without the table

TURNED = "unet2d, 3 slices, turned"  # what is offered beyond the README: neighbours and augmentation
AUGMENT = 'augment=["turns", "flips", "intensity"]'
TURNING = 'augment=["flips", "rotations", "intensity"]'  # in the plane, by any angle
IN_SLICES = ("unet2d", "cnn2d-chen")
IN_BOXES = ("edss3d", "ssn3d-ed", "unet3d")


@dataclass(frozen=True)
class Size:
    """Cells, boxes, and how each network differs from its paper's recipe (nothing: not at all)."""

    shape: tuple[int, int, int]
    ribosomes: int
    others: int  # barrels and balls, which none of the six classes is for
    microtubules: int
    vesicles: int
    planes: int  # of single membranes through the whole cell, and as many double ones
    box: int
    cells: Mapping[str, Words]
    crops: Mapping[str, Words]
    weak: Words
    reduced: str = ""  # what the report says of it


def _plain_and_turned(words: Words) -> dict[str, Words]:
    """Return each network in boxes without and with augmentation, as the 2D U-Net has it."""
    turned = {f"{name}, turned": (*words, AUGMENT) for name in IN_BOXES}
    return {**dict.fromkeys(IN_BOXES, words), **turned}


def _small() -> Size:
    boxes = ("epochs=24", "batch_size=16", "max_patches=400", "channels=16")
    cells = {
        "unet2d": ("channels=12", "tile_voxels=96", "epochs=25", "max_patches=200"),
        TURNED: ("channels=12", "tile_voxels=96", "epochs=25", "max_patches=200", "neighbours=1", TURNING),
        "cnn2d-chen": ("channels=12", "max_patches=800", "epochs=20"),
        **_plain_and_turned(boxes),
    }
    crops = {
        "unet2d": ("channels=8", "epochs=16"),
        TURNED: ("channels=8", "epochs=16", "neighbours=1", TURNING),
        "cnn2d-chen": ("channels=12", "max_patches=400", "epochs=20"),
        **dict.fromkeys(IN_BOXES, ("epochs=16", "batch_size=16", "max_patches=240", "channels=16", AUGMENT)),
    }
    weak = (
        "encoder.epochs=15", "encoder.batch_size=16", "cluster.n_clusters=40", "segmenter.epochs=24",
        "segmenter.channels=16", "segmenter.batch_size=16", "segmenter.max_patches=400",
    )  # fmt: skip
    return Size(
        (48, 176, 176), 30, 15, 2, 2, 1, 16, MappingProxyType(cells), MappingProxyType(crops), weak,
        "Cells of 48 x 176 x 176 voxels, networks of a fifth to a half of their papers' width, 12 to 40"
        " epochs, one seed. This is a reduced version; `make bench-annotation SIZE=full` is the papers'.",
    )  # fmt: skip


def _full() -> Size:
    boxes = ("batch_size=32",)
    cells = {
        "unet2d": ("tile_voxels=512",),
        TURNED: ("tile_voxels=512", "neighbours=1", TURNING),
        "cnn2d-chen": (),
        **_plain_and_turned(boxes),
    }
    crops = {
        "unet2d": (),
        TURNED: ("neighbours=1", TURNING),
        "cnn2d-chen": (),
        **dict.fromkeys(IN_BOXES, (*boxes, AUGMENT)),
    }
    return Size((160, 464, 464), 400, 300, 6, 6, 2, 32, MappingProxyType(cells), MappingProxyType(crops), ())


def _tiny() -> Size:
    few = ("channels=2", "epochs=1", "max_patches=16")
    cells: dict[str, Words] = {"unet2d": (*few, "tile_voxels=64"), "edss3d": (*few, "batch_size=8")}
    crops: dict[str, Words] = {"cnn2d-chen": (*few, "tile_voxels=32")}
    weak = (
        "encoder.epochs=1", "encoder.channels=2", "encoder.dimension=4", "cluster.n_clusters=3",
        "segmenter.epochs=1", "segmenter.channels=2", "segmenter.batch_size=8", "segmenter.level=-0.3",
        "cluster.restarts=1",
    )  # fmt: skip
    told = "Tiny: it shows that everything runs."
    return Size(
        (32, 112, 112), 2, 1, 1, 0, 1, 8, MappingProxyType(cells), MappingProxyType(crops), weak, told
    )


SIZES = {"tiny": _tiny(), "small": _small(), "full": _full()}


def in_slices(row: str) -> bool:
    """Tell whether a row is of a network that labels slices."""
    return row.partition(",")[0] in IN_SLICES


def volume_name(row: str) -> str:
    """Return the name of the label volume of a row."""
    return row.replace(", ", "-").replace(" ", "-")


def supervised_words(name: str, words: Words) -> list[str]:
    """Return the settings of one network as words of --set; keys that it does not name are unset."""
    return [f'supervised.model="{name.partition(",")[0]}"', *(f"supervised.{word}" for word in words)]
