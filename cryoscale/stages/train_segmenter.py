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
from cryoscale.data.weights import ModelCheckpoint
from cryoscale.errors import DataError, NothingToDoError, StateError
from cryoscale.ops.shape import otsu_level
from cryoscale.stages.base import WholeStage
from cryoscale.stages.networks import open_decoder
from cryoscale.stages.training import (
    card_of,
    gather_rows,
    history_columns,
    import_model,
    sample_rows,
    settings_for,
)

Patches = npt.NDArray[np.float32]
MOST_FILLED = 0.7  # a level that calls more of the patches object than this does not separate anything


class TrainSegmenterStage(WholeStage):
    """From a selection of clusters to the weights of a segmentation network."""

    name = "train_segmenter"
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
        from cryoscale.learn.losses import SegmentationLoss
        from cryoscale.learn.training import fit
        from cryoscale.models.registry import build

        selection = _selection(access)
        inputs, targets, level = _training_set(access, selection)
        architecture = {
            "name": "edss3d", "n_classes": len(selection.classes) + 1, "channels": config.channels,
        }  # fmt: skip
        settings = settings_for(config)
        folder = access.model("segmenter")
        result = fit(
            build(architecture, seed=config.seed),
            inputs[:, None],
            targets,
            SegmentationLoss(),
            settings,
            checkpoint=ModelCheckpoint(folder.folder, access.key),
        )
        card = card_of(access, architecture, result, settings, len(inputs))
        card["classes"] = {
            "names": list(selection.class_names), "colors": [list(c) for c in selection.colors],
        }  # fmt: skip
        card["metrics"]["mask_level_sd"] = level
        digest = folder.save(result.best_state, card, history_columns(result.history))
        return {"hash": digest, "patches": len(inputs), "mask_level_sd": level}


def _selection(access: Access) -> Selection:
    folder = access.clusters()
    selection = folder.selection(int(folder.card["n_clusters"]))
    if selection is None:
        raise StateError("no clusters are selected.", remedy="Edit clusters/selection.toml, then run again.")
    return selection


def _training_set(access: Access, selection: Selection) -> tuple[Patches, npt.NDArray[np.uint8], float]:
    """Gather inputs and masks: members of the selected clusters, then patches that are all background."""
    config = access.config.segmenter
    class_of = selection.class_of_cluster(int(access.clusters().card["n_clusters"]))
    classes = [class_of[access.assignments(t)[0]] for t in access.tomograms]
    chosen = [np.flatnonzero(c > 0) for c in classes]
    others = [np.flatnonzero(c == 0) for c in classes]
    total = sum(map(len, chosen))
    if total < 2:
        raise NothingToDoError(
            f"the selected clusters have {total} members.", remedy="Select larger clusters."
        )
    drawn = sample_rows([len(c) for c in chosen], config.max_patches, config.seed)
    objects = [c[d] for c, d in zip(chosen, drawn, strict=True)]
    wanted = round(config.background_share * sum(map(len, objects)))
    extra = [o[d] for o, d in zip(others, sample_rows([len(o) for o in others], wanted, config.seed + 1),
                                  strict=True)]  # fmt: skip
    inputs = [gather_rows(access, t, rows) for t, rows in zip(access.tomograms, objects, strict=True)]
    values = np.concatenate([c[rows] for c, rows in zip(classes, objects, strict=True)])
    decoded = np.concatenate([_decode(access, t, r) for t, r in zip(access.tomograms, objects, strict=True)])
    masks, level = _masks(decoded, values, selection, config.level)
    empty = [gather_rows(access, t, rows) for t, rows in zip(access.tomograms, extra, strict=True)]
    background = np.concatenate(empty)
    blank = np.zeros(background.shape, np.uint8)
    return np.concatenate([*inputs, background]), np.concatenate([masks, blank]), level


def _decode(access: Access, tomogram: str, rows: npt.NDArray[np.int64]) -> Patches:
    """Decode the encodings of some picks."""
    codes = access.encodings(tomogram).read()[rows]
    with open_decoder(access) as decoder:
        return decoder.run(codes)[:, 0]


def _masks(
    decoded: Patches, values: npt.NDArray[np.int32], selection: Selection, asked: float | None
) -> tuple[npt.NDArray[np.uint8], float]:
    """Give voxels darker than the level the class of their patch; refuse masks that say nothing."""
    level = asked if asked is not None else min(otsu_level(decoded), -1e-3)
    masks = np.where(decoded < level, values[:, None, None, None], 0).astype(np.uint8)
    for value, name in enumerate(selection.class_names, start=1):
        mine = values == value
        if not mine.any():
            continue
        share = float(np.mean(masks[mine] > 0))
        if share == 0 or share > MOST_FILLED:
            low, high = np.percentile(decoded[mine], [1, 50])
            what = "empty" if share == 0 else f"{share:.0%} full"
            raise DataError(
                f"the masks of class '{name}' are {what} at segmenter.level = {level:.3g} "
                f"(decoded members: 1st percentile {low:.3g}, median {high:.3g}).",
                remedy="Set segmenter.level between these two.",
            )
    return masks, float(level)
