"""Recipes: the sources' numbers, and improvements one by one."""

from dataclasses import fields

import pytest

from cryoscale.errors import ConfigurationError
from cryoscale.learn.chen import ChenLoss
from cryoscale.learn.multitask import MultiTaskLoss
from cryoscale.learn.recipes import IMPROVEMENTS, RECIPES, improvements_of, loss_of, recipe_of
from cryoscale.models.registry import MODELS


def test_there_is_a_recipe_for_every_supervised_network():
    assert set(RECIPES) == set(MODELS) - {"autoencoder3d"}
    assert all(recipe.source and recipe.model == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        ("edss3d", {"learning_rate": 1e-3, "betas": (0.9, 0.99), "batch_size": 128, "patience": 20}),
        ("ssn3d-ed", {"learning_rate": 1e-3, "batch_size": 128, "epochs": 150, "patience": 20,
                      "min_delta": 1e-4, "monitor": "accuracy"}),
        ("dsrf3d-v2", {"optimiser": "sgd", "learning_rate": 0.005, "decay_per_step": 1e-7, "momentum": 0.9,
                       "nesterov": True}),
        ("dsm-net", {"learning_rate": 1e-3, "betas": (0.9, 0.99), "batch_size": 64, "epochs": 100,
                     "patience": 15, "validation_fraction": pytest.approx(1 / 9)}),
        ("unet2d", {"learning_rate": 1e-3, "batch_size": 4, "epochs": 50}),
        ("cnn2d-chen", {"optimiser": "sgd", "learning_rate": 0.01, "decay_per_epoch": 0.9, "epochs": 20,
                        "batch_size": 20}),
    ],
)  # fmt: skip
def test_settings_are_those_of_the_source(model, numbers):
    settings = recipe_of(model).settings(seed=4)
    assert {name: getattr(settings, name) for name in numbers} == numbers
    assert settings.seed == 4
    assert recipe_of(model).improvements == ()


def test_overrides_win():
    settings = recipe_of("dsm-net", improved=True).settings(epochs=2, batch_size=3, augmentations=())
    assert (settings.epochs, settings.batch_size, settings.augmentations) == (2, 3, ())
    assert settings.warmup_epochs == 1


@pytest.mark.parametrize(("epochs", "warm"), [(100, 5), (101, 6), (30, 2), (10, 1), (2, 1), (1, 0)])
def test_the_warm_up_is_5_percent_and_at_least_one_epoch_if_another_is_left(epochs, warm):
    assert recipe_of("dsm-net", improved=["schedule"]).settings(epochs=epochs).warmup_epochs == warm
    assert recipe_of("dsm-net").settings(epochs=epochs).warmup_epochs == 0


@pytest.mark.parametrize("model", RECIPES)
def test_no_schedule_is_without_a_warm_up(model):
    recipe = recipe_of(model, improved=["schedule"])
    assert recipe.warmup_epochs == -(-recipe.epochs // 20) >= 1


def changes_of(recipe):
    plain = recipe_of(recipe.model)
    return {f.name for f in fields(recipe) if getattr(recipe, f.name) != getattr(plain, f.name)}


def test_each_improvement_changes_what_it_says_and_nothing_else():
    changed = {
        "normalisation": {"normalise"},
        "augmentation": {"augmentations"},
        "batch_norm": {"architecture"},
        "schedule": {"schedule", "warmup_epochs", "weight_decay"},
    }
    assert set(changed) == set(IMPROVEMENTS) == set(improvements_of("dsm-net"))
    for name, which in changed.items():
        recipe = recipe_of("dsm-net", improved=[name])
        assert changes_of(recipe) == which | {"improvements"}
        assert recipe.improvements == (name,)
    everything = recipe_of("dsm-net", improved=True)
    assert everything == recipe_of("dsm-net", improved=list(reversed(IMPROVEMENTS)))
    assert changes_of(everything) == set().union(*changed.values()) | {"improvements"}


@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("model", RECIPES)
def test_settings_hold_every_number_that_a_recipe_and_they_share(model, improved):
    recipe = recipe_of(model, improved=improved)
    settings = recipe.settings()
    shared = {f.name for f in fields(recipe)} & {f.name for f in fields(settings)}
    assert {"weight_decay", "warmup_epochs", "optimiser", "monitor"} <= shared
    for name in shared:
        assert getattr(settings, name) == getattr(recipe, name), name


def test_what_a_network_cannot_have_is_refused():
    with pytest.raises(ConfigurationError, match="no improvement 'batch_norm'"):
        recipe_of("dsrf3d-v2", improved=["batch_norm"])
    with pytest.raises(ConfigurationError, match="no improvement 'luck'"):
        recipe_of("dsm-net", improved=["luck"])
    with pytest.raises(ConfigurationError, match="no recipe for 'autoencoder3d'"):
        recipe_of("autoencoder3d")


def test_losses_of_the_ablations():
    recipe = recipe_of("dsm-net")

    def weights(*heads):
        return dict(loss_of(recipe, heads).weights)

    assert weights("cls", "seg", "rec") == {"cls": 1, "seg": 10, "rec": 1}
    assert weights("cls", "seg") == {"cls": 1, "seg": 10}
    assert weights("rec", "cls") == {"cls": 1, "rec": 10}
    assert weights("cls") == {"cls": 1}
    assert dict(loss_of(recipe, ("cls", "seg"), weights={"cls": 1, "seg": 100}).weights)["seg"] == 100
    assert isinstance(loss_of(recipe_of("cnn2d-chen"), ("seg",)), ChenLoss)


def test_class_weights_are_asked_for_where_the_recipe_has_them():
    with pytest.raises(ConfigurationError, match="weighs its classes"):
        loss_of(recipe_of("unet2d"), ("seg",))
    assert loss_of(recipe_of("unet2d"), ("seg",), (0.5, 2.0)) == MultiTaskLoss({"seg": 1.0}, (0.5, 2.0))
