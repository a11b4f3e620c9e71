"""What applying a trained network needs to know of it, from its card alone, and where its windows stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryoscale.config.sections import PatchConfig
from cryoscale.data.access import Access
from cryoscale.data.clusters import PALETTE
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.geometry import Zyx, round_up
from cryoscale.ops.blend import Windows
from cryoscale.ops.cells import Cells
from cryoscale.stages.labelling import SHARD
from cryoscale.stages.patching import PatchReader, recorded_statistics
from cryoscale.stages.training import check_voxel_size

if TYPE_CHECKING:
    from torch import nn

    from cryoscale.models.registry import ModelFacts
    from cryoscale.ops.slices import SliceFilter

AXES = "zyx"
EACH_BOX = (
    "each box to zero mean and unit sd"  # what cards say of networks that learned from a table of boxes
)
TILE = 128  # voxels; of networks in boxes, without the halo
LARGEST_TILE = 3 * 2**30  # bytes of a tile at work, where nobody asks for tiles
LEAST_BOX = 32  # voxels; a network trained on smaller boxes has hardly seen a voxel far from their faces
SLICE_TILE = 512  # voxels; of networks in slices whose card does not say
MAPS = {
    "unet2d": 5,
    "unet3d": 6,
    "cnn2d-chen": 4,
}  # full-resolution maps at a time: skips wait for the way up
MAPS_OF_OTHERS = 3
WEIGHT_COPIES = 7  # measured 5.6 with OpenVINO, which keeps kernels in forms of its own


@dataclass(frozen=True)
class Applied:
    """A trained network as it is applied.

    Parameters
    ----------
    card : mapping
        The model's card.
    facts : ModelFacts
        Of its architecture.
    patch : PatchConfig
        Box and smoothing that it was trained with.
    names : tuple of str
        Of the label values 1, 2, ….
    colors : tuple of (int, int, int)
        Of the same.
    by_particle : bool
        The box as a whole says the class, and each voxel only whether it is the particle's.
    axis : int
        What slices are stacked along, for a network in slices.
    neighbours : int
        Slices on each side that it sees.
    tile : int
        Side of its tiles, voxels.
    """

    card: Mapping[str, Any]
    facts: ModelFacts
    patch: PatchConfig
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    by_particle: bool
    axis: int = 0
    neighbours: int = 0
    tile: int = SLICE_TILE

    @property
    def n_classes(self) -> int:
        """Label values, the background included."""
        return 1 + len(self.names)

    @property
    def in_slices(self) -> bool:
        """Whether it sees slices, not boxes."""
        return self.facts.dimensions == 2

    @property
    def each_box(self) -> bool:
        """Whether each box is scaled by its own mean and sd, as those of a table are in training."""
        return bool(self.card.get("preprocessing", {}).get("density") == EACH_BOX)

    def scaled(self, module: nn.Module) -> nn.Module:
        """Put the scaling of each box in front of a network, where there is one."""
        from cryoscale.inference.wrappers import Standardised

        return Standardised(module) if self.each_box else module

    @property
    def width(self) -> int:
        """Channels at full resolution."""
        return int(self.card["architecture"].get("channels", 32))

    @property
    def maps(self) -> int:
        """How many maps of that width it holds at a time."""
        return MAPS.get(self.card["architecture"]["name"], MAPS_OF_OTHERS)

    @property
    def loading_bytes(self) -> int:
        """What its weights take: as a file, as read, in the network, in a copy, and as engines keep them."""
        import torch

        from cryoscale.models.layers import count_parameters
        from cryoscale.models.registry import build

        with torch.device("meta"):  # shapes without memory
            return WEIGHT_COPIES * 4 * count_parameters(build(self.card["architecture"]))

    @property
    def order(self) -> tuple[int, int, int]:
        """Axes of the volume, what slices are stacked along first: the frame that windows are added up in."""
        first = self.axis if self.in_slices else 0
        others = [axis for axis in range(3) if axis != first]
        return (first, others[0], others[1])

    def preprocessing(self) -> SliceFilter | None:
        """Return what comes in front of a network in slices."""
        from cryoscale.ops.slices import preprocessing_of

        return preprocessing_of(self.card) if self.in_slices else None

    def reader(self, access: Access) -> PatchReader:
        """Open the density of the unit's tomogram as the network was trained to see it."""
        number, sigma = access.working_level(), self.patch.smooth_sigma_voxels
        known = recorded_statistics(access.pick_notes(), number, sigma)
        return PatchReader(access.open_tomogram(), number, self.patch, known)


def applied(access: Access) -> Applied:
    """Read the card of the run's supervised network, and check it against the tomogram.

    Raises
    ------
    ConfigurationError
        It was trained at another voxel size.
    StateError
        The card does not name as many classes as the network has.
    """
    from cryoscale.models.registry import facts_of

    card = access.model("segmenter").card
    level = access.open_tomogram().facts.levels[access.working_level()]
    check_voxel_size(card, level.voxel_size_angstrom, "the network", f"'{access.tomogram}'")
    facts = facts_of(card["architecture"])
    labels = card["architecture"].get("n_labels", 2)
    by_particle = {"cls", "seg"} <= set(facts.heads) and labels == 2
    table = card.get("particles" if by_particle or "seg" not in facts.heads else "classes", {})
    names, colors = tuple(table.get("names", ())), table.get("colors", ())
    wanted = _class_count(card["architecture"], whole_boxes=by_particle or "seg" not in facts.heads)
    if len(names) != wanted:
        raise StateError(
            f"the card of the network names {len(names)} classes, it has {wanted}.",
            remedy="Train it again, or give the card names for all.",
        )
    slices = card.get("slices", {})
    return Applied(
        card=card,
        facts=facts,
        patch=PatchConfig(**card["patch"]) if "patch" in card else access.config.patch,
        names=names,
        colors=tuple((c[0], c[1], c[2]) for c in colors)
        or tuple(PALETTE[n % len(PALETTE)] for n in range(len(names))),
        by_particle=by_particle,
        axis=AXES.index(slices.get("axis", access.config.supervised.axis)),
        neighbours=int(slices.get("neighbours", 0)),
        tile=int(slices.get("tile", SLICE_TILE)),
    )


def _class_count(architecture: Mapping[str, Any], *, whole_boxes: bool) -> int:
    """Return how many classes a network tells apart, of boxes, or of voxels without the background."""
    if whole_boxes:
        return int(architecture["n_classes"])
    return int(architecture.get("n_labels", architecture["n_classes"])) - 1


def check_boxes(access: Access, model: Applied) -> None:
    """Refuse boxes around picks that may leave the tomogram.

    Raises
    ------
    ConfigurationError
        The network's boxes are larger than those that the run's picks leave room for.
    """
    box, room = model.patch.box, access.config.patch.box
    if any(mine > theirs for mine, theirs in zip(box, room, strict=True)):
        size = model.patch.model_dump(mode="json")["size_voxels"]
        raise ConfigurationError(
            f"the network was trained on boxes of {size} voxels; picks of this run leave room for {room}.",
            remedy=f"Set patch.size_voxels = {size}.",
        )


def check_mode(access: Access, model: Applied) -> None:
    """Refuse what the network cannot do.

    Raises
    ------
    ConfigurationError
        Mode, kind of windows or densities do not go with the network, or its boxes with the picks.
    """
    config, name = access.config.segment, model.card["architecture"]["name"]
    if "seg" not in model.facts.heads:
        raise ConfigurationError(f"{name} says nothing of single voxels.", remedy="It is for `classify`.")
    if config.mode == "decoded" or (config.mode == "picks" and model.in_slices):
        raise ConfigurationError(
            f"segment.mode = '{config.mode}' is not for {name}.", remedy="Set segment.mode = 'dense'."
        )
    if config.mode == "picks":
        check_boxes(access, model)
    if config.densities and "rec" not in model.facts.heads:
        raise ConfigurationError(
            f"segment.densities: this {name} recovers none (it has no head 'rec').",
            remedy="Take segment.densities away.",
        )
    if config.mode == "dense" and config.windows == "tiles" and (model.in_slices or halo_of(model) is None):
        raise ConfigurationError(
            f"segment.windows = 'tiles': {name} looks at whole boxes, or at slices.",
            remedy="Set segment.windows = 'box'.",
        )


def halo_of(model: Applied) -> int | None:
    """Return how far the heads that label look, or None where there is no end."""
    if model.by_particle or model.each_box:
        return None
    if "cls" not in model.facts.heads:
        return model.facts.halo
    from cryoscale.models.registry import facts_of

    heads = [head for head in model.facts.heads if head != "cls"]
    return facts_of({**model.card["architecture"], "heads": heads}).halo


def in_tiles(access: Access, model: Applied) -> bool:
    """Tell whether a dense prediction goes by tiles with a halo, or by blended windows of the box.

    Where nobody says, the network alone decides, not the tomogram and not the machine: the result is the same
    everywhere. Networks that look so far that a tile would fill a worker's memory go by windows.
    """
    asked, halo = access.config.segment.windows, halo_of(model)
    if model.in_slices or halo is None:
        return False
    side = TILE + 2 * round_up(halo, model.facts.alignment)
    fits = 4 * side**3 * model.maps * model.width <= LARGEST_TILE
    return fits and min(model.patch.box) >= LEAST_BOX if asked is None else asked == "tiles"


def tiles_of(model: Applied, shape: Zyx) -> Cells:
    """Return the tiles of a volume: their margin is all that the network looks at."""
    unit = model.facts.alignment
    margin = round_up(halo_of(model) or 0, unit)
    return Cells.fitted(shape, largest=TILE, margin=margin, unit=SHARD, alignment=unit, least=model.patch.box)


def windows_of(access: Access, model: Applied, shape: Zyx) -> Windows:
    """Return the overlapping windows in the frame of `Applied.order`.

    Of a network in slices they are tiles of one plane, of the side that the card says, or of the slice's
    where that is smaller.
    """
    asked = access.config.segment.overlap_voxels
    turned = Zyx(*(shape[axis] for axis in model.order))
    if not model.in_slices:
        return Windows.of(turned, model.patch.box, [overlap(side, asked) for side in model.patch.box])
    unit = model.facts.alignment
    sides = [round_up(min(model.tile, n), unit) for n in turned[1:]]
    return Windows.of(turned, (1, *sides), (0, *(overlap(side, asked) for side in sides)))


def overlap(side: int, asked: int | None) -> int:
    """Return how much windows of a side share: what was asked for, or half."""
    return side // 2 if asked is None else min(asked, side - 1)
