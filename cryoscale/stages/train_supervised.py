"""Train a network on what is known: drawn or simulated label volumes, or subtomograms with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cryoscale.config.run import RunConfig
from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.access import Access
from cryoscale.data.weights import identity_of
from cryoscale.errors import NothingToDoError
from cryoscale.learn.settings import history_columns
from cryoscale.stages.base import WholeStage
from cryoscale.stages.networks import worker_threads
from cryoscale.stages.supervised_set import SupervisedSet, check_request, supervised_set
from cryoscale.stages.supervised_sizes import supervised_bytes
from cryoscale.stages.supervised_weights import import_supervised
from cryoscale.stages.training import (
    card_of,
    finished_card,
    supervised_settings,
    train,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cryoscale.learn.recipes import Recipe
    from cryoscale.learn.settings import TrainSettings
    from cryoscale.runtime.ray_train import TrainingWorker

WEIGHTING = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}  # power of a class' share


@dataclass(frozen=True)
class Trained:
    """What the first worker of a training brings home."""

    state: dict[str, Tensor]
    card: dict[str, Any]
    history: dict[str, Any]
    notes: dict[str, Any]


class TrainSupervisedStage(WholeStage):
    """From labels or subtomograms to the weights of any network of the registry."""

    name = "train_supervised"
    engine = "model"
    reads = frozenset({"tomogram", "picks", "annotation", "truth_labels", "subtomograms"})
    writes = "segmenter"

    def compute(self, access: Access) -> dict[str, Any]:
        """Train, or take given weights; a killed training goes on at its last epoch.

        Raises
        ------
        ConfigurationError
            Model, truth and settings do not go together, or given weights are of another network.
        DataError
            The truth cannot be used.
        """
        config = access.config.supervised
        if config.weights:
            return import_supervised(access, config.weights)
        check_request(access.config)
        if card := finished_card(access, "segmenter"):
            return _facts(card)
        from cryoscale.runtime.ray_train import train_on_workers

        trained = train_on_workers(
            train_one, access, workers=config.workers, gpus_per_worker=_gpus(config),
            threads=config.threads or max(1, worker_threads() // config.workers),
        )  # fmt: skip
        digest = access.model("segmenter").save(trained.state, trained.card, trained.history)
        return {**_facts({**trained.card, "weights_sha256": digest}), **trained.notes}

    def bytes_needed(self, access: Access) -> int:
        """Bound the set in memory, what cutting it takes, and a training step."""
        return 0 if access.config.supervised.weights else supervised_bytes(access)


def train_one(access: Access, worker: TrainingWorker) -> Trained:
    """Make the set and train on it, alone or as one of several; the first worker writes the checkpoint."""
    from cryoscale.learn.distributed import group_of
    from cryoscale.learn.recipes import recipe_of
    from cryoscale.learn.training import split_rows
    from cryoscale.models.registry import build

    config = access.config.supervised
    assert config.model is not None
    made = supervised_set(access)
    if len(made) < 2:
        raise NothingToDoError(f"{len(made)} items are too few to train on.", remedy="Label more.")
    wanted = architecture_for(
        access.config, tuple(made.targets), len(made.class_names), len(made.particle_names)
    )
    architecture: dict[str, Any] = build(wanted).architecture  # type: ignore[assignment]
    recipe = recipe_of(config.model)
    settings = replace(supervised_settings(config, recipe), device=worker.device)
    with group_of(worker) as group:
        module, result, notes = train(
            access, "segmenter", lambda: build(architecture, seed=config.seed), made.inputs, made.targets,
            _loss(config, recipe, made), settings, validation_rows=made.validation_rows, group=group,
        )  # fmt: skip
    card = card_of(
        access, architecture, result, settings, len(made), voxel_size=lambda _: made.voxel_size_angstrom
    )
    _describe(card, config, made, settings)
    best = result.history[result.best_epoch - 1]
    parts = sorted(best.validation_parts.items())  # a checkpoint gives them back in this order
    card["metrics"] |= {f"validation_{part}": value for part, value in parts}
    if worker.rank == 0:
        from cryoscale.stages.supervised_scores import classes_of, scores_of

        if "seg" in made.targets:
            held_back = split_rows(len(made), settings, made.validation_rows)[1]
            card["held_back"] = classes_of(module, made.taken(held_back))
        if made.test is not None:
            card["metrics"] |= scores_of(module, made.test)
    return Trained(result.best_state, card, history_columns(result.history), notes)


def architecture_for(config: RunConfig, heads: Sequence[str], labels: int, particles: int) -> dict[str, Any]:
    """Describe the network of a configuration.

    Parameters
    ----------
    config : RunConfig
    heads : sequence of str
        What dsm-net learns; other networks have their own.
    labels : int
        Classes of voxels, without the background.
    particles : int
        Classes of particles.
    """
    asked = config.supervised
    architecture: dict[str, Any] = {"name": asked.model}
    if asked.model == "dsm-net":
        architecture |= {
            "heads": list(heads),
            "n_classes": max(2, particles),  # without its head the number is not used
            "n_labels": max(2, labels + 1),
        }
    elif asked.model == "dsrf3d-v2":
        architecture |= {"n_classes": particles, "box": list(config.patch.box)}
    else:
        architecture["n_classes"] = labels + 1
    if asked.model == "unet2d":
        architecture["slices"] = 2 * asked.neighbours + 1
    if asked.channels is not None:
        architecture["channels"] = asked.channels
    if asked.batch_norm is not None:
        architecture["batch_norm"] = asked.batch_norm
    return architecture


def _gpus(config: SupervisedConfig) -> float:
    """Return the devices of each worker, where several train together."""
    if config.workers == 1:
        return 0.0
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def _loss(config: SupervisedConfig, recipe: Recipe, made: SupervisedSet) -> Any:
    """Return the recipe's loss, with the weights of heads and classes that the configuration asks for."""
    from cryoscale.learn.losses import class_weights_of
    from cryoscale.learn.recipes import loss_of

    heads = tuple(made.targets)
    weights = recipe.weights_for(heads)
    if config.loss_weights:
        given: dict[str, float] = dict(
            zip(config.heads or ("cls", "seg", "rec"), config.loss_weights, strict=True)
        )
        weights = {head: given[head] for head in heads if given[head] > 0}
    weighting = config.class_weighting or recipe.class_weighting
    recipe = replace(recipe, class_weighting="none")  # the loss takes the weights that are given
    classes = None
    if weighting != "none" and "seg" in heads:
        power = WEIGHTING[weighting]
        classes = class_weights_of(made.targets["seg"], len(made.class_names) + 1, power=power)
    return loss_of(recipe, heads, classes, weights=weights)


def _describe(
    card: dict[str, Any], config: SupervisedConfig, made: SupervisedSet, settings: TrainSettings
) -> None:
    """Write into a card what the network was made of, what its outputs mean, and how its inputs are made."""
    card["training"] |= {
        "truth": config.truth,
        "optimiser": settings.optimiser,
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
        "augment": list(settings.augmentations),
        "workers": config.workers,
        **made.notes,
    }
    if "seg" in made.targets:
        card["classes"] = {"names": list(made.class_names), "colors": [list(c) for c in made.colors]}
    if "cls" in made.targets:
        card["particles"] = {"names": list(made.particle_names)}
    if made.slices:
        card["slices"] = dict(made.slices)
    if made.preprocessing:
        card["preprocessing"] = dict(made.preprocessing)


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    """Return what the ledger and the summary say of a trained network, from its card alone."""
    from cryoscale.stages.supervised_scores import doubts_about

    facts = {"hash": identity_of(card), "patches": card["training"]["patches"], **card["metrics"]}
    if doubts := doubts_about(card.get("held_back", {})):
        facts["warning"] = doubts
    return facts
