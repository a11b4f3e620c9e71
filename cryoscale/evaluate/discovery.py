"""Unseen structures: train DSM-Net without one class, and look for it among the features of all boxes.

The protocol of Liu, Zeng, Wang, Guo, Xu 2018 (DSM-Net), section 3.5, arXiv:1805.06332. What the paper leaves
open is chosen here and written into the result; docs/discovery.md says what.

Shape suffixes: N subtomograms, C channels, F features, K classes, ZYX voxels.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.run import Run
from cryoscale.data.truth import read_truth
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.boxes import Boxes
from cryoscale.evaluate.discovery_training import HEADS, MODEL, Trained, known_rows, train_without
from cryoscale.evaluate.novelty import (
    COMPONENTS,
    clusters_of,
    novelty_scores,
    picture_of,
    principal_components,
    without_the_truth,
)
from cryoscale.evaluate.recovery import Recovery, recovery_of
from cryoscale.evaluate.structure_scores import ReadDensity, density_of_class, tilts_of
from cryoscale.evaluate.subtomogram_scores import Found, subtomogram_scores

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cryoscale.learn.settings import EpochRecord

Floats = npt.NDArray[np.float32]

BATCH = 16
"""Subtomograms that go through the trained network together, always so many: results do not depend on how
many there are in all."""


@dataclass(frozen=True)
class Novelty:
    """What is asked of a discovery.

    Parameters
    ----------
    left_out : str
        The class that the training does not see.
    n_clusters : int
        k of k-means; the paper has 22.
    seed : int
        Of the clusters, of what chance reaches and of the picture. The training has its own.
    """

    left_out: str
    n_clusters: int = 22
    seed: int = 0


@dataclass(frozen=True)
class Answers:
    """What a trained network says of all subtomograms.

    Parameters
    ----------
    features_NF : (N, F) float32
        The dense layer before the classes.
    class_N : (N,) int64
        The likeliest class, a row of the names of **all** classes.
    confidence_N : (N,) float32
        Its probability.
    labels_NZYX : (N, Z, Y, X) uint8 or None
        Without "seg" None.
    density_NZYX : (N, Z, Y, X) float32 or None
        In the units of the truth; without "rec" None.
    """

    features_NF: Floats
    class_N: npt.NDArray[np.int64]
    confidence_N: Floats
    labels_NZYX: npt.NDArray[np.uint8] | None
    density_NZYX: Floats | None


def check(boxes: Boxes, asked: Novelty, supervised: SupervisedConfig) -> SupervisedConfig:
    """Check what is asked before any training time is spent; return the settings with their heads.

    Raises
    ------
    ConfigurationError
        No such class (the nearest one is named), more clusters than subtomograms, nothing left to train on,
        or a network without features.
    """
    if asked.left_out not in boxes.class_names:
        near = difflib.get_close_matches(asked.left_out, boxes.class_names, n=1, cutoff=0.4)
        raise ConfigurationError(
            f"no subtomogram is of a class '{asked.left_out}'.",
            remedy=(f"Did you mean '{near[0]}'? " if near else "")
            + f"There are: {', '.join(boxes.class_names)}.",
        )
    if not 2 <= asked.n_clusters < len(boxes):
        raise ConfigurationError(
            f"{asked.n_clusters} clusters of {len(boxes)} subtomograms tell nothing.",
            remedy="Give --clusters from 2 to fewer than there are subtomograms; "
            "more than there are classes, the paper says.",
        )
    if supervised.model not in (None, MODEL):
        raise ConfigurationError(
            f"features come from {MODEL}, not from {supervised.model}.", remedy="Leave supervised.model away."
        )
    heads = supervised.heads or HEADS
    if "cls" not in heads:
        raise ConfigurationError(
            f"supervised.heads = {list(heads)} has no 'cls', and features come with it.",
            remedy="Add it, or leave supervised.heads away.",
        )
    train, validation = known_rows(boxes, asked.left_out)
    if not len(train) or not len(validation):
        raise ConfigurationError(
            f"without '{asked.left_out}' {len(train)} subtomograms are left to train on and "
            f"{len(validation)} to validate on.",
            remedy="Simulate more, or change simulate.subtomograms.split.",
        )
    return SupervisedConfig.model_validate(supervised.model_dump() | {"model": MODEL, "heads": heads})


def answers_of(trained: Trained, boxes: Boxes) -> Answers:
    """Run all subtomograms through the trained network."""
    names = {name: row for row, name in enumerate(boxes.class_names)}
    of_known = np.array([names[name] for name in trained.class_names])
    parts: dict[str, list[npt.NDArray[Any]]] = {}

    def keep(batch: Tensor, count: int) -> None:
        import torch

        given = trained.module(batch)
        outputs: Mapping[str, Tensor] = given if isinstance(given, Mapping) else {"cls": given}
        best = torch.softmax(outputs["cls"].float(), dim=1).max(dim=1)
        features: Tensor = trained.module.features(batch)  # type: ignore[operator]
        made = {"features": features, "class": best.indices, "confidence": best.values}
        if "seg" in outputs:
            made["labels"] = outputs["seg"].argmax(dim=1).to(torch.uint8)
        if "rec" in outputs:
            made["density"] = outputs["rec"][:, 0].float() * float(trained.card["density_scale"])
        for name, values in made.items():
            parts.setdefault(name, []).append(values[:count].cpu().numpy())

    _in_batches(trained.module, boxes.data_NZYX, keep)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return Answers(
        joined["features"], of_known[joined["class"]], joined["confidence"], joined.get("labels"),
        joined.get("density"),
    )  # fmt: skip


def untrained_features(trained: Trained, boxes: Boxes, seed: int) -> Floats:
    """Return the features of the same network before any training: what the architecture alone gives."""
    from cryoscale.models.registry import build

    module = build(trained.card["architecture"], seed=seed).eval()
    module.to(next(trained.module.parameters()).device)
    parts: list[Floats] = []

    def keep(batch: Tensor, count: int) -> None:
        parts.append(module.features(batch)[:count].cpu().numpy())  # type: ignore[operator]

    _in_batches(module, boxes.data_NZYX, keep)
    return np.concatenate(parts)


def _in_batches(module: nn.Module, data_NZYX: Floats, keep: Callable[[Tensor, int], None]) -> None:
    """Give padded batches of one size to a function; `count` says how many of them are real."""
    import torch

    device = next(module.parameters()).device
    with torch.no_grad():
        for start in range(0, len(data_NZYX), BATCH):
            part = data_NZYX[start : start + BATCH]
            batch = torch.zeros((BATCH, 1, *part.shape[1:]))
            batch[: len(part), 0] = torch.from_numpy(np.ascontiguousarray(part))
            keep(batch.to(device), len(part))


def network_scores(boxes: Boxes, asked: Novelty, answers: Answers) -> dict[str, Any]:
    """Score what the network says of test rows of the classes it knows, and of the one left out.

    Returns
    -------
    scores : dict
        `known` and `unseen`, each as of `subtomogram_scores`; None where there are no such rows. Of the
        unseen class `taken_for` counts which known classes it was taken for.
    """
    unseen_N = boxes.names_N == asked.left_out
    true_class_N = np.where(unseen_N, -1, boxes.class_N)
    mask_NZYX = (boxes.mask_NZYX > 0).astype(np.uint8)
    truth = Found(true_class_N, mask_NZYX, boxes.density_NZYX)
    found = Found(answers.class_N, answers.labels_NZYX, answers.density_NZYX)
    scores: dict[str, Any] = {}
    for what, rows_N in (("known", ~unseen_N & (boxes.split_N == "test")), ("unseen", unseen_N)):
        rows = np.flatnonzero(rows_N)
        scores[what] = (
            subtomogram_scores(truth.only(rows), found.only(rows), boxes.class_names) if len(rows) else None
        )
    if scores["unseen"] is not None:
        scores["unseen"].pop("by_class", None)
        counts = np.bincount(answers.class_N[unseen_N], minlength=len(boxes.class_names))
        scores["unseen"]["taken_for"] = {
            name: int(count) for name, count in zip(boxes.class_names, counts, strict=True) if count
        }
    return scores


@dataclass(frozen=True)
class Discovery:
    """All that a discovery found.

    Parameters
    ----------
    boxes : Boxes
        What it was made from.
    asked : Novelty
        What was asked.
    trained : Trained
        The network.
    answers : Answers
        What it says.
    ids_N : (N,) int64
        Clusters of the network's features.
    layout_N2 : (N, 2) float32
        The picture of them.
    recovery : Recovery or None
        Without the head "rec" None.
    scores : dict
        Plain values: see `discover`.
    """

    boxes: Boxes
    asked: Novelty
    trained: Trained
    answers: Answers
    ids_N: npt.NDArray[np.int64]
    layout_N2: Floats
    recovery: Recovery | None
    scores: dict[str, Any]


def discover(
    run: Run,
    boxes: Boxes,
    asked: Novelty,
    supervised: SupervisedConfig,
    folder: ModelFolder,
    *,
    device: str = "auto",
    read_density: ReadDensity | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    tell: Callable[[str], None] = lambda words: None,
) -> Discovery:
    """Train without a class, and look for it.

    Parameters
    ----------
    run : Run
        Of a simulation, with subtomograms.
    boxes : Boxes
        Those of it that are looked at.
    supervised : SupervisedConfig
        How to train; unset keys are the paper's.
    folder : ModelFolder
        Takes the model and its checkpoint.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    read_density : callable, optional
        Path of a map to values and voxel size: the recovered density is then compared with that of the class.
    on_epoch, tell : callable
        Told of each epoch, and of each step.

    Returns
    -------
    discovery : Discovery
        `scores` has `left_out`, `n_clusters`, `seed`, `subtomograms`, `unseen`, `classes`, `box_voxels`,
        `voxel_size_angstrom`; `training`; `network` (`network_scores`); `features`: "trained", "untrained"
        (the same network before training) and "components" (50 principal components of the raw boxes), each
        as of `novelty_scores`; `without_truth`; `recovery`.

    Raises
    ------
    ConfigurationError
        See `check`.
    """
    supervised = check(boxes, asked, supervised)
    trained = train_without(boxes, asked.left_out, supervised, folder, device=device, on_epoch=on_epoch)
    tell("features of all subtomograms")
    answers = answers_of(trained, boxes)
    unseen_N = boxes.names_N == asked.left_out
    held_out_N = unseen_N | (boxes.split_N == "test")
    kinds = {
        "trained": answers.features_NF,
        "untrained": untrained_features(trained, boxes, supervised.seed),
        "components": principal_components(boxes.data_NZYX, COMPONENTS, asked.seed),
    }
    tell("clusters")
    ids = {name: clusters_of(found_NF, asked.n_clusters, asked.seed) for name, found_NF in kinds.items()}
    features = {
        name: novelty_scores(ids_N, unseen_N, boxes.class_N, seed=asked.seed, held_out_N=held_out_N)
        for name, ids_N in ids.items()
    }
    ids_N, richest = ids["trained"], int(features["trained"]["richest"])
    tell("picture")
    layout_N2 = picture_of(answers.features_NF, asked.seed)
    tell("recovered density")
    recovery = _recovery(run, boxes, asked, answers, np.flatnonzero(ids_N == richest), read_density)
    card = trained.card
    scores: dict[str, Any] = {
        "left_out": asked.left_out, "n_clusters": asked.n_clusters, "seed": asked.seed,
        "subtomograms": len(boxes), "unseen": int(unseen_N.sum()), "classes": list(boxes.class_names),
        "box_voxels": boxes.side, "voxel_size_angstrom": boxes.voxel_size_angstrom,
        "training": {**card["training"], **card["metrics"], "architecture": dict(card["architecture"])},
        "network": network_scores(boxes, asked, answers),
        "features": features,
        "without_truth": without_the_truth(answers.confidence_N, ids_N, unseen_N, held_out_N, richest),
        "recovery": None if recovery is None else recovery.scores,
    }  # fmt: skip
    return Discovery(boxes, asked, trained, answers, ids_N, layout_N2, recovery, scores)


def _recovery(
    run: Run,
    boxes: Boxes,
    asked: Novelty,
    answers: Answers,
    members: npt.NDArray[np.int64],
    read_density: ReadDensity | None,
) -> Recovery | None:
    """Compare recovered densities with that of the class; None where the network recovers none."""
    if answers.density_NZYX is None:
        return None
    unseen_N = boxes.names_N == asked.left_out
    truth = None
    if read_density is not None:
        truths = [read_truth(run.truth, str(name)) for name in np.unique(boxes.tomogram_N[unseen_N])]
        truth = density_of_class(run, truths, asked.left_out, read_density)
    return recovery_of(
        boxes, answers.density_NZYX, members, np.flatnonzero(unseen_N), truth,
        tilts_degrees=tilts_of(run), seed=asked.seed,
    )  # fmt: skip
