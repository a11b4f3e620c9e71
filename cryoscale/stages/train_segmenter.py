"""Train the segmenter: EDSS3D on masks made of decoded members of the selected clusters.

The input of the network is the patch itself; only the masks come from decoded patches. Both are canonical
density, smoothed and scaled as everywhere, so the level that separates objects from background is in sd of
the smoothed tomogram.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.clusters import Selection
from cryoscale.data.rows import ROWS_PER_BLOCK
from cryoscale.data.weights import identity_of
from cryoscale.errors import DataError, NothingToDoError
from cryoscale.geometry import Zyx
from cryoscale.learn.settings import history_columns
from cryoscale.stages.base import WholeStage
from cryoscale.stages.masks import OTSU_ROWS, class_level
from cryoscale.stages.networks import open_decoder
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.training import (
    batch_bytes,
    card_of,
    finished_card,
    gather_sample,
    import_model,
    sample_rows,
    settings_for,
    train,
    training_bytes,
    voxels_at_work,
)

Patches = npt.NDArray[np.float32]
Rows = list[npt.NDArray[np.int64]]  # of each tomogram
MASK_ROWS = 256  # patches at a time, where a copy is made
MOST_FILLED = 0.7  # a level that calls more of the patches object than this does not separate anything


class TrainSegmenterStage(WholeStage):
    """From a selection of clusters to the weights of a segmentation network."""

    name = "train_segmenter"
    version = 6
    engine = "model"
    reads = frozenset({"tomogram", "picks", "encodings", "encoder", "clusters", "assignments", "selection"})
    writes = "segmenter"

    def compute(self, access: Access) -> dict[str, Any]:
        """Train, or take given weights; a killed training goes on at its last epoch.

        Raises
        ------
        NothingToDoError
            The selected clusters have too few members.
        DataError
            The masks of a class are empty, or fill the patches.
        """
        config = access.config.segmenter
        if config.weights:
            return import_model(access, "segmenter", config.weights)
        if card := finished_card(access, "segmenter"):
            return _facts(card)
        from cryoscale.learn.losses import SegmentationLoss
        from cryoscale.models.registry import build

        selection = access.selection()
        inputs, targets, values, level_L = _training_set(access, selection)
        architecture = {
            "name": "edss3d", "n_classes": len(selection.classes) + 1, "channels": config.channels,
        }  # fmt: skip
        settings = settings_for(config)
        _, result, notes = train(
            access,
            "segmenter",
            lambda: build(architecture, seed=config.seed),
            inputs[:, None],
            targets,
            SegmentationLoss(),
            settings,
        )
        card = card_of(access, architecture, result, settings, len(inputs))
        card["classes"] = {
            "names": list(selection.class_names), "colors": [list(c) for c in selection.colors],
        }  # fmt: skip
        if missing := _without_members(selection, values):
            card["classes"]["without_members"] = missing
        card["metrics"]["mask_level_sd"] = [round(float(level), 4) for level in level_L[1:]]
        digest = access.model("segmenter").save(result.best_state, card, history_columns(result.history))
        return {**_facts({**card, "weights_sha256": digest}), **notes}

    def bytes_needed(self, access: Access) -> int:
        """Bound the sample with its masks, what cutting it takes, and a training step."""
        config = access.config.segmenter
        if config.weights:
            return 0
        box = Zyx.of(access.config.patch.box)
        picks = sum(access.pick_count(t) for t in access.tomograms)
        rows = min(round(config.max_patches * (1 + config.background_share)) + 1, picks)
        # Two convolutions of C channels at full resolution, their gradients, and the logits with their loss.
        classes = 1 + len(access.selection().classes)
        at_work = voxels_at_work(config.batch_size, box.voxels)
        activations = 4 * at_work * (32 + config.channels * 6 + classes * 4)
        activations += batch_bytes(config.batch_size, box.voxels)
        weights = 4 * 5 * 27 * config.channels**2
        gather = max(PatchReader.for_access(access, t).bytes_per_gather() for t in access.tomograms)
        tables = 24 * max(access.pick_count(t) for t in access.tomograms) + MASK_ROWS * box.voxels * 16
        return training_bytes(activations, weights, 5 * rows * box.voxels, gather + tables)


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    """Return what the ledger and the summary say of a trained segmenter, from its card alone."""
    levels, patches = card["metrics"]["mask_level_sd"], card["training"]["patches"]
    facts = {"hash": identity_of(card), "patches": patches, "mask_level_sd": levels}
    if missing := card["classes"].get("without_members"):
        names = ", ".join(f"'{name}'" for name in missing)
        facts["warning"] = f"no member of {names} is in the training sample: the network learns nothing of it"
    return facts


def _without_members(selection: Selection, values: npt.NDArray[np.int32]) -> list[str]:
    """Return the names of the classes that the training sample shows no member of."""
    present = set(values.tolist())
    return [name for value, name in enumerate(selection.class_names, start=1) if value not in present]


def _training_set(
    access: Access, selection: Selection
) -> tuple[Patches, npt.NDArray[np.uint8], npt.NDArray[np.int32], Patches]:
    """Gather inputs, masks, classes and levels: members of selected clusters, then background.

    The classes are those of the members alone; the levels are one for each class, background's 0 first.
    """
    config = access.config.segmenter
    class_of = selection.class_of_cluster(int(access.clusters().card["n_clusters"]))
    chosen, values, extra = _drawn(access, class_of)
    members = sum(map(len, chosen))
    inputs = np.empty((members + sum(map(len, extra)), *access.config.patch.box), np.float32)
    masks = np.zeros(inputs.shape, np.uint8)
    decoded = inputs[:members]  # the masks are made of it before the patches themselves take its place
    _decode(access, chosen, decoded)
    level_L = _levels(decoded, values, len(selection.classes), config.level)
    _fill_masks(decoded, values, level_L, masks[:members])
    _check_masks(decoded, masks[:members], values, selection, level_L)
    if config.ignore_unselected and len(inputs) > members:
        _decode(access, extra, inputs[members:])
        _fill_ignored(inputs[members:], _weakest_level(level_L, values), masks[members:])
    offsets = [_offsets(access, rows, number) for number, rows in enumerate((chosen, extra))]
    if config.shift:
        _shift_masks(masks, np.concatenate([*offsets[0], *offsets[1]]))
    gather_sample(access, chosen, inputs[:members], offsets[0])
    gather_sample(access, extra, inputs[members:], offsets[1])
    return inputs, masks, values, level_L


def _levels(
    decoded: Patches, values: npt.NDArray[np.int32], n_classes: int, given: float | None
) -> npt.NDArray[np.float32]:
    """Return the level of each class, background's 0 first: the one given, or Otsu's of its own members.

    A class without members keeps 0, which must not be used.

    One level for all would cut dense kinds far outside of their surface: they set the scale for none.
    """
    level_L = np.zeros(n_classes + 1, np.float32)
    for value in range(1, n_classes + 1):
        mine = decoded[values == value]
        if len(mine):
            level_L[value] = class_level(mine, given)
    return level_L


def _weakest_level(level_L: Patches, values: npt.NDArray[np.int32]) -> float:
    """Return the highest level of the classes that have members: the others have none."""
    return float(level_L[np.unique(values)].max())


def _drawn(access: Access, class_of: npt.NDArray[np.int32]) -> tuple[Rows, npt.NDArray[np.int32], Rows]:
    """Draw members with their class values, and background, over all tomograms: rows of each."""
    config = access.config.segmenter
    counts = [np.bincount(class_of[access.assignments(t)[0]] > 0, minlength=2) for t in access.tomograms]
    total = sum(int(inside) for _, inside in counts)
    if total < 2:
        raise NothingToDoError(
            f"the selected clusters have {total} members.", remedy="Select larger clusters."
        )
    drawn = sample_rows([int(inside) for _, inside in counts], config.max_patches, config.seed)
    wanted = round(config.background_share * sum(map(len, drawn)))
    others = sample_rows([int(outside) for outside, _ in counts], wanted, config.seed + 1)
    chosen: Rows = []
    extra: Rows = []
    values = []
    for tomogram, mine, rest in zip(access.tomograms, drawn, others, strict=True):
        classes = class_of[access.assignments(tomogram)[0]]
        chosen.append(np.flatnonzero(classes > 0)[mine])
        extra.append(np.flatnonzero(classes == 0)[rest])
        values.append(classes[chosen[-1]])
    return chosen, np.concatenate(values), extra


def _decode(access: Access, rows: Rows, out: Patches) -> None:
    """Decode the encodings of some picks of each tomogram, one after the other, into `out`."""
    first = 0
    with open_decoder(access) as decoder:
        for tomogram, mine in zip(access.tomograms, rows, strict=True):
            encodings = access.encodings(tomogram)
            for start in np.unique(mine // ROWS_PER_BLOCK) * ROWS_PER_BLOCK:
                here = mine[(mine >= start) & (mine < start + ROWS_PER_BLOCK)]
                codes = encodings.read(int(start), int(start) + ROWS_PER_BLOCK)[here - start]
                for part in range(0, len(here), MASK_ROWS):
                    made = decoder.run(codes[part : part + MASK_ROWS])[:, 0]
                    out[first : first + len(made)] = made
                    first += len(made)


def _fill_masks(
    decoded: Patches, values: npt.NDArray[np.int32], level_L: Patches, out: npt.NDArray[np.uint8]
) -> None:
    """Give voxels darker than the level of their patch's class that class."""
    for start in range(0, len(decoded), MASK_ROWS):
        part = slice(start, start + MASK_ROWS)
        level = level_L[values[part], None, None, None]
        np.multiply(decoded[part] < level, values[part, None, None, None].astype(np.uint8), out=out[part])


def _fill_ignored(decoded: Patches, level: float, out: npt.NDArray[np.uint8]) -> None:
    """Mark what looks like an object in patches of no class: nobody said that it is background."""
    from cryoscale.learn.losses import IGNORED

    for start in range(0, len(decoded), MASK_ROWS):
        part = slice(start, start + MASK_ROWS)
        np.multiply(decoded[part] < level, np.uint8(IGNORED), out=out[part])


def _offsets(access: Access, rows: Rows, number: int) -> list[npt.NDArray[np.int64]]:
    """Draw how far off its pick each patch is cut, voxels; no patch leaves its tomogram."""
    config, box = access.config.segmenter, np.array(access.config.patch.box)
    rng = np.random.default_rng([config.seed, number])
    reach = np.floor(config.shift * box).astype(np.int64)
    offsets = []
    for tomogram, mine in zip(access.tomograms, rows, strict=True):
        level = access.open_tomogram(tomogram).facts.levels[access.working_level(tomogram)]
        centres = level.to_voxels(access.picks(tomogram).positions_N3[mine])
        wanted = centres + rng.integers(-reach, reach, size=(len(mine), 3), endpoint=True)
        inside = np.clip(wanted, box // 2, np.array(level.shape) - box + box // 2)
        offsets.append(inside - centres)
    return offsets


def _shift_masks(masks: npt.NDArray[np.uint8], offsets_N3: npt.NDArray[np.int64]) -> None:
    """Move each mask against its patch's offset; what comes in from outside is unknown, and ignored.

    Dense prediction meets objects anywhere in its windows. A network that has only seen them centred finds
    half as many.
    """
    from cryoscale.learn.losses import IGNORED

    for mask, offset in zip(masks, offsets_N3, strict=True):
        moved = np.full_like(mask, IGNORED)
        old = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(offset, mask.shape, strict=True))
        new = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(offset, mask.shape, strict=True))
        moved[new] = mask[old]
        mask[...] = moved


def _check_masks(
    decoded: Patches,
    masks: npt.NDArray[np.uint8],
    values: npt.NDArray[np.int32],
    selection: Selection,
    level_L: Patches,
) -> None:
    """Refuse masks that say nothing."""
    full = np.array([np.count_nonzero(mask) for mask in masks]) / masks[0].size
    for value, name in enumerate(selection.class_names, start=1):
        mine = np.flatnonzero(values == value)
        if not len(mine):
            continue
        share = float(full[mine].mean())
        if share == 0 or share > MOST_FILLED:
            low, high = np.percentile(decoded[mine[:OTSU_ROWS]], [1, 50])
            what = "empty" if share == 0 else f"{share:.0%} full"
            raise DataError(
                f"the masks of class '{name}' are {what} at level {level_L[value]:.3g} "
                f"(decoded members: 1st percentile {low:.3g}, median {high:.3g}).",
                remedy="Set segmenter.level between these two.",
            )
