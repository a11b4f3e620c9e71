"""Subtomograms to train on: those of a simulated run, or a table of boxes that somebody else made.

Inputs have zero mean and unit sd, objects dark: boxes of a run by their tomogram, as `segment` and `classify`
will read it; those of a table each by its own mean and sd, since the tomogram is not known. Targets of "rec"
are the densities, divided by one number (the sd over all boxes that are trained on) and inverted, so that
objects are dark there too; the card keeps the number, `preprocessing.density_sd`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.run import RunConfig
from cryoscale.data.access import Access
from cryoscale.data.subtomograms import ROWS_PER_SHARD, Subtomograms
from cryoscale.data.tables import Table
from cryoscale.errors import ConfigurationError, DataError, NothingToDoError
from cryoscale.geometry import Zyx
from cryoscale.stages.supervised_set import SupervisedSet, Targets, colors_of, wanted_heads

if TYPE_CHECKING:
    from cryoscale.formats.subtomograms import BoxTable

PARTICLE = ("particle",)  # what the mask of a box is called
CENTRE = 0.25  # radius of the ball in the middle of a box, in sides, that is compared with what lies outside
Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Particles:
    """Boxes with what is known of them and learned."""

    data: Boxes
    class_N: npt.NDArray[np.str_] | None
    names: tuple[str, ...]
    masks: npt.NDArray[np.uint8] | None
    densities: Boxes | None
    split_N: npt.NDArray[np.str_] | None
    voxel_size_angstrom: float | None
    preprocessing: dict[str, Any]


def set_of_particles(access: Access) -> SupervisedSet:
    """Make the set of boxes that the configuration names.

    Raises
    ------
    ConfigurationError
        Size or smoothing of the patches are others than those of the boxes, or the network needs what the
        boxes do not come with.
    DataError
        A mask is empty everywhere, boxes are flat, or only one class is there to classify.
    """
    config = access.config
    if config.supervised.subtomograms:
        from cryoscale.formats.subtomograms import read_box_table

        table = read_box_table(config.supervised.subtomograms)
        check_boxes(config, table.shape)
        heads = heads_to_learn(config, heads_of_table(table))
        return _assembled(access, _of_table(access, table, heads), heads)
    check_boxes(config, count_particles(access)[1])
    tables = [access.subtomograms(tomogram).table for tomogram in access.tomograms]
    kinds = {str(name) for table in tables for name in table["class_name"]}
    heads = heads_to_learn(config, heads_of_run(len(kinds)))
    return _assembled(access, _of_run(access, tables, heads), heads)


def heads_of_table(table: BoxTable) -> tuple[str, ...]:
    """List what can be learned from the columns of a table."""
    kinds = 0 if table.class_N is None else len(set(table.class_N.tolist()))
    known = (("cls", kinds > 1), ("seg", table.masks is not None), ("rec", table.densities is not None))
    return tuple(head for head, there in known if there)


def heads_of_run(kinds: int) -> tuple[str, ...]:
    """List what can be learned from a simulated run's own boxes of so many kinds of particles."""
    return ("cls", "seg", "rec") if kinds > 1 else ("seg", "rec")


def heads_to_learn(config: RunConfig, available: tuple[str, ...]) -> tuple[str, ...]:
    """List what the network learns of what its boxes have.

    Raises
    ------
    ConfigurationError
        It needs what they do not have.
    """
    where = config.supervised.subtomograms or "the subtomograms of the run"
    known = ", ".join({"cls": "classes", "seg": "masks", "rec": "densities"}[head] for head in available)
    return wanted_heads(config.supervised, available, f"{where} has {known or 'nothing to learn from'}")


def bytes_per_voxel(heads: tuple[str, ...]) -> int:
    """Return what a voxel of a box takes: float32, a byte of its mask, and float32 of its density."""
    return 4 + ("seg" in heads) + 4 * ("rec" in heads)


def count_particles(access: Access) -> tuple[int, Zyx]:
    """Return how many boxes a set has at most, and their shape, from metadata alone."""
    config = access.config
    if config.supervised.subtomograms:
        from cryoscale.formats.subtomograms import read_box_table

        table = read_box_table(config.supervised.subtomograms)
        return len(table), table.shape
    if config.simulate is None or config.simulate.subtomograms is None:
        raise ConfigurationError(
            "the run has no subtomograms.", remedy="Give a table: supervised.subtomograms, or --subtomograms."
        )
    asked = config.simulate.subtomograms
    return asked.count, Zyx.of(asked.size_voxels)


def check_boxes(config: RunConfig, shape: Zyx) -> None:
    """Refuse patches that are not cut as the boxes are.

    Raises
    ------
    ConfigurationError
        With the settings that would do.
    """
    patch = config.patch
    if Zyx.of(patch.box) != shape or patch.smooth_sigma_voxels != 0:
        size = shape[0] if len(set(shape)) == 1 else list(shape)
        raise ConfigurationError(
            f"the boxes are {tuple(shape)} voxels and not smoothed; patch.size_voxels is {patch.size_voxels},"
            f" patch.smooth_sigma_voxels {patch.smooth_sigma_voxels:g}.",
            remedy=f"Set patch.size_voxels = {size} and patch.smooth_sigma_voxels = 0.",
        )


# -- where boxes come from -----------------------------------------------------------------------------------


def _of_run(access: Access, tables: list[Table], heads: tuple[str, ...]) -> Particles:
    """Read of a simulated run's subtomograms what is learned, shard by shard into its place."""
    shape = count_particles(access)[1]
    wanted = {"data": np.float32} | ({"mask": np.uint8} if "seg" in heads else {})
    wanted |= {"density": np.float32} if "rec" in heads else {}
    count = sum(len(table["class"]) for table in tables)
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.empty((count, *shape), dtype) for name, dtype in wanted.items()
    }
    first, sizes = 0, []
    for tomogram, table in zip(access.tomograms, tables, strict=True):
        level = access.working_level(tomogram)
        if level:
            raise ConfigurationError(
                f"subtomograms are of level 0, '{tomogram}' is worked on at level {level}.",
                remedy="Leave run.working_voxel_size_angstrom away.",
            )
        rows = len(table["class"])
        _read_into({k: v[first : first + rows] for k, v in arrays.items()}, access.subtomograms(tomogram))
        first += rows
        sizes.append(access.open_tomogram(tomogram).facts.levels[0].voxel_size_angstrom)
    class_N, name_N, split_N = (
        np.concatenate([table[key] for table in tables]) for key in ("class", "class_name", "split")
    )
    order = dict(sorted({int(v): str(name) for v, name in zip(class_N, name_N, strict=True)}.items()))
    return Particles(
        arrays["data"], name_N.astype(np.str_), tuple(dict.fromkeys(order.values())), arrays.get("mask"),
        arrays.get("density"), split_N.astype(np.str_), sizes[0],
        {"density": "canonical", "objects": "dark"},
    )  # fmt: skip


def _read_into(arrays: dict[str, npt.NDArray[Any]], boxes: Subtomograms) -> None:
    """Fill arrays with one tomogram's boxes."""
    for name, values in arrays.items():
        for start in range(0, len(values), ROWS_PER_SHARD):
            part = slice(start, min(start + ROWS_PER_SHARD, len(values)))
            values[part] = boxes.read(name, part)


def _of_table(access: Access, table: BoxTable, heads: tuple[str, ...]) -> Particles:
    """Read the boxes of a table and normalise them; of their truth, what is learned."""
    from cryoscale.formats.subtomograms import in_order, read_boxes, read_masks

    size = table.voxel_size_angstrom
    data = read_boxes(table.files, table.shape, size)
    masks = None  # they tell the contrast too, learned or not
    if table.masks is not None:
        masks = read_masks(table.masks, table.shape, size)
    contrast = normalise_boxes(data, table.files, masks, access.config.ingest.contrast)
    densities = None
    if table.densities is not None and "rec" in heads:
        densities = read_boxes(table.densities, table.shape, size)
    return Particles(
        data, table.class_N, () if table.class_N is None else in_order(table.class_N),
        masks if "seg" in heads else None, densities, table.split_N, size,
        {"density": "each box to zero mean and unit sd", "objects": "dark", "contrast": contrast},
    )  # fmt: skip


def normalise_boxes(
    data: Boxes, files: tuple[Path, ...], masks: npt.NDArray[np.uint8] | None, contrast: str
) -> str:
    """Scale each box to zero mean and unit sd, objects dark, in place; say which contrast was there.

    Parameters
    ----------
    data : (N, Z, Y, X) float32
    files : tuple of Path
        For the message.
    masks : (N, Z, Y, X), optional
        Where the particles are; without them the middle of each box is taken for the particle.
    contrast : {"auto", "dark", "bright"}
        How objects look in the files; "auto" compares particles with what lies around them.

    Raises
    ------
    DataError
        A box is flat.
    """
    for number, box in enumerate(data):
        sd = float(box.std(dtype=np.float64))
        if not sd > 0:
            raise DataError(f"{files[number]} is the same everywhere.", remedy="Leave that box out.")
        box -= np.float32(box.mean(dtype=np.float64))
        box /= np.float32(sd)
    if contrast == "auto":
        contrast = _contrast_of(data, masks)
    if contrast == "bright":
        np.negative(data, out=data)
    return contrast


def _contrast_of(data: Boxes, masks: npt.NDArray[np.uint8] | None) -> str:
    """Compare particles with what lies around them, box by box: no copy of all boxes is made."""
    masked = masks is not None and masks.any()
    middle = _middle(data.shape[1:])
    inside, outside, voxels = 0.0, 0.0, 0
    for number, box in enumerate(data):
        where = masks[number] != 0 if masked and masks is not None else middle
        inside += float(box[where].sum(dtype=np.float64))
        outside += float(box[~where].sum(dtype=np.float64))
        voxels += int(where.sum())
    return "bright" if inside / max(voxels, 1) > outside / max(data.size - voxels, 1) else "dark"


def _sd(boxes: Boxes, rows: npt.NDArray[np.int64]) -> float:
    """Return the sd over all voxels of some boxes, box by box."""
    voxels = len(rows) * boxes[0].size
    mean = sum(float(boxes[row].sum(dtype=np.float64)) for row in rows) / voxels
    square = sum(float(np.square(boxes[row] - mean, dtype=np.float64).sum()) for row in rows)
    return float(np.sqrt(square / voxels))


def _middle(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Mark the ball in the middle of a box."""
    grids = np.ogrid[tuple(slice(0, side) for side in shape)]
    distance = sum((grid - (side - 1) / 2) ** 2 for grid, side in zip(grids, shape, strict=True))
    return np.asarray(distance <= (CENTRE * min(shape)) ** 2)


# -- what is made of them ------------------------------------------------------------------------------------


def _assembled(access: Access, found: Particles, heads: tuple[str, ...]) -> SupervisedSet:
    """Put inputs and targets together: rows to train on and to validate on; those to test on apart."""
    config = access.config.supervised
    split_N = np.full(len(found.data), "train") if found.split_N is None else found.split_N
    kept = np.flatnonzero(split_N != "test")
    if len(kept) > config.max_patches:
        rng = np.random.default_rng([config.seed, 21])
        kept = np.sort(rng.choice(kept, config.max_patches, replace=False))
    if len(kept) < 2:
        raise NothingToDoError(
            f"{len(kept)} boxes are too few to train on.", remedy="Check the column 'split'."
        )
    _check_masks(found, kept, heads)
    scale = None
    preprocessing = dict(found.preprocessing)
    if "rec" in heads:
        assert found.densities is not None
        scale = _sd(found.densities, kept) or 1.0
        preprocessing["density_sd"] = scale
    made = _rows(found, heads, kept, scale)
    validation = np.flatnonzero(split_N[kept] == "validation")
    test_rows = np.flatnonzero(split_N == "test")
    counts = dict.fromkeys(found.names, 0)
    if found.class_N is not None:
        counts = {name: int((found.class_N[kept] == name).sum()) for name in found.names}
    missing = [name for name, count in counts.items() if not count] if "cls" in heads else []
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing)
        raise DataError(
            f"no box to train on is of class {listed}.",
            remedy="Add some, or take that class out of the table.",
        )
    return replace(
        made,
        validation_rows=validation if len(validation) else None,
        test=_rows(found, heads, test_rows, scale) if len(test_rows) else None,
        preprocessing=preprocessing,
        notes={"particles": counts, "test": len(test_rows),
               "validation": "by the table" if len(validation) else "a random share"},
    )  # fmt: skip


def _rows(
    found: Particles, heads: tuple[str, ...], rows: npt.NDArray[np.int64], scale: float | None
) -> SupervisedSet:
    targets: Targets = {}
    if "cls" in heads:
        assert found.class_N is not None
        index = {name: number for number, name in enumerate(found.names)}
        targets["cls"] = np.array([index[str(name)] for name in found.class_N[rows]], np.int64)
    if "seg" in heads:
        assert found.masks is not None
        targets["seg"] = found.masks[rows]
        np.minimum(targets["seg"], 1, out=targets["seg"])
    if "rec" in heads:
        assert found.densities is not None
        targets["rec"] = found.densities[rows][:, None]
        targets["rec"] *= np.float32(-1.0 / (scale or 1.0))
    segments = "seg" in heads
    return SupervisedSet(
        inputs=found.data[rows][:, None],
        targets=targets,
        class_names=PARTICLE if segments else (),
        particle_names=found.names if "cls" in heads else (),
        colors=colors_of(1) if segments else (),
        voxel_size_angstrom=found.voxel_size_angstrom,
    )


def _check_masks(found: Particles, rows: npt.NDArray[np.int64], heads: tuple[str, ...]) -> None:
    if "seg" not in heads:
        return
    assert found.masks is not None
    if not any(found.masks[row].any() for row in rows) or all(found.masks[row].all() for row in rows):
        raise DataError(
            "the masks of all boxes are empty, or full.", remedy="A mask is not 0 where the particle is."
        )
