"""Optimisers and learning rates against their formulas; what is monitored."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cryoscale.errors import ConfigurationError, StateError
from cryoscale.learn.checkpoint import LATER
from cryoscale.learn.losses import AutoencoderLoss, SegmentationLoss
from cryoscale.learn.optimiser import learning_rate_at
from cryoscale.learn.settings import TrainSettings
from cryoscale.learn.training import fit, split_rows
from cryoscale.models.edss3d import EDSS3D
from tests.learn.test_training import (
    Killed,
    Memory,
    killed_after,
    network,
    patches_of,
    same_bits,
    without_seconds,
)


def stepped(settings, n=11):
    """The weights after the steps that `update(weights, gradient, rate, memory)` would have taken."""
    patches = patches_of(n)
    return patches, fit(network(), patches, None, AutoencoderLoss(l1=0), settings)


def by_hand(patches, settings, update):
    module = network()
    train, _ = split_rows(len(patches), settings)
    memory, steps = {}, math.ceil(len(train) / settings.batch_size)
    for epoch in range(1, settings.epochs + 1):
        order = np.random.default_rng([settings.seed, epoch, 1]).permutation(train)
        for step in range(steps):
            rows = np.sort(order[step * settings.batch_size : (step + 1) * settings.batch_size])
            batch = torch.from_numpy(patches[rows])
            module.zero_grad()
            ((module(batch)[0] - batch) ** 2).mean().backward()
            with torch.no_grad():
                for name, weights in module.named_parameters():
                    update(name, weights, weights.grad, (epoch - 1) * steps + step, memory)
    return module.state_dict()


def test_sgd_is_keras_with_nesterov_and_decay():
    settings = TrainSettings(
        epochs=2, batch_size=4, optimiser="sgd", learning_rate=0.05, momentum=0.9, nesterov=True,
        decay_per_step=1e-7,
    )  # fmt: skip
    patches, result = stepped(settings)

    def keras(name, weights, gradient, before, memory):
        rate = 0.05 / (1 + 1e-7 * before)
        speed = 0.9 * memory.get(name, torch.zeros_like(gradient)) - rate * gradient
        memory[name] = speed
        weights += 0.9 * speed - rate * gradient

    wanted = by_hand(patches, settings, keras)
    assert result.best_epoch == 2, "the weights compared are those after all steps"
    for name, value in wanted.items():
        torch.testing.assert_close(result.best_state[name], value, rtol=1e-4, atol=1e-6)


def test_weights_shrink_apart_from_the_gradient_and_biases_do_not():
    settings = TrainSettings(
        epochs=1, batch_size=4, optimiser="sgd", learning_rate=0.1, weight_decay=0.5, decay_per_epoch=0.9
    )
    patches, result = stepped(settings)

    def shrinking(name, weights, gradient, before, memory):
        weights *= 1 - 0.1 * 0.5 if weights.ndim > 1 else 1
        weights -= 0.1 * gradient

    for name, value in by_hand(patches, settings, shrinking).items():
        torch.testing.assert_close(result.best_state[name], value, rtol=1e-4, atol=1e-6)


def test_learning_rates_fall_as_asked():
    def rates(**asked):
        settings = TrainSettings(epochs=4, learning_rate=0.1, **asked)
        return np.array([[learning_rate_at(settings, e, s, 5) for s in range(5)] for e in range(1, 5)])

    steps = np.arange(20).reshape(4, 5)
    np.testing.assert_array_equal(rates(), 0.1)
    np.testing.assert_allclose(rates(decay_per_step=0.3), 0.1 / (1 + 0.3 * steps))
    np.testing.assert_allclose(rates(decay_per_epoch=0.9), 0.1 * 0.9 ** (steps // 5))
    cosine = rates(schedule="cosine", warmup_epochs=1).ravel()
    np.testing.assert_allclose(cosine[:5], 0.1 * np.arange(1, 6) / 5)
    np.testing.assert_allclose(cosine[5:], 0.05 * (1 + np.cos(np.pi * np.arange(15) / 15)))


@pytest.mark.parametrize(
    "asked",
    [
        {"optimiser": "sgd", "momentum": 0.9, "nesterov": True, "decay_per_step": 0.01},
        {"optimiser": "sgd", "decay_per_epoch": 0.9},
        {"schedule": "cosine", "warmup_epochs": 1, "weight_decay": 0.01},
        {"augmentations": ("flips", "intensity", "wedge")},
    ],
)
def test_a_killed_training_goes_on_to_the_same_bits(asked):
    settings = TrainSettings(epochs=4, batch_size=5, **asked)
    patches, undisturbed = stepped(settings, 13)
    checkpoint = Memory()
    with pytest.raises(Killed):
        fit(
            network(), patches, None, AutoencoderLoss(l1=0), settings,
            checkpoint=checkpoint, on_epoch=killed_after(2),
        )  # fmt: skip
    resumed = fit(network(9), patches, None, AutoencoderLoss(l1=0), settings, checkpoint=checkpoint)
    assert same_bits(resumed.best_state, undisturbed.best_state)
    assert without_seconds(resumed.history) == without_seconds(undisturbed.history)
    plain = TrainSettings(epochs=4, batch_size=5)
    with pytest.raises(StateError, match=next(iter(asked))):
        fit(network(), patches, None, AutoencoderLoss(l1=0), plain, checkpoint=checkpoint)


def test_a_checkpoint_from_before_there_were_other_optimisers_goes_on():
    settings, patches, checkpoint = TrainSettings(epochs=2, batch_size=5), patches_of(13), Memory()
    fit(network(), patches, None, AutoencoderLoss(l1=0), settings, checkpoint=checkpoint)
    identity = checkpoint.load()["progress"]["identity"]
    assert set(identity) == {
        "patience", "batch_size", "learning_rate", "betas", "validation_fraction", "min_delta", "seed",
        "precision", "augment", "network", "inputs", "targets", "validation rows", *LATER,
    }  # fmt: skip
    other = TrainSettings(epochs=2, batch_size=5, optimiser="sgd")
    with pytest.raises(StateError, match="optimiser"):
        fit(network(), patches, None, AutoencoderLoss(l1=0), other, checkpoint=checkpoint)


def test_a_cosine_ends_where_it_was_asked_to():
    settings = TrainSettings(epochs=3, batch_size=5, schedule="cosine")
    checkpoint = Memory()
    patches = patches_of(13)
    fit(network(), patches, None, AutoencoderLoss(l1=0), settings, checkpoint=checkpoint)
    longer = TrainSettings(epochs=4, batch_size=5, schedule="cosine")
    with pytest.raises(StateError, match="epochs"):
        fit(network(), patches, None, AutoencoderLoss(l1=0), longer, checkpoint=checkpoint)


def test_a_cosine_is_gone_through_to_its_end():
    settings = TrainSettings(epochs=5, patience=1, min_delta=1e6, schedule="cosine")
    result = fit(network(), patches_of(10), None, AutoencoderLoss(), settings)
    assert (result.best_epoch, len(result.history), result.stopped_reason) == (1, 5, "epochs")


class Turncoat(nn.Module):
    """Learns a threshold; its loss on other items grows while its accuracy there stays."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        logit = self.scale * x
        return torch.cat([-logit, logit], dim=1)


def test_the_accuracy_can_be_what_has_to_get_better():
    inputs = np.where(np.arange(40) % 2, 1.0, -1.0).astype(np.float32).reshape(40, 1, 1, 1, 1)
    inputs = np.broadcast_to(inputs, (40, 1, 4, 4, 4)).copy()
    targets = (inputs[:, 0] > 0).astype(np.uint8)
    targets[:4, :2] = 1 - targets[:4, :2]  # of what is held back a quarter is wrong
    stopped = {}
    for monitor in ("loss", "accuracy"):
        settings = TrainSettings(
            epochs=30, patience=4, batch_size=40, learning_rate=0.1, min_delta=1e-4, monitor=monitor
        )
        result = fit(Turncoat(), inputs, targets, SegmentationLoss(), settings, validation_rows=np.arange(8))
        stopped[monitor] = result
    by_accuracy = stopped["accuracy"]
    accuracies = [record.validation_parts["accuracy"] for record in by_accuracy.history]
    assert by_accuracy.best_epoch == 1 + int(np.argmax(np.array(accuracies) > max(accuracies) - 1e-4))
    assert [record.improved for record in by_accuracy.history].index(True) == 0
    assert by_accuracy.stopped_reason == "patience"
    assert len(by_accuracy.history) == by_accuracy.best_epoch + 4
    by_loss = stopped["loss"]
    losses = [record.validation_loss for record in by_loss.history]
    assert by_loss.best_epoch == 1 + int(np.argmin(losses)) != by_accuracy.best_epoch


def test_a_loss_without_an_accuracy_cannot_be_stopped_by_it():
    settings = TrainSettings(monitor="accuracy")
    with pytest.raises(ConfigurationError, match="no accuracy, only reconstruction, sparsity"):
        fit(network(), patches_of(12), None, AutoencoderLoss(), settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimiser": "lion"},
        {"schedule": "steps"},
        {"monitor": "f1"},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": 0.0, "nesterov": True},
        {"weight_decay": -1.0},
        {"decay_per_step": -1.0},
        {"decay_per_epoch": 0.0},
        {"decay_per_epoch": 1.5},
        {"warmup_epochs": 100, "schedule": "cosine"},
    ],
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        TrainSettings(**wrong)


def test_batch_norm_takes_its_statistics_from_whole_batches(monkeypatch):
    results = []
    for voxels in (1, 2**17):
        monkeypatch.setattr("cryoscale.learn.loop.PART_VOXELS", voxels)
        module = nn.Sequential(EDSS3D(2, channels=2), nn.BatchNorm3d(2))
        targets = (patches_of(14)[:, 0] > 0).astype(np.uint8)
        settings = TrainSettings(epochs=2, batch_size=6)
        results.append(fit(module, patches_of(14), targets, SegmentationLoss(), settings))
    one, other = results
    assert one.best_state["1.num_batches_tracked"] == 2 * one.best_epoch  # of 6 and 7 items
    for name, value in other.best_state.items():
        torch.testing.assert_close(one.best_state[name], value, rtol=1e-5, atol=1e-6)
    assert one.history[0].train_loss == other.history[0].train_loss
