"""Several processes do what one does. Here they are threads that add up tensors between barriers."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from cryoscale.errors import SurroundingsError
from cryoscale.learn.chen import ChenLoss
from cryoscale.learn.distributed import Group
from cryoscale.learn.losses import AutoencoderLoss, SegmentationLoss, class_weights_of
from cryoscale.learn.multitask import MultiTaskLoss
from cryoscale.learn.settings import TrainSettings
from cryoscale.learn.training import RefusedCheckpoint, fit
from cryoscale.models.edss3d import EDSS3D
from cryoscale.models.layers import conv3d, initialise, normalisation
from cryoscale.models.registry import build
from tests.learn.test_chen import tiles_of
from tests.learn.test_multitask import targets_of
from tests.learn.test_training import Memory, Size, network, patches_of, same_bits, without_seconds


class Threads(Group):
    """A rank among threads of one process."""

    def __init__(self, rank, size, board, barrier):
        super().__init__(rank, size)
        self.board, self.barrier = board, barrier

    def sum_(self, tensors):
        self.board[self.rank] = [tensor.detach().clone() for tensor in tensors]
        self.barrier.wait()
        for tensor, *values in zip(tensors, *self.board, strict=True):
            tensor.detach().copy_(sum(values[1:], values[0]))
        self.barrier.wait()

    def broadcast_module(self, module):
        values = list(module.state_dict().values())
        self.board[self.rank] = [value.clone() for value in values]
        self.barrier.wait()
        for value, first in zip(values, self.board[0], strict=True):
            value.copy_(first)
        self.barrier.wait()

    def require_same(self, facts):
        self.board[self.rank] = repr(facts)
        self.barrier.wait()
        assert len(set(self.board)) == 1
        self.barrier.wait()


def together(size, train):
    """Call `train(group)` as each rank, and give what each returned."""
    board, barrier = [None] * size, threading.Barrier(size, timeout=60)
    results = [None] * size

    def run(rank):
        try:
            results[rank] = train(Threads(rank, size, board, barrier))
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.use_deterministic_algorithms(before[0])  # threads put back what another one had set
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def autoencoder(group=None, **changes):
    settings = TrainSettings(epochs=3, batch_size=5, seed=3)
    rank = group.rank if group else 0
    return fit(network(rank), patches_of(18), None, AutoencoderLoss(), settings, group=group, **changes)


def segmenter(group=None):
    targets = np.random.default_rng(1).integers(0, 2, size=(14, 8, 8, 8)).astype(np.uint8)
    for n in range(14):
        targets[n, : n % 9] = 255
    loss = SegmentationLoss(class_weights_of(targets, 2))
    settings = TrainSettings(epochs=2, batch_size=6, monitor="accuracy")
    return fit(EDSS3D(2, channels=3), patches_of(14), targets, loss, settings, group=group)


def several_heads(group=None):
    module = build({"name": "dsm-net", "n_classes": 4, "channels": 3, "features": 8, "dropout": 0.0})
    settings = TrainSettings(epochs=2, batch_size=7, learning_rate=1e-4)
    return fit(module, patches_of(17), targets_of(17), MultiTaskLoss(), settings, group=group)


def small_2d(group=None):
    module = build({"name": "cnn2d-chen", "n_classes": 3, "channels": 3, "kernel": 3})
    inputs, labels = tiles_of(15)
    settings = TrainSettings(epochs=2, batch_size=6, optimiser="sgd", learning_rate=0.01, momentum=0.5)
    return fit(module, inputs, {"seg": labels}, ChenLoss(), settings, group=group)


@pytest.mark.parametrize("parts", [1, 2**17])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("train", [autoencoder, segmenter, several_heads, small_2d])
def test_several_processes_do_what_one_does(train, size, parts, monkeypatch):
    monkeypatch.setattr("cryoscale.learn.loop.PART_VOXELS", parts)
    alone, results = train(), together(size, train)
    for result in results:
        assert same_bits(result.best_state, results[0].best_state)
        assert without_seconds(result.history) == without_seconds(results[0].history)
        assert result.best_epoch == alone.best_epoch
        for record, wanted in zip(result.history, alone.history, strict=True):
            assert record.train_loss == pytest.approx(wanted.train_loss, rel=1e-4)
            assert record.validation_loss == pytest.approx(wanted.validation_loss, rel=1e-4)
            assert record.train_parts == pytest.approx(wanted.train_parts, rel=1e-3, abs=1e-4)
            assert record.validation_parts == pytest.approx(wanted.validation_parts, rel=1e-3, abs=1e-4)
        for name, value in alone.best_state.items():
            torch.testing.assert_close(result.best_state[name], value, rtol=1e-3, atol=1e-4)


def test_only_the_first_process_saves_and_reports_and_all_go_on():
    checkpoints, told = [Memory(), Memory()], []
    results = together(
        2,
        lambda group: autoencoder(
            group, checkpoint=checkpoints[group.rank], on_epoch=lambda record: told.append(group.rank)
        ),
    )
    assert told == [0, 0, 0]
    assert checkpoints[1].kept is None
    settings = TrainSettings(epochs=5, batch_size=5, seed=3)

    def go_on(group):
        return fit(
            network(9), patches_of(18), None, AutoencoderLoss(), settings,
            checkpoint=checkpoints[0] if group.rank else Reader(checkpoints[0]), group=group,
        )  # fmt: skip

    longer = together(2, go_on)
    assert same_bits(longer[0].best_state, longer[1].best_state)
    assert without_seconds(longer[1].history[:3]) == without_seconds(results[0].history)


class Reader:
    def __init__(self, memory):
        self.memory = memory

    def load(self):
        return self.memory.load()

    def save(self, state):
        pass


def test_a_process_may_have_nothing_to_do():
    def train(group=None):
        settings = TrainSettings(epochs=2, batch_size=2, validation_fraction=0.1)
        module = build({"name": "ssn3d-ed", "channels": 2})
        targets = {"seg": targets_of(6)["seg"]}
        return fit(module, patches_of(6), targets, MultiTaskLoss({"seg": 1.0}), settings, group=group)

    alone, results = train(), together(3, train)
    assert same_bits(results[0].best_state, results[2].best_state)
    assert results[0].history[-1].train_loss == pytest.approx(alone.history[-1].train_loss, rel=1e-4)


def test_running_means_are_those_of_all_processes():
    def train(group=None):
        module = build({"name": "dsm-net", "heads": ["seg"], "channels": 2, "batch_norm": True}, seed=1)
        targets = {"seg": targets_of(12)["seg"]}
        settings = TrainSettings(epochs=2, batch_size=6)
        return fit(module, patches_of(12), targets, MultiTaskLoss({"seg": 1.0}), settings, group=group)

    alone, results = train(), together(2, train)
    assert same_bits(results[0].best_state, results[1].best_state)
    means = [name for name in alone.best_state if name.endswith("running_mean")]
    assert means
    first = means[0]  # its inputs do not depend on weights after it
    torch.testing.assert_close(results[0].best_state[first], alone.best_state[first], rtol=0.2, atol=0.02)


class Kept(nn.Module):
    """Batch normalisation of the inputs themselves, and a part that nobody trains."""

    def __init__(self):
        super().__init__()
        self.norm = initialise(normalisation(1, 3), 0)
        self.conv = initialise(conv3d(1, 1), 0)
        self.idle = initialise(conv3d(1, 1), 1)

    def forward(self, x):
        return self.conv(self.norm(x))


def kept(group=None, size=4, n=5, **changes):
    settings = TrainSettings(epochs=1, batch_size=size, seed=1, **changes)
    inputs = patches_of(n + 1) * 3 + 5
    module = Kept()
    result = fit(module, inputs, None, Size(), settings, validation_rows=np.array([0]), group=group)
    return result.best_state, inputs[1:]


def test_a_process_without_items_adds_nothing_to_the_statistics():
    (state, inputs), *others = together(3, lambda group: kept(group, size=2, n=2))
    assert all(same_bits(state, other[0]) for other in others)
    # Two processes have one item each, the third has none.
    wanted = 0.1 * inputs.mean()
    torch.testing.assert_close(state["norm.running_mean"], torch.tensor([wanted]), rtol=1e-5, atol=1e-5)
    variance = 0.9 + 0.1 * torch.from_numpy(inputs).flatten(1).var(1).mean()
    torch.testing.assert_close(state["norm.running_var"], variance[None], rtol=1e-5, atol=1e-5)
    assert int(state["norm.num_batches_tracked"]) == 1


def test_a_process_without_items_in_the_last_batch_keeps_its_statistics():
    (state, inputs), *others = together(3, lambda group: kept(group, size=3, n=5))
    assert all(same_bits(state, other[0]) for other in others)
    order = np.random.default_rng([1, 1, 1]).permutation(5)
    first, last = np.sort(order[:3]), np.sort(order[3:])
    means = inputs.mean(axis=(1, 2, 3, 4))
    ends = 0.1 * means[first]
    ends[:2] = 0.9 * ends[:2] + 0.1 * means[last]
    wanted = (2 * ends[0] + 2 * ends[1] + ends[2]) / 5
    torch.testing.assert_close(state["norm.running_mean"], torch.tensor([wanted]), rtol=1e-5, atol=1e-5)
    assert int(state["norm.num_batches_tracked"]) == 2


def test_running_statistics_count_every_item_alike():
    (state, inputs), other = together(2, lambda group: kept(group, size=3, n=3))
    assert same_bits(state, other[0])
    means = inputs.mean(axis=(1, 2, 3, 4))
    # Two items of three in one process, one in the other: the mean over processes would be another one.
    torch.testing.assert_close(
        state["norm.running_mean"], torch.tensor([0.1 * means.mean()]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_what_nobody_trains_does_not_decay(optimiser):
    changes = {"optimiser": optimiser, "weight_decay": 0.5, "learning_rate": 0.1}
    alone, _ = kept(**changes)
    (state, _), _ = together(2, lambda group: kept(group, **changes))
    assert torch.equal(alone["idle.weight"], Kept().idle.weight)
    assert torch.equal(state["idle.weight"], alone["idle.weight"])
    assert not torch.equal(state["conv.weight"], Kept().conv.weight)


def refusing(group, checkpoints):
    with pytest.raises((RefusedCheckpoint, SurroundingsError)) as raised:
        autoencoder(group, checkpoint=checkpoints[group.rank])
    return raised.type, str(raised.value)


def test_a_checkpoint_is_refused_by_all_processes_or_the_training_pauses():
    good, bad = Memory(), Memory()
    autoencoder(checkpoint=good)
    state = good.load()
    state["progress"]["identity"]["seed"] = 4
    bad.save(state)
    for all_bad in together(3, lambda group: refusing(group, [bad] * 3)):
        assert all_bad[0] is RefusedCheckpoint
        assert "differs in seed" in all_bad[1]
    some = together(3, lambda group: refusing(group, [good, bad, good]))
    assert {kind for kind, _ in some} == {SurroundingsError}
    assert "this one does not" in some[0][1]
    assert "differs in seed" in some[1][1]
