"""The loss of Chen et al. against its formula."""

import numpy as np
import pytest
import torch

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.chen import ChenLoss
from cryoscale.learn.losses import Shares
from cryoscale.learn.settings import TrainSettings
from cryoscale.learn.training import fit
from cryoscale.models.registry import build

SIDE = 16


def network(seed=0):
    return build({"name": "cnn2d-chen", "n_classes": 3, "channels": 3, "kernel": 3}, seed=seed)


def tiles_of(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, SIDE, SIDE), np.uint8)
    labels[:, 3, :] = 1  # a line of one pixel
    labels[:, 8:13, 5:9] = 2
    return rng.normal(size=(n, 1, SIDE, SIDE)).astype(np.float32), labels


def test_the_loss_is_the_formula_for_each_feature_added_up():
    inputs, labels = map(torch.from_numpy, tiles_of(4))
    labels[0, :4] = 255
    module, loss = network(), ChenLoss()
    total, parts = loss(loss.forward(module, inputs), inputs, labels)
    answers = module.responses(inputs)
    wanted, known = 0.0, np.ones((4, 8, 8), bool)
    known[0, :2] = False
    for k in range(2):
        feature = (labels == k + 1).numpy().reshape(4, 8, 2, 8, 2).any(axis=(2, 4))
        error = (torch.from_numpy(feature).float() - answers[:, k].clamp(max=1)) ** 2
        sizes = [w.abs().sum() for w in module.networks[k].parameters() if w.ndim > 1]
        wanted = wanted + torch.log(error[torch.from_numpy(known)].mean()) + 1e-6 * sum(sizes)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(parts["seg_loss"] + parts["sparsity"], total.detach())
    gradients = torch.autograd.grad(total, list(module.parameters()))
    expected = torch.autograd.grad(wanted, list(module.parameters()))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_answers_beyond_one_cost_nothing_and_the_best_above_the_background_is_the_class():
    inputs, labels = map(torch.from_numpy, tiles_of(2))
    halves = labels.reshape(2, 8, 2, 8, 2)
    masks = torch.stack([(halves == k).float().amax(dim=(2, 4)) for k in (1, 2)], dim=1)
    perfect = (masks * 5, torch.zeros(()))
    total, parts = ChenLoss()(perfect, inputs, {"seg": labels})
    assert total == pytest.approx(2 * np.log(1e-12), rel=1e-5)
    assert parts["seg_accuracy"] == 1
    _, parts = ChenLoss()((masks * 0.7, torch.zeros(())), inputs, labels)
    assert parts["seg_accuracy"] == pytest.approx(float((masks.amax(1) == 0).float().mean()))
    _, parts = ChenLoss()((masks.flip(1), torch.zeros(())), inputs, labels)
    assert parts["seg_accuracy"] == pytest.approx(float((masks.amax(1) == 0).float().mean()))


def test_shares_of_several_processes_have_the_gradient_of_the_whole():
    inputs, labels = map(torch.from_numpy, tiles_of(6))
    labels[:, :2] = 255
    labels[0] = 255
    module, loss = network(), ChenLoss()
    whole, whole_parts = loss(loss.forward(module, inputs), inputs, labels)
    expected = torch.autograd.grad(whole, list(module.parameters()))
    rows = [slice(0, 1), slice(1, 3), slice(3, 6)]
    counts = loss.counts(inputs, labels)
    shares = [{"seg": loss.counts(inputs[r], labels[r])["seg"] / counts["seg"]} for r in rows]
    first = []  # what each process would send
    for r, share in zip(rows, shares, strict=True):
        loss(
            loss.forward(module, inputs[r]),
            inputs[r],
            labels[r],
            Shares(share, lambda v: first.append(v) or v),
        )
    total, found, sums = 0.0, [torch.zeros_like(g) for g in expected], {}
    for r, share in zip(rows, shares, strict=True):
        mine = Shares(share, lambda v: sum(first))
        value, parts = loss(loss.forward(module, inputs[r]), inputs[r], labels[r], mine)
        for sum_, gradient in zip(found, torch.autograd.grad(value, list(module.parameters())), strict=True):
            sum_ += gradient
        total = total + value.detach()
        sums = {name: sums.get(name, 0.0) + part for name, part in parts.items()}
    torch.testing.assert_close(total, whole.detach())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for name, value in whole_parts.items():
        torch.testing.assert_close(sums[name], value)


def test_it_is_never_cut_into_parts_and_learns(monkeypatch):
    inputs, labels = tiles_of(30)
    inputs = inputs * 0.2 + labels[:, None]  # bright where a feature is
    losses = []
    for pixels in (1, 2**17):
        monkeypatch.setattr("cryoscale.learn.loop.PART_VOXELS", pixels)
        settings = TrainSettings(epochs=6, batch_size=5, optimiser="sgd", learning_rate=0.01)
        result = fit(network(), inputs, labels, ChenLoss(), settings)
        losses.append([record.train_loss for record in result.history])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.5


def test_wrong_sizes_and_missing_labels_are_named():
    inputs, labels = map(torch.from_numpy, tiles_of(2))
    loss = ChenLoss()
    output = loss.forward(network(), inputs)
    with pytest.raises(ConfigurationError, match="twice the size"):
        loss(output, inputs, labels[:, :8])
    with pytest.raises(ConfigurationError, match="targets of 'seg'"):
        loss(output, inputs, None)
    with pytest.raises(DataError, match="'seg' go from 0 to 3"):
        fit(network(), inputs, labels + (labels > 1), loss, TrainSettings(epochs=1))
