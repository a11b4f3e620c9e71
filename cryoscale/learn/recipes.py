"""How the papers trained each network, and what can be done better, each improvement by its name.

A recipe says how to train; what to train is the architecture (`cryoscale.models.registry`). The plain recipe
is the paper's; numbers that no source gives are marked where they stand. Improvements are asked for one by
one, so that a benchmark can measure each apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from cryoscale.errors import ConfigurationError
from cryoscale.learn.settings import TrainSettings
from cryoscale.learn.targets import HEADS

if TYPE_CHECKING:
    from cryoscale.learn.losses import Loss, SharedLoss

ZENG = "Zeng, Leung, Zeev-Ben-Mordehai, Xu 2018, doi:10.1016/j.jsb.2017.12.015"
SSN3D = "Liu, Zeng, Lin, Liang, Freyberg, Xing, Xu 2018, arXiv:1802.04087, reference implementation"
DSM_NET = "Liu, Zeng, Wang, Guo, Xu 2018, arXiv:1805.06332"
CHE = "Che, Lin, Zeng, Elmaaroufi, Galeotti, Xu 2017, arXiv:1707.04885"
CHEN = "Chen et al. 2017, doi:10.1038/nmeth.4405, reference implementation"
UNET = "automated annotation of cellular tomograms by a 2D U-Net, its README and implementation"

IMPROVEMENTS: dict[str, str] = {
    "normalisation": "each patch is scaled to mean 0 and standard deviation 1",
    "augmentation": "patches are turned, flipped, and changed in gain, offset and noise, anew in each epoch",
    "batch_norm": "batch normalisation after the convolutions, where the network has that option",
    "schedule": "learning rate up over 5 % of the epochs, at least one, then down along half a cosine;"
    " weight decay 1e-2",
}


@dataclass(frozen=True)
class Recipe:
    """How to train one network.

    Attributes
    ----------
    model : str
        Name in the registry.
    source : str
        Where the numbers come from.
    optimiser to augmentations
        As in `TrainSettings`.
    split : (float, float, float)
        Shares of the items to train on, to validate on, and to test on.
    loss_weights : dict
        By head; see `weights_for`.
    class_weighting : {"none", "inverse"}
        Whether classes of voxels count by the inverse of their share.
    normalise : {"none", "patch", "chen"}
        What is done to the inputs: nothing beyond what the data is, mean 0 and standard deviation 1 of each
        patch, or the filters and the clamp of Chen et al.
    architecture : dict
        What an improvement changes of the network.
    improvements : tuple of str
        Which are in it; none is the paper's recipe.
    """

    model: str
    source: str
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_per_step: float = 0.0
    decay_per_epoch: float = 1.0
    batch_size: int = 64
    epochs: int = 100
    patience: int = 20
    min_delta: float = 0.0
    monitor: Literal["loss", "accuracy"] = "loss"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = 0
    augmentations: tuple[str, ...] = ()
    split: tuple[float, float, float] = (0.9, 0.1, 0.0)
    loss_weights: Mapping[str, float] = field(default_factory=lambda: {"cls": 1.0, "seg": 10.0, "rec": 1.0})
    class_weighting: Literal["none", "inverse"] = "none"
    normalise: Literal["none", "patch", "chen"] = "none"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    improvements: tuple[str, ...] = ()

    def settings(self, *, seed: int = 0, **overrides: Any) -> TrainSettings:
        """Give the settings of a training by this recipe; `overrides` are fields of `TrainSettings`.

        `validation_fraction` is that of the items left when those to test on are taken away.
        """
        train, validation, _ = self.split
        values: dict[str, Any] = {name: getattr(self, name) for name in SHARED}
        values |= {"validation_fraction": validation / (train + validation), "seed": seed}
        epochs = int(overrides.get("epochs", self.epochs))
        same_share = math.ceil(self.warmup_epochs * epochs / self.epochs)
        values["warmup_epochs"] = max(0, min(same_share, epochs - 1))  # of one epoch nothing would be left
        return TrainSettings(**{**values, **overrides})

    def weights_for(self, heads: Iterable[str]) -> dict[str, float]:
        """Give the loss weights of a network with these heads.

        The ratios of the full network hold for those that lack a head, but for recovery beside classification
        alone, which DSM-Net's ablation weighs 1 : 10.
        """
        asked = tuple(head for head in HEADS if head in set(heads))
        if asked == ("cls", "rec") and self.model == "dsm-net":
            return {"cls": 1.0, "rec": 10.0}
        if len(asked) == 1:
            return {asked[0]: 1.0}
        return {head: self.loss_weights[head] for head in asked}


SHARED = (
    "optimiser", "learning_rate", "betas", "momentum", "nesterov", "weight_decay", "decay_per_step",
    "decay_per_epoch", "batch_size", "epochs", "patience", "min_delta", "monitor", "schedule",
    "warmup_epochs", "augmentations",
)  # fmt: skip

# 80 % to train on, 10 % to validate on, 10 % to test on: DSM-Net and the 2D U-Net.
_WITH_TEST = (0.8, 0.1, 0.1)
_USUAL = (0.9, 0.999)  # betas of Keras and torch, where a source names Adam and its learning rate alone

RECIPES: dict[str, Recipe] = {
    recipe.model: recipe
    for recipe in (
        # The paper names no greatest number of epochs: patience ends it.
        Recipe("edss3d", ZENG, batch_size=128, patience=20),
        Recipe(
            "ssn3d-ed", SSN3D, betas=_USUAL, batch_size=128, epochs=150, patience=20, min_delta=1e-4,
            monitor="accuracy",
        ),
        Recipe(
            "ssn3d-fcn", f"{SSN3D}; as SSN3D-ED", betas=_USUAL, batch_size=128, epochs=150, patience=20,
            min_delta=1e-4, monitor="accuracy",
        ),
        # Its optimiser is its own; batch, epochs, patience and split are those of the comparison in DSM-Net.
        Recipe(
            "dsrf3d-v2", f"{CHE}, reference implementation; budget of {DSM_NET}",
            optimiser="sgd", learning_rate=0.005, decay_per_step=1e-7, momentum=0.9, nesterov=True,
            batch_size=64, epochs=100, patience=15, split=_WITH_TEST,
        ),
        Recipe("dsm-net", DSM_NET, batch_size=64, epochs=100, patience=15, split=_WITH_TEST),
        # Nothing is said of stopping early: patience is the number of epochs.
        Recipe(
            "unet2d", UNET, betas=_USUAL, batch_size=4, epochs=50, patience=50, split=_WITH_TEST,
            class_weighting="inverse",
        ),
        Recipe(
            "cnn2d-chen", CHEN, optimiser="sgd", learning_rate=0.01, decay_per_epoch=0.9, batch_size=20,
            epochs=20, patience=20, normalise="chen", augmentations=("rotations",),
        ),
        Recipe(
            "unet3d", "ours: that of DSM-Net in smaller batches", batch_size=16, epochs=100,
            patience=15, split=_WITH_TEST,
        ),
    )
}  # fmt: skip

_BATCH_NORM = ("ssn3d-ed", "dsm-net")  # networks with that option
_PLANAR = ("unet2d", "cnn2d-chen")


def recipe_of(model: str, *, improved: bool | Iterable[str] = False) -> Recipe:
    """Give the recipe of a network.

    Parameters
    ----------
    model : str
        Name in the registry.
    improved : bool or names of improvements
        False for the paper's recipe, True for all of `IMPROVEMENTS` that this network can have.

    Raises
    ------
    ConfigurationError
        No recipe of that name, no such improvement, or one that this network cannot have.
    """
    if model not in RECIPES:
        raise ConfigurationError(f"There is no recipe for {model!r}.", remedy=f"Known: {', '.join(RECIPES)}.")
    recipe = RECIPES[model]
    known = improvements_of(model)
    asked = known if improved is True else () if improved is False else tuple(improved)
    for name in asked:
        if name not in known:
            raise ConfigurationError(
                f"{model} has no improvement {name!r}.", remedy=f"It has {', '.join(known)}."
            )
    for name in dict.fromkeys(asked):
        recipe = _IMPROVE[name](recipe)
    return replace(recipe, improvements=tuple(name for name in IMPROVEMENTS if name in asked))


def improvements_of(model: str) -> tuple[str, ...]:
    """List the improvements that a network can have."""
    without = {name for name in ("batch_norm",) if model not in _BATCH_NORM}
    if model == "cnn2d-chen":  # its inputs are filtered and scaled already
        without.add("normalisation")
    return tuple(name for name in IMPROVEMENTS if name not in without)


def _augmented(recipe: Recipe) -> Recipe:
    names = ("turns", "flips", *(("rotations",) if recipe.model in _PLANAR else ()), "intensity")
    return replace(recipe, augmentations=names)


def _normalised(recipe: Recipe) -> Recipe:
    return replace(recipe, normalise="patch")


def _with_batch_norm(recipe: Recipe) -> Recipe:
    return replace(recipe, architecture={**recipe.architecture, "batch_norm": True})


def _scheduled(recipe: Recipe) -> Recipe:
    return replace(recipe, schedule="cosine", warmup_epochs=math.ceil(recipe.epochs / 20), weight_decay=1e-2)


_IMPROVE: dict[str, Callable[[Recipe], Recipe]] = {
    "normalisation": _normalised,
    "augmentation": _augmented,
    "batch_norm": _with_batch_norm,
    "schedule": _scheduled,
}


def loss_of(
    recipe: Recipe,
    heads: Iterable[str],
    class_weights: tuple[float, ...] | None = None,
    *,
    weights: Mapping[str, float] | None = None,
) -> Loss | SharedLoss:
    """Make the loss of a network with these heads.

    Parameters
    ----------
    recipe : Recipe
    heads : names
        The network's, "cls", "seg", "rec".
    class_weights : tuple of float, optional
        Of the classes of "seg": `class_weights_of(targets, n_classes, power=1)` where the recipe weighs
        classes.
    weights : mapping, optional
        Other weights of the heads than the recipe's; heads without one are not trained.

    Raises
    ------
    ConfigurationError
        The recipe weighs classes, and no weights are given.
    """
    from cryoscale.learn.chen import ChenLoss
    from cryoscale.learn.multitask import MultiTaskLoss

    if recipe.model == "cnn2d-chen":
        return ChenLoss()
    if recipe.class_weighting == "inverse" and class_weights is None:
        raise ConfigurationError(
            f"The recipe of {recipe.model} weighs its classes, but there are no class weights.",
            remedy="Take those of `class_weights_of(targets, n_classes, power=1)`.",
        )
    return MultiTaskLoss(dict(weights or recipe.weights_for(heads)), class_weights=class_weights)
