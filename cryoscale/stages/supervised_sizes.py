"""How much memory a supervised training takes, from metadata alone and without loading torch."""

from __future__ import annotations

import math

from cryoscale.config.sections import IN_SLICES
from cryoscale.data.access import Access
from cryoscale.geometry import Zyx
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.supervised_set import HEADS
from cryoscale.stages.training import batch_bytes, training_bytes, voxels_at_work

CHANNELS = {"unet2d": 64, "cnn2d-chen": 40}  # of the papers; 32 for the others
PARAMETERS = {
    "edss3d": 112_000, "ssn3d-ed": 896_000, "ssn3d-fcn": 2_043_000, "dsrf3d-v2": 1_900_000,
    "dsm-net": 2_200_000, "unet2d": 34_600_000, "cnn2d-chen": 379_000, "unet3d": 6_000_000,
}  # fmt: skip
"""Of the papers' widths, two classes; convolutions grow by the square of the width."""

FLOATS = {"unet2d": 28, "cnn2d-chen": 6, "unet3d": 14}
"""What is kept of each voxel at work for the gradient, per channel at full resolution; 8 for the others."""

WORKER_BYTES = 900 * 2**20  # an interpreter with torch and Ray Train
ASSUMED_CLASSES = 8  # where no names are known yet


def supervised_bytes(access: Access) -> int:
    """Bound a training: the set with its targets, what cutting it takes, and a step."""
    config = access.config.supervised
    assert config.model is not None
    from cryoscale.learn.recipes import recipe_of

    batch = config.batch_size or recipe_of(config.model).batch_size
    voxels, sample, gather = _set(access)
    # Statistics of a batch, and the logarithm of Chen's loss, are of the whole batch: it is not cut.
    whole = config.model == "cnn2d-chen" or config.normalises_batches
    at_work = batch * voxels if whole else voxels_at_work(batch, voxels)
    channels = config.channels or CHANNELS.get(config.model, 32)
    networks = ASSUMED_CLASSES if config.model == "cnn2d-chen" else 1  # one for each feature
    floats = 32 + channels * FLOATS.get(config.model, 8) * networks + 4 * ASSUMED_CLASSES
    activations = 4 * at_work * floats + batch_bytes(batch, voxels)
    weights = 4 * networks * _parameters(access, channels)
    # Each of several workers holds the whole set, and at worst all of them are on one machine.
    others = (config.workers - 1) * WORKER_BYTES if config.workers > 1 else 0
    return config.workers * training_bytes(activations, weights, sample, gather) + others


def _parameters(access: Access, channels: int) -> int:
    model = access.config.supervised.model
    assert model is not None
    scale = (channels / CHANNELS.get(model, 32)) ** 2
    count = PARAMETERS[model] * max(scale, channels / CHANNELS.get(model, 32))
    if model == "dsrf3d-v2":  # a dense layer looks at every pooled voxel
        count += 4 * channels * 1024 * math.prod(-(-side // 8) for side in access.config.patch.box)
    return int(count)


def _set(access: Access) -> tuple[int, int, int]:
    """Return the voxels of an item, the bytes of the whole set, and those of making it."""
    config = access.config.supervised
    if config.model in IN_SLICES:
        from cryoscale.stages import slice_set

        tile = slice_set.tile_side(access)
        return tile * tile * (2 * config.neighbours + 1), slice_set.slice_set_bytes(access), 0
    if config.truth == "subtomograms":
        return _particles(access)
    return _boxes(access)


def _particles(access: Access) -> tuple[int, int, int]:
    """All boxes as they are read, and the rows of a split copied out of them."""
    from cryoscale.data.subtomograms import ROWS_PER_SHARD
    from cryoscale.stages.particle_boxes import bytes_per_voxel, count_particles

    config = access.config.supervised
    heads = {"dsm-net": config.heads or HEADS, "dsrf3d-v2": ("cls",)}.get(str(config.model), ("seg",))
    if config.subtomograms and "seg" not in heads:
        heads = (*heads, "seg")  # masks of a table tell the contrast too
    count, box = count_particles(access)
    held = count * box.voxels * bytes_per_voxel(heads)
    return box.voxels, held, held + 12 * min(count, ROWS_PER_SHARD) * box.voxels  # a shard as it is unpacked


def _boxes(access: Access) -> tuple[int, int, int]:
    from cryoscale.stages.label_drawing import BLOCK, wanted_boxes

    box = Zyx.of(access.config.patch.box)
    shapes, gather = [], 0
    for tomogram in access.tomograms:
        levels = access.open_tomogram(tomogram).facts.levels
        shapes.append(levels[access.working_level(tomogram)].shape)
        gather = max(gather, PatchReader.for_access(access, tomogram).bytes_per_gather())
    count = wanted_boxes(access.config.supervised.max_patches, shapes, box)
    # Beside a tile: the patches of one tomogram before they take their place, and a block with its places.
    return box.voxels, 5 * count * box.voxels, gather + 4 * count * box.voxels + 12 * BLOCK**3
