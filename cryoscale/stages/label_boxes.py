"""Boxes to train on, cut from tomograms and their label volumes; `label_drawing` says where they lie."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.errors import ConfigurationError, DataError, NothingToDoError
from cryoscale.geometry import Box, Zyx
from cryoscale.stages.label_drawing import VALUES, Drawn, Labelled, draw
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.supervised_set import IGNORED, SupervisedSet, Targets, wanted_heads

__all__ = ["Labelled", "labelled_names", "labelled_tomograms", "set_of_labels"]


def set_of_labels(access: Access) -> SupervisedSet:
    """Draw boxes from the label volumes of the tomograms, and cut inputs and targets.

    Raises
    ------
    ConfigurationError
        The network needs what labels do not have.
    DataError
        A class has no voxels, or a tomogram with labels did not come this far.
    NothingToDoError
        Nothing is labelled.
    """
    config = access.config.supervised
    heads = wanted_heads(config, ("cls", "seg"), "label volumes hold no density without neighbours")
    sources, names, colors = labelled_tomograms(access)
    _check_sides(sources, Zyx.of(access.config.patch.box))
    centred = "cls" in heads
    if centred and len(names) < 2:
        raise ConfigurationError(
            f"the labels have the one class '{names[0]}': there is nothing to tell apart.",
            remedy="Use a network that segments, or name more classes.",
        )
    share = config.object_share if "seg" in heads else 1.0  # a class is known of boxes about objects alone
    drawn, validation, notes = draw(access, sources, names, share, centred=centred)
    box = Zyx.of(access.config.patch.box)
    inputs, labels = _cut(access, sources, drawn, box)
    targets: Targets = {"seg": labels} if "seg" in heads else {}
    if centred:
        targets["cls"] = np.where(drawn.class_N > 0, drawn.class_N - 1, IGNORED)
    levels = access.open_tomogram(sources[0].tomogram).facts.levels
    return SupervisedSet(
        inputs=inputs[:, None],
        targets=targets,
        class_names=names if "seg" in heads else (),
        particle_names=names if centred else (),
        colors=colors if "seg" in heads else (),
        validation_rows=validation,
        voxel_size_angstrom=levels[sources[0].level].voxel_size_angstrom,
        preprocessing={"density": "canonical, smoothed, unit sd after smoothing", "objects": "dark"},
        notes=notes,
    )


# -- what is labelled ----------------------------------------------------------------------------------------


def labelled_names(access: Access) -> tuple[str, ...]:
    """List the fitted tomograms that have labels.

    Raises
    ------
    DataError
        One that the person named is missing.
    NothingToDoError
        There is none.
    """
    config = access.config.supervised
    drawn = config.drawn is not None  # somebody may have left a tomogram out
    found = tuple(t for t in access.tomograms if not drawn or access.drawn_labels(t).published)
    if lost := [name for name in config.tomograms if name not in found]:
        raise DataError(
            f"the labels of {', '.join(lost)} cannot be used: see what failed there.",
            remedy="Mend it, or take the tomogram out of supervised.tomograms.",
        )
    if not found:
        raise NothingToDoError(
            "no tomogram of the run has labels.", remedy="Check supervised.labels and supervised.tomograms."
        )
    return found


def labelled_tomograms(
    access: Access,
) -> tuple[list[Labelled], tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Open the label volumes of the fitted tomograms; classes of one name are one, whatever their values.

    Raises
    ------
    DataError, NothingToDoError
        As `labelled_names`; or the volumes have no class.
    """
    tomograms = labelled_names(access)
    volumes = [access.drawn_labels(tomogram) for tomogram in tomograms]
    colors: dict[str, tuple[int, int, int]] = {}
    for volume in volumes:
        facts = volume.facts
        counted = facts.notes.get("voxels", {})
        for value, (name, color) in enumerate(zip(facts.class_names, facts.colors, strict=True), start=1):
            if name == str(value) and not counted.get(name, 1):
                continue  # a gap between numbers that nobody named
            colors.setdefault(name, color)
    if not colors:
        raise NothingToDoError(
            f"the labels of {', '.join(tomograms[:5])} have no class.",
            remedy="Draw one, with a value from 1 on.",
        )
    # Numbers keep their order, whichever tomogram shows them first; names come as the first volume has them.
    names = tuple(sorted(colors, key=int)) if all(name.isdigit() for name in colors) else tuple(colors)
    found = []
    for tomogram, volume in zip(tomograms, volumes, strict=True):
        level, facts = access.working_level(tomogram), volume.facts
        table_V = np.full(VALUES, IGNORED, np.uint8)
        table_V[0] = 0
        for value, name in enumerate(facts.class_names, start=1):
            if name in colors:
                table_V[value] = names.index(name) + 1
        found.append(Labelled(tomogram, volume, level, facts.levels[level].shape, table_V))
    return found, names, tuple(colors[name] for name in names)


def _check_sides(sources: list[Labelled], box: Zyx) -> None:
    """Refuse tomograms that no box fits into."""
    for source in sources:
        if any(side < edge for side, edge in zip(source.shape, box, strict=True)):
            raise DataError(
                f"tomogram '{source.tomogram}' is {tuple(source.shape)} voxels at level {source.level}, "
                f"smaller than a box of {tuple(box)}.",
                remedy="Lower patch.size_voxels, or leave that tomogram out.",
            )


# -- what they hold ------------------------------------------------------------------------------------------


def _cut(
    access: Access, sources: list[Labelled], drawn: Drawn, box: Zyx
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Cut inputs, as the trainings from clusters do, and labels."""
    inputs = np.empty((len(drawn.source_N), *box), np.float32)
    labels = np.empty(inputs.shape, np.uint8)
    for number, source in enumerate(sources):
        mine = np.flatnonzero(drawn.source_N == number)
        if not len(mine):
            continue
        starts = drawn.start_N3[mine]
        reader = PatchReader.for_access(access, source.tomogram)
        inputs[mine] = reader.gather(starts + np.array(box) // 2)
        for row, start in zip(mine, starts, strict=True):
            labels[row] = source.read(Box.of(start, start + np.array(box)))
    return inputs, labels
