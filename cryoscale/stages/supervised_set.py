"""What a supervised training learns from, whatever it was made of: inputs, targets, names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.run import RunConfig
from cryoscale.config.sections import IN_SLICES, SupervisedConfig
from cryoscale.data.access import Access
from cryoscale.data.clusters import PALETTE
from cryoscale.errors import ConfigurationError

SMALLEST_BOX = 8  # voxels: three poolings
IGNORED = 255  # the value of voxels that nobody knows the class of
HEADS = ("cls", "seg", "rec")
Targets = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SupervisedSet:
    """A training set in memory.

    Parameters
    ----------
    inputs : (N, C, Z, Y, X) or (N, C, Y, X) float32
        As the network will see them when it is applied.
    targets : dict
        By head: "cls" (N,) int64, "seg" (N, [Z,] Y, X) uint8 (255: unknown), "rec" (N, 1, Z, Y, X) float32.
    class_names : tuple of str
        Of the values 1, 2, … of "seg".
    particle_names : tuple of str
        Of the values 0, 1, … of "cls".
    colors : tuple of (int, int, int)
        Of the classes of "seg".
    validation_rows : (V,) int, optional
        Items to validate on; None: a random share.
    test : SupervisedSet, optional
        Items that are never trained on, and scored at the end.
    voxel_size_angstrom : float, optional
        Of the inputs.
    slices : dict
        Of a network in slices: axis, tile, neighbours.
    preprocessing : dict
        How inputs and targets were scaled, for the model card.
    notes : dict
        What was counted, for the model card and the ledger.
    """

    inputs: npt.NDArray[np.float32]
    targets: Targets
    class_names: tuple[str, ...] = ()
    particle_names: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    validation_rows: npt.NDArray[np.int64] | None = None
    test: SupervisedSet | None = None
    voxel_size_angstrom: float | None = None
    slices: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    def taken(self, rows: npt.NDArray[np.int64]) -> SupervisedSet:
        """Return some of the items, to be scored."""
        targets = {head: target[rows] for head, target in self.targets.items()}
        return replace(self, inputs=self.inputs[rows], targets=targets, validation_rows=None, test=None)


def wanted_heads(config: SupervisedConfig, available: tuple[str, ...], why: str) -> tuple[str, ...]:
    """List what the network of a configuration learns, in the order cls, seg, rec.

    Parameters
    ----------
    config : SupervisedConfig
    available : tuple of str
        Heads that the truth has targets for.
    why : str
        What the truth lacks the others for; goes into the message.

    Raises
    ------
    ConfigurationError
        The network needs a head that there is no truth for.
    """
    if config.model == "dsm-net":
        asked: tuple[str, ...] = config.heads or available
    else:
        asked = ("cls",) if config.model == "dsrf3d-v2" else ("seg",)
    lacking = [head for head in asked if head not in available]
    if lacking or not asked:
        raise ConfigurationError(
            f"{config.model} is to learn {', '.join(asked) or 'something'}, but {why}.",
            remedy="Choose other supervised.heads, another model, or other truth.",
        )
    return tuple(head for head in HEADS if head in asked)


def check_request(config: RunConfig) -> None:
    """Refuse before anything is read what no data can make possible.

    Raises
    ------
    ConfigurationError
        Slices of boxes, boxes too small for three poolings, a wedge in slices, or losses of no weight.
    """
    asked, box = config.supervised, config.patch.box
    if asked.weights is not None:
        return
    if asked.loss_weights and not any(asked.loss_weights):
        raise ConfigurationError("supervised.loss_weights are all 0: nothing would be learned.")
    if asked.model not in IN_SLICES:
        if min(box) < SMALLEST_BOX:
            raise ConfigurationError(
                f"patch.size_voxels = {config.patch.size_voxels}: {asked.model} needs {SMALLEST_BOX} or more."
            )
        return
    if asked.truth == "subtomograms":
        raise ConfigurationError(
            f"{asked.model} sees slices of tomograms, not subtomograms.",
            remedy="Give label volumes (--labels), or take a 3D model.",
        )
    if "wedge" in asked.augment:
        raise ConfigurationError(
            f"{asked.model} sees slices, which have no missing wedge.",
            remedy="Take it out of supervised.augment.",
        )


def colors_of(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return colours for classes that have none of their own."""
    return tuple(PALETTE[number % len(PALETTE)] for number in range(count))


def supervised_set(access: Access) -> SupervisedSet:
    """Make the training set that the configuration asks for.

    Raises
    ------
    ConfigurationError
        Model and truth do not go together.
    DataError
        The truth cannot be used: a class without voxels, tomograms that disagree about names.
    """
    check_request(access.config)
    config = access.config.supervised
    if config.model in IN_SLICES:
        return _slices(access)
    if config.truth == "subtomograms":
        from cryoscale.stages.particle_boxes import set_of_particles

        return set_of_particles(access)
    from cryoscale.stages.label_boxes import set_of_labels

    return set_of_labels(access)


def _slices(access: Access) -> SupervisedSet:
    """Take the tiles of slices; a network in slices segments, and nothing else."""
    from cryoscale.stages.label_boxes import labelled_names
    from cryoscale.stages.slice_set import slice_set

    made = slice_set(replace(access, tomograms=labelled_names(access)))
    size = access.open_tomogram(access.tomograms[0]).facts.levels[access.working_level(access.tomograms[0])]
    return SupervisedSet(
        inputs=made.inputs_NCYX,
        targets={"seg": made.targets_NYX},
        class_names=made.class_names,
        colors=tuple((int(r), int(g), int(b)) for r, g, b in made.notes["classes"]["colors"]),
        validation_rows=made.validation_rows,
        voxel_size_angstrom=size.voxel_size_angstrom,
        preprocessing=dict(made.notes["preprocessing"]),
        slices=dict(made.notes["slices"]),
        notes=dict(made.notes["sample"]),
    )
