"""The losses of heads against their formulas, alone, together, and in parts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_f

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.losses import ClassificationLoss, RecoveryLoss, SegmentationLoss, Shares
from cryoscale.learn.multitask import MultiTaskLoss
from cryoscale.learn.settings import TrainSettings
from cryoscale.learn.targets import as_targets
from cryoscale.learn.training import fit
from cryoscale.models.edss3d import EDSS3D
from cryoscale.models.registry import build
from tests.learn.test_training import patches_of

BOX = (8, 8, 8)


def outputs_of(n, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "cls": torch.randn(n, 4, generator=draw),
        "seg": torch.randn(n, 2, *BOX, generator=draw),
        "rec": torch.randn(n, 1, *BOX, generator=draw),
    }


def targets_of(n, seed=1):
    rng = np.random.default_rng(seed)
    cls, seg = rng.integers(4, size=n), rng.integers(2, size=(n, *BOX)).astype(np.uint8)
    cls[::3] = 255
    for k in range(n):
        seg[k, : k % 9] = 255  # of some items nothing is known
    targets = {"cls": cls, "seg": seg, "rec": rng.normal(size=(n, 1, *BOX)).astype(np.float32)}
    return as_targets(targets, n)


def test_three_heads_are_their_losses_by_one_to_ten_to_one():
    outputs, targets, inputs = outputs_of(9), targets_of(9), torch.zeros(9, 1, *BOX)
    total, parts = MultiTaskLoss()(outputs, inputs, targets)
    cls = torch_f.cross_entropy(outputs["cls"], targets["cls"], ignore_index=255)
    seg = torch_f.cross_entropy(outputs["seg"], targets["seg"].long(), ignore_index=255)
    rec = (outputs["rec"] - targets["rec"]).square().mean()
    torch.testing.assert_close(total, cls + 10 * seg + rec)
    known = targets["cls"] != 255
    right = (outputs["cls"].argmax(1) == targets["cls"])[known].float().mean()
    expected = {"cls_loss": cls, "cls_accuracy": right, "seg_loss": seg, "rec_error": rec}
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
    known = targets["seg"] != 255
    right = (outputs["seg"].argmax(1) == targets["seg"])[known].float().mean()
    torch.testing.assert_close(parts["seg_accuracy"], right)
    assert set(parts) == {*expected, "seg_accuracy", "seg_iou"}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("head", ["cls", "seg", "rec"])
def test_one_head_is_its_loss_however_it_is_given(head, plain):
    output, target, inputs = outputs_of(5)[head], targets_of(5)[head], torch.zeros(5, 1, *BOX)
    loss = MultiTaskLoss({head: 1.0})
    total, _ = loss(output, inputs, target) if plain else loss({head: output}, inputs, {head: target})
    if head == "rec":
        wanted = torch_f.mse_loss(output, target)
    else:
        wanted = torch_f.cross_entropy(output, target.long(), ignore_index=255)
    torch.testing.assert_close(total, wanted)


@pytest.mark.parametrize("heads", [("cls",), ("cls", "seg"), ("cls", "rec"), ("cls", "seg", "rec")])
def test_parts_of_a_batch_add_up_to_it_head_by_head(heads):
    outputs, targets, inputs = outputs_of(9), targets_of(9), torch.zeros(9, 1, *BOX)
    loss = MultiTaskLoss({head: 2.0 + k for k, head in enumerate(heads)}, class_weights=(0.5, 3.0))
    whole, whole_parts = loss(outputs, inputs, targets)
    counts = loss.counts(inputs, targets)
    total, sums = 0.0, {}
    for rows in (slice(0, 1), slice(1, 5), slice(5, 9)):  # of the first item nothing is known
        wanted = {head: values[rows] for head, values in targets.items()}
        shares = {name: count / counts[name] for name, count in loss.counts(inputs[rows], wanted).items()}
        mine = {head: values[rows] for head, values in outputs.items()}
        value, parts = loss(mine, inputs[rows], wanted, Shares(shares))
        total = total + value
        sums = {name: sums.get(name, 0.0) + part for name, part in parts.items()}
    torch.testing.assert_close(total, whole)
    for name, value in whole_parts.items():
        torch.testing.assert_close(sums[name], value)


def test_a_training_of_several_heads_in_parts_is_that_in_whole_batches(monkeypatch):
    patches, results = patches_of(17), []
    targets = targets_of(17)
    for voxels in (1, 3 * 8**3, 2**17):
        monkeypatch.setattr("cryoscale.learn.loop.PART_VOXELS", voxels)
        module = build({"name": "dsm-net", "n_classes": 4, "channels": 3, "features": 8, "dropout": 0.0})
        settings = TrainSettings(epochs=2, batch_size=6, seed=1)
        results.append(fit(module, patches, targets, MultiTaskLoss(), settings))
    whole = results.pop()
    for result in results:
        for record, wanted in zip(result.history, whole.history, strict=True):
            assert record.train_loss == pytest.approx(wanted.train_loss, rel=1e-4)
            assert record.train_parts == pytest.approx(wanted.train_parts, rel=1e-3, abs=1e-4)
            assert record.validation_parts == pytest.approx(wanted.validation_parts, rel=1e-3, abs=1e-4)
        for name, value in whole.best_state.items():
            torch.testing.assert_close(result.best_state[name], value, rtol=1e-3, atol=1e-4)


def test_a_head_without_a_weight_is_not_trained():
    module = build({"name": "dsm-net", "n_classes": 4, "channels": 2, "features": 8}, seed=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, patches_of(8), targets_of(8), MultiTaskLoss({"cls": 1.0}), TrainSettings(epochs=1))
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    trunk = {name for name in before if "trunk" in name}
    assert trunk
    assert changed
    assert not changed & trunk


def test_losses_say_what_is_missing():
    inputs = torch.zeros(5, 1, *BOX)
    with pytest.raises(ConfigurationError, match="the network gives one tensor"):
        MultiTaskLoss()(outputs_of(5)["seg"], inputs, targets_of(5))
    with pytest.raises(ConfigurationError, match="'rec' has no target"):
        MultiTaskLoss()(outputs_of(5), inputs, {k: v for k, v in targets_of(5).items() if k != "rec"})
    with pytest.raises(ConfigurationError, match="has no target"):
        MultiTaskLoss()(outputs_of(5), inputs, targets_of(5)["seg"])
    with pytest.raises(ConfigurationError, match="A loss of depth"):
        MultiTaskLoss({"depth": 1.0})
    with pytest.raises(ConfigurationError, match="must be positive"):
        MultiTaskLoss({"cls": 0.0})
    with pytest.raises(ConfigurationError, match="recovery loss needs targets"):
        RecoveryLoss()(outputs_of(5)["rec"], inputs, None)
    with pytest.raises(ConfigurationError, match="3 class weights for 4 classes"):
        ClassificationLoss((1.0, 1.0, 1.0))(outputs_of(5)["cls"], inputs, targets_of(5)["cls"])


def test_targets_of_other_items_are_refused():
    with pytest.raises(DataError, match="5 inputs have 4 targets of 'cls'"):
        as_targets({"cls": np.zeros(4)}, 5)
    with pytest.raises(DataError, match="5 inputs have 4 targets"):
        as_targets(np.zeros(4), 5)
    with pytest.raises(DataError, match="no head"):
        as_targets({}, 5)
    assert as_targets(None, 5) is None


@pytest.mark.parametrize(
    ("head", "wrong", "message"),
    [
        ("cls", np.full(9, 4), "'cls' go from 4 to 4, the network has the classes 0 to 3"),
        ("cls", np.full(9, 255), "No label of 'cls' is known"),
        ("cls", np.full(9, 0.5), "'cls' are torch.float64"),
        ("seg", np.full((9, *BOX), 2), "'seg' go from 2 to 2"),
        ("seg", np.full((9, *BOX), -1), "'seg' go from -1"),
        ("seg", np.zeros((9, 8, 8, 7), int), r"\(8, 8, 7\) per item"),
        ("rec", np.zeros((9, *BOX), np.float32), "Densities to recover"),
        ("rec", np.full((9, 1, *BOX), np.nan, np.float32), "9 densities to recover hold NaN"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused_before_the_training(head, wrong, message):
    module = build({"name": "dsm-net", "n_classes": 4, "channels": 2, "features": 8})
    told = []
    with pytest.raises(DataError, match=message):
        fit(module, patches_of(9), targets_of(9) | {head: wrong}, MultiTaskLoss(),
            TrainSettings(epochs=1), on_epoch=told.append)  # fmt: skip
    assert not told
    if head == "seg":
        with pytest.raises(DataError, match=message):
            fit(EDSS3D(2, channels=2), patches_of(9), wrong, SegmentationLoss(), TrainSettings(epochs=1))
