"""Every supervised network through the training loop, by its own recipe, on a few tiny items."""

import numpy as np
import pytest
import torch

from cryoscale.learn.losses import class_weights_of
from cryoscale.learn.recipes import IMPROVEMENTS, RECIPES, improvements_of, loss_of, recipe_of
from cryoscale.learn.training import fit
from cryoscale.models.registry import build
from tests.learn.test_training import Killed, Memory, killed_after, same_bits, without_seconds

N, SIDE = 13, 8
ARCHITECTURES = {
    "edss3d": {"n_classes": 2, "channels": 3},
    "ssn3d-ed": {"channels": 3},
    "ssn3d-fcn": {"channels": 2},
    "dsrf3d-v2": {"n_classes": 3, "box": [SIDE] * 3, "channels": 2},
    "dsm-net": {"n_classes": 3, "channels": 3, "features": 16},
    "unet2d": {"n_classes": 3, "channels": 2},
    "cnn2d-chen": {"n_classes": 3, "channels": 2, "kernel": 3},
    "unet3d": {"n_classes": 2, "channels": 2},
}
QUICK = {"epochs": 3, "batch_size": 5, "seed": 2}


def data_of(model, seed=0):
    rng = np.random.default_rng(seed)
    plane = model in ("unet2d", "cnn2d-chen")
    sides = (32, 32) if plane else (SIDE,) * 3
    labels = 3 if plane else 2
    seg = rng.integers(labels, size=(N, *sides)).astype(np.uint8)
    seg[:, :2] = 255
    targets = {
        "cls": rng.integers(3, size=N),
        "seg": seg,
        "rec": rng.normal(size=(N, 1, *sides)).astype(np.float32),
    }
    return rng.normal(size=(N, 1, *sides)).astype(np.float32), targets


def training_of(model, *, improved=False, **changes):
    recipe = recipe_of(model, improved=improved)
    inputs, targets = data_of(model)
    architecture = {"name": model, **ARCHITECTURES[model], **recipe.architecture}
    heads = build(architecture).heads
    weights = class_weights_of(targets["seg"], 3, power=1) if recipe.class_weighting == "inverse" else None
    loss = loss_of(recipe, heads, weights)
    settings = recipe.settings(**{**QUICK, **changes})
    wanted = {head: targets[head] for head in heads}

    def train(seed=0, **keywords):
        module = build(architecture, seed=seed)
        return module, fit(module, inputs, wanted, loss, settings, **keywords)

    return train


@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("model", RECIPES)
def test_a_killed_training_of_any_network_goes_on_to_the_same_bits(model, improved):
    train = training_of(model, improved=improved)
    _, undisturbed = train()
    checkpoint = Memory()
    with pytest.raises(Killed):
        train(checkpoint=checkpoint, on_epoch=killed_after(1))
    torch.manual_seed(99)  # another process
    module, resumed = train(seed=7, checkpoint=checkpoint)
    assert same_bits(resumed.best_state, undisturbed.best_state)
    assert same_bits(module.state_dict(), undisturbed.best_state)
    assert without_seconds(resumed.history) == without_seconds(undisturbed.history)
    assert all(np.isfinite(record.validation_loss) for record in undisturbed.history)
    assert set(improvements_of(model)) <= set(IMPROVEMENTS)
