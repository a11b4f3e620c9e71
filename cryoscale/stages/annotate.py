"""Annotate: from a label volume that a person drew in any tool to one on the grid of its tomogram.

The volume may be drawn on any level of the tomogram. It is written there first; finer levels repeat its
voxels, coarser ones take the most frequent value. 255 stays what it is: nobody knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryoscale.data.access import ANNOTATION, Access
from cryoscale.data.clusters import PALETTE
from cryoscale.data.pyramid import Level
from cryoscale.data.tomogram import VOXEL_SIZE_TOLERANCE, LabelFacts, publish_label_list
from cryoscale.errors import ConfigurationError, DataError
from cryoscale.formats.labels import UNKNOWN, LabelFile, open_labels
from cryoscale.geometry import Block
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, renumber
from cryoscale.stages.labelling import CHUNK, SHARD, coarser, finer, label_blocks

PARTS = "counts-{:06d}.json"


class AnnotateStage(BlockStage):
    """From a file of labels to `labels/annotation` of its tomogram, all levels; nothing where nobody drew."""

    name = "annotate"
    reads = frozenset({"tomogram"})
    writes = "annotation"

    def plan(self, access: Access) -> Plan:
        """Plan the level that was drawn on, then finer ones, then coarser ones.

        Raises
        ------
        ConfigurationError
            A tomogram that should have a file has none, or the file is on another grid.
        """
        path = drawn_file(access)
        if path is None:
            return Plan(((),), 0)
        levels = access.open_tomogram().facts.levels
        with open_labels(path) as labels:
            drawn = level_of(labels, levels, access.tomogram)
            read = 4 * labels.chunk_bytes
        edge = access.config.execution.block_voxels
        order = [*range(drawn, -1, -1), *range(drawn + 1, len(levels))]
        phases = [label_blocks(levels, number, edge) for number in order]
        core = max(block.core.voxels for phase in phases for block in phase)
        return Plan(
            renumber(phases), core * 32 + read + 64 * 2**20, sum(level.shape.voxels for level in levels)
        )

    def create(self, access: Access) -> None:
        """Make the empty arrays of all levels; where nobody draws any more, take away what was drawn."""
        access.parts().delete()
        volume = access.annotation(write=True)
        if drawn_file(access) is None:
            if volume.pyramid.folder.exists():
                volume.pyramid.folder.delete()
                publish_label_list(volume.parent)
            return
        levels = access.open_tomogram().facts.levels
        volume.pyramid.create(levels, np.uint8, chunk=CHUNK, shard=SHARD, image=False)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the file and the label volume."""
        pyramid, parts = access.annotation(write=True).pyramid, access.parts()
        path = drawn_file(access)
        assert path is not None  # there are no blocks without it
        with open_labels(path) as labels:
            drawn = level_of(labels, access.open_tomogram().facts.levels, access.tomogram)
            named = access.config.supervised.classes

            def take(block: Block) -> BlockReport:
                if block.level == drawn:
                    values = labels.read(block.core)
                    counts = np.bincount(values.ravel(), minlength=UNKNOWN + 1)
                    _check_values(counts, named, path)
                    found = {str(v): int(counts[v]) for v in np.flatnonzero(counts)}
                    parts.write_json(PARTS.format(block.index), found)
                else:
                    values = (coarser if block.level > drawn else finer)(pyramid, block)
                if not values.any():
                    pyramid.delete_shards(block.level, block.core)
                    return BlockReport(empty=True, voxels=block.core.voxels)
                pyramid.write(block.level, block.core, values)
                return BlockReport(voxels=block.core.voxels)

            yield take

    def seal(self, access: Access) -> dict[str, Any]:
        """Publish names, colours and levels."""
        path = drawn_file(access)
        if path is None:
            return {"empty": True, "note": "nobody drew in this tomogram"}
        counts = _counts(access)
        levels = access.open_tomogram().facts.levels
        with open_labels(path) as labels:
            drawn = level_of(labels, levels, access.tomogram)
            names = _names(access, labels, counts)
            colors = tuple(
                labels.colors.get(v, PALETTE[(v - 1) % len(PALETTE)]) for v in range(1, len(names) + 1)
            )
        voxels = {name: counts.get(value, 0) for value, name in enumerate(names, start=1)}
        notes = {"drawn": str(path), "voxels": voxels, "unknown": counts.get(UNKNOWN, 0)}
        facts = LabelFacts(
            name=ANNOTATION, levels=levels, class_names=names, colors=colors, key=access.key,
            working_level=drawn, notes=notes,
        )  # fmt: skip
        access.annotation(write=True).publish(facts)
        told: dict[str, Any] = {"classes": list(names), "level": drawn}
        if not names:
            told["warning"] = f"{path} holds no label beside 0: no class is drawn there"
        return told


def drawn_file(access: Access) -> Path | None:
    """Return what was drawn in the tomogram; None where nobody did, and nobody said so.

    Raises
    ------
    ConfigurationError
        The tomogram stands in `supervised.tomograms`, and there is no file.
    """
    asked = access.config.supervised
    if asked.tomograms and access.tomogram not in asked.tomograms:
        return None  # one file without {tomogram} in its name is not of every tomogram
    path = Path((asked.drawn or "").replace("{tomogram}", access.tomogram))
    if path.exists():
        return path
    if access.tomogram in asked.tomograms:
        raise ConfigurationError(
            f"tomogram '{access.tomogram}' is in supervised.tomograms, but there is no label file {path}.",
            remedy="Draw it, correct supervised.labels, or take the tomogram out of the list.",
        )
    return None


def level_of(labels: LabelFile, levels: Sequence[Level], tomogram: str) -> int:
    """Return the level whose grid a label volume is on.

    Raises
    ------
    ConfigurationError
        None has its shape, or that one has another voxel size.
    """
    fitting = [number for number, level in enumerate(levels) if level.shape == labels.shape]
    if not fitting:
        have = ", ".join(str(tuple(level.shape)) for level in levels)
        raise ConfigurationError(
            f"{labels.path} is {tuple(labels.shape)} voxels (z, y, x); levels of '{tomogram}' are {have}.",
            remedy="Draw on the tomogram itself, or on one of its levels.",
        )
    size = levels[fitting[0]].voxel_size_angstrom
    off = [s for s in labels.voxel_sizes or () if abs(s / size - 1) > VOXEL_SIZE_TOLERANCE]
    if off:
        raise ConfigurationError(
            f"{labels.path} has voxels of {off[0]:g} Å, level {fitting[0]} of '{tomogram}' of {size:g} Å.",
            remedy="Correct the voxel size in its header (0: unknown), or that of the tomogram.",
        )
    return fitting[0]


def _check_values(counts_V: Any, named: tuple[str, ...], path: Path) -> None:
    """Refuse values that have no name although names are given."""
    highest = int(np.flatnonzero(counts_V[:UNKNOWN]).max(initial=0))
    if named and highest > len(named):
        raise DataError(
            f"{path} holds the label {highest}, supervised.classes names {len(named)}: {', '.join(named)}.",
            remedy="Name all classes, in the order of their values.",
        )


def _counts(access: Access) -> dict[int, int]:
    """Add what the blocks counted."""
    parts, total = access.parts(), dict[int, int]()
    for name in sorted(parts.names()):
        for value, count in parts.read_json(name).items():
            total[int(value)] = total.get(int(value), 0) + int(count)
    return total


def _names(access: Access, labels: LabelFile, counts: dict[int, int]) -> tuple[str, ...]:
    """Name the values: as the person says, as the file says, or by their numbers."""
    if named := access.config.supervised.classes:
        return named
    drawn = max((value for value in counts if 0 < value < UNKNOWN), default=0)
    last = max(drawn, max((v for v in labels.names), default=0))
    return tuple(labels.names.get(value, str(value)) for value in range(1, last + 1))
