import json

import numpy as np
import pytest
import torch
from torch import nn

from cryoscale.errors import ConfigurationError, DataError, FormatError
from cryoscale.learn.hardware import precision_of
from cryoscale.learn.losses import AutoencoderLoss, SegmentationLoss
from cryoscale.learn.training import EpochRecord, RefusedCheckpoint, TrainSettings, fit, split_rows
from cryoscale.models.autoencoder3d import Autoencoder3D
from cryoscale.models.edss3d import EDSS3D
from cryoscale.models.layers import conv3d, initialise, normalisation

BOX = (8, 8, 8)
QUICK = TrainSettings(epochs=4, batch_size=5, seed=3)


def patches_of(n, box=BOX, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 1, *box)).astype(np.float32)


def network(seed=0):
    return Autoencoder3D(BOX, channels=3, dimension=4, code="linear", seed=seed)


class Memory:
    """A checkpoint that stores what a file could: tensors, and JSON."""

    def __init__(self):
        self.kept = None

    def save(self, state):
        numbers = json.dumps(state["progress"], allow_nan=False)
        tensors = {name: value.clone() for name, value in state.items() if name != "progress"}
        assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in tensors.values())
        self.kept = (tensors, numbers)

    def load(self):
        if self.kept is None:
            return None
        tensors, numbers = self.kept
        return {name: value.clone() for name, value in tensors.items()} | {"progress": json.loads(numbers)}


class Killed(Exception):
    pass


def killed_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise Killed

    return on_epoch


def same_bits(one, two):
    assert set(one) == set(two)
    return all(torch.equal(one[name], two[name]) for name in one)


def without_seconds(history):
    return [EpochRecord(**{**vars(record), "seconds": 0.0}) for record in history]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("part_voxels", [2 * 8**3, 2**17])
def test_a_killed_training_goes_on_to_the_same_bits(augment, precision, part_voxels, monkeypatch):
    monkeypatch.setattr("cryoscale.learn.loop.PART_VOXELS", part_voxels)
    settings = TrainSettings(epochs=5, batch_size=5, seed=3, augment=augment, precision=precision)
    patches = patches_of(23)
    undisturbed = fit(network(), patches, None, AutoencoderLoss(), settings)
    for epoch in (1, 3):
        checkpoint = Memory()
        with pytest.raises(Killed):
            fit(
                network(),
                patches,
                None,
                AutoencoderLoss(),
                settings,
                checkpoint=checkpoint,
                on_epoch=killed_after(epoch),
            )
        resumed_module = network(seed=99)  # as a new process would start
        resumed = fit(resumed_module, patches, None, AutoencoderLoss(), settings, checkpoint=checkpoint)
        assert same_bits(resumed.best_state, undisturbed.best_state)
        assert same_bits(resumed_module.state_dict(), undisturbed.best_state)
        assert without_seconds(resumed.history) == without_seconds(undisturbed.history)


def test_a_training_killed_in_every_epoch_ends_with_the_same_bits():
    patches = patches_of(17)
    undisturbed = fit(network(), patches, None, AutoencoderLoss(), QUICK)
    checkpoint = Memory()
    for epoch in range(1, QUICK.epochs):
        with pytest.raises(Killed):
            fit(
                network(),
                patches,
                None,
                AutoencoderLoss(),
                QUICK,
                checkpoint=checkpoint,
                on_epoch=killed_after(epoch),
            )
    resumed = fit(network(), patches, None, AutoencoderLoss(), QUICK, checkpoint=checkpoint)
    assert same_bits(resumed.best_state, undisturbed.best_state)


def test_a_finished_training_is_not_trained_again():
    checkpoint, told = Memory(), []
    first = fit(network(), patches_of(12), None, AutoencoderLoss(), QUICK, checkpoint=checkpoint)
    again = fit(
        network(1),
        patches_of(12),
        None,
        AutoencoderLoss(),
        QUICK,
        checkpoint=checkpoint,
        on_epoch=told.append,
    )
    assert told == []
    assert same_bits(first.best_state, again.best_state)


def test_more_epochs_go_on_from_the_checkpoint():
    patches, checkpoint = patches_of(12), Memory()
    longer = TrainSettings(**{**vars(QUICK), "epochs": 7})
    fit(network(), patches, None, AutoencoderLoss(), QUICK, checkpoint=checkpoint)
    continued = fit(network(), patches, None, AutoencoderLoss(), longer, checkpoint=checkpoint)
    straight = fit(network(), patches, None, AutoencoderLoss(), longer)
    assert same_bits(continued.best_state, straight.best_state)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": TrainSettings(epochs=4, batch_size=6, seed=3)}, "batch_size"),
        ({"patches": patches_of(12, seed=1)}, "inputs"),
        ({"module": Autoencoder3D(BOX, channels=2)}, "network"),
        ({"validation_rows": np.arange(3)}, "validation rows"),
        ({"loss": AutoencoderLoss(l1=1e-3)}, "loss"),
        ({"module": Autoencoder3D(BOX, channels=3, dimension=4, code="relu")}, "architecture"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(change, named):
    checkpoint = Memory()
    fit(network(), patches_of(12), None, AutoencoderLoss(), QUICK, checkpoint=checkpoint)
    asked = {
        "module": network(),
        "patches": patches_of(12),
        "settings": QUICK,
        "validation_rows": None,
        "loss": AutoencoderLoss(),
    } | change
    with pytest.raises(RefusedCheckpoint, match=rf"differs in .*{named}"):
        fit(
            asked["module"],
            asked["patches"],
            None,
            asked["loss"],
            asked["settings"],
            checkpoint=checkpoint,
            validation_rows=asked["validation_rows"],
        )


def test_a_checkpoint_that_does_not_say_its_loss_goes_on():
    """Those that were written before it was compared."""
    checkpoint = Memory()
    with pytest.raises(Killed):
        fit(
            network(), patches_of(12), None, AutoencoderLoss(), QUICK,
            checkpoint=checkpoint, on_epoch=killed_after(2),
        )  # fmt: skip
    tensors, numbers = checkpoint.kept
    old = json.loads(numbers)
    assert old["identity"].pop("loss") == repr(AutoencoderLoss())
    assert json.loads(old["identity"].pop("architecture")) == network().architecture
    checkpoint.kept = (tensors, json.dumps(old))
    result = fit(network(1), patches_of(12), None, AutoencoderLoss(), QUICK, checkpoint=checkpoint)
    assert len(result.history) == 4
    undisturbed = fit(network(), patches_of(12), None, AutoencoderLoss(), QUICK)
    assert same_bits(result.best_state, undisturbed.best_state)


def test_a_loss_without_words_of_its_own_is_known_by_its_class():
    checkpoint, first, second = Memory(), Size(), Size()
    assert repr(first) != repr(second)
    data = patches_of(12)
    fit(Normalised(), data, None, first, TrainSettings(epochs=1, batch_size=5), checkpoint=checkpoint)
    settings = TrainSettings(epochs=2, batch_size=5)
    again = fit(Normalised(), data, None, second, settings, checkpoint=checkpoint)
    assert len(again.history) == 2


def test_a_damaged_checkpoint_is_refused():
    class Damaged(Memory):
        def load(self):
            raise FormatError("the file ends too early.")

    with pytest.raises(RefusedCheckpoint, match="ends too early"):
        fit(network(), patches_of(12), None, AutoencoderLoss(), QUICK, checkpoint=Damaged())


class Normalised(nn.Module):
    """A network with batch normalisation, on a grid of which `side` voxels are left."""

    def __init__(self, side=2):
        super().__init__()
        self.down = nn.AdaptiveAvgPool3d(side)
        self.conv = initialise(conv3d(1, 2, 1), 0)
        self.norm = initialise(normalisation(2, 3), 0)
        self.batches = []

    def forward(self, x):
        if self.training:
            self.batches.append(len(x))
        return self.norm(self.conv(self.down(x)))


class Size:
    """A loss of one term."""

    def __call__(self, output, inputs, targets):
        return output.square().mean() + output.mean(), {}

    def weight(self, inputs, targets):
        return float(len(inputs))


@pytest.mark.parametrize(("n", "wanted"), [(11, [5, 6]), (10, [5, 5]), (12, [5, 5, 2])])
def test_a_last_batch_of_one_item_goes_with_the_one_before_under_batch_normalisation(n, wanted):
    module = Normalised(side=1)
    settings = TrainSettings(epochs=1, batch_size=5)
    fit(module, patches_of(n + 2), None, Size(), settings, validation_rows=np.array([0, 1]))
    assert module.batches == wanted
    plain = Normalised(side=1)
    plain.norm = nn.Identity()
    fit(plain, patches_of(13), None, Size(), settings, validation_rows=np.array([0, 1]))
    assert plain.batches == [5, 5, 1]


def test_batches_without_a_variance_are_refused_with_a_remedy():
    with pytest.raises(ConfigurationError, match=r"one item of \(8, 8, 8\).*larger boxes, larger batches"):
        fit(Normalised(side=1), patches_of(6), None, Size(), TrainSettings(epochs=1, batch_size=1))


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    results = [
        fit(network(), patches_of(15), None, AutoencoderLoss(), TrainSettings(epochs=2, batch_size=4, seed=s))
        for s in (1, 1, 2)
    ]
    assert same_bits(results[0].best_state, results[1].best_state)
    assert not same_bits(results[0].best_state, results[2].best_state)


def test_one_epoch_is_plain_adam_over_the_shuffled_batches():
    patches, settings = patches_of(11), TrainSettings(epochs=1, batch_size=4, seed=5)
    result = fit(network(), patches, None, AutoencoderLoss(l1=0), settings)
    module = network()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.9, 0.99))
    train, _ = split_rows(11, settings)
    order = np.random.default_rng([5, 1, 1]).permutation(train)
    for start in range(0, len(order), 4):
        batch = torch.from_numpy(patches[np.sort(order[start : start + 4])])
        optimiser.zero_grad()
        ((module(batch)[0] - batch) ** 2).mean().backward()
        optimiser.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(result.best_state[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("segment", [False, True])
def test_a_batch_worked_through_in_parts_is_the_same_batch(segment, monkeypatch):
    patches = patches_of(14)
    targets = None
    if segment:  # patches of which more, less and nothing is known
        targets = np.random.default_rng(1).integers(0, 2, size=(14, *BOX)).astype(np.uint8)
        for n in range(14):
            targets[n, : n % 9] = 255
    results = []
    for voxels in (1, 2 * 8**3, 2**17):
        monkeypatch.setattr("cryoscale.learn.loop.PART_VOXELS", voxels)
        module = EDSS3D(2, channels=3) if segment else network()
        loss = SegmentationLoss() if segment else AutoencoderLoss()
        results.append(fit(module, patches, targets, loss, QUICK))
    whole = results.pop()
    for result in results:
        assert not same_bits(result.best_state, whole.best_state), "there were no parts"
        for record, wanted in zip(result.history, whole.history, strict=True):
            assert record.train_loss == pytest.approx(wanted.train_loss, rel=1e-4)
            assert record.validation_loss == pytest.approx(wanted.validation_loss, rel=1e-4)
            assert record.train_parts == pytest.approx(wanted.train_parts, rel=1e-3)


def test_auto_is_a_precision_of_this_machine():
    settings = TrainSettings(epochs=1, precision="auto")
    result = fit(network(), patches_of(10), None, AutoencoderLoss(), settings)
    assert result.precision == precision_of("auto", torch.device("cpu"))
    assert result.precision in ("float32", "bfloat16")
    asked = TrainSettings(epochs=1, precision=result.precision)
    again = fit(network(), patches_of(10), None, AutoencoderLoss(), asked)
    assert same_bits(result.best_state, again.best_state)


def test_an_autoencoder_learns_what_is_common_to_the_patches():
    shape = patches_of(1)[0]
    weights = np.random.default_rng(1).normal(size=(80, 1, 1, 1, 1)).astype(np.float32)
    patches = weights * shape
    settings = TrainSettings(epochs=25, batch_size=8, learning_rate=3e-3)
    result = fit(network(), patches, None, AutoencoderLoss(), settings)
    best = result.history[result.best_epoch - 1].validation_parts["reconstruction"]
    assert best < 0.5 * patches.var()


def test_a_segmenter_learns_a_threshold():
    patches = np.kron(patches_of(24, box=(2, 2, 2)), np.ones((4, 4, 4), np.float32))
    targets = (patches[:, 0] < 0).astype(np.int64)
    settings = TrainSettings(epochs=20, batch_size=4, learning_rate=5e-3)
    result = fit(EDSS3D(2, channels=8), patches, targets, SegmentationLoss(), settings)
    share = max(targets.mean(), 1 - targets.mean())
    assert result.history[result.best_epoch - 1].validation_parts["accuracy"] > (1 + share) / 2


class Constant(nn.Module):
    """Gives one number for every voxel: its validation loss is known beforehand."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.value.expand_as(x), self.value.expand(len(x), 1)


def test_training_stops_when_it_gets_no_better_and_keeps_the_best_weights():
    module, seen = Constant(), []
    patches = np.ones((20, 1, 4, 4, 4), np.float32)
    patches[:2] = 0.05  # validation wants 0.05, training pulls to 1
    result = fit(
        module,
        patches,
        None,
        AutoencoderLoss(l1=0),
        TrainSettings(epochs=50, patience=3, batch_size=18, learning_rate=0.02),
        on_epoch=lambda record: seen.append(module.value.item()),
        validation_rows=[0, 1],
    )
    assert result.stopped_reason == "patience"
    assert len(result.history) == result.best_epoch + 3
    assert module.value.item() == seen[result.best_epoch - 1] == result.best_state["value"].item()
    assert abs(module.value.item() - 0.05) == min(abs(value - 0.05) for value in seen)
    assert not module.training


def test_a_resumed_training_remembers_its_best_epoch_and_its_patience():
    patches = np.ones((20, 1, 4, 4, 4), np.float32)
    patches[:2] = 0.05
    settings = TrainSettings(epochs=50, patience=3, batch_size=18, learning_rate=0.02)

    def train(**keywords):
        return fit(
            Constant(), patches, None, AutoencoderLoss(l1=0), settings, validation_rows=[0, 1], **keywords
        )

    undisturbed, checkpoint = train(), Memory()
    with pytest.raises(Killed):
        train(checkpoint=checkpoint, on_epoch=killed_after(undisturbed.best_epoch + 1))
    resumed = train(checkpoint=checkpoint)
    assert resumed.best_epoch == undisturbed.best_epoch
    assert len(resumed.history) == len(undisturbed.history)
    assert same_bits(resumed.best_state, undisturbed.best_state)


def test_small_improvements_do_not_count_under_min_delta():
    settings = TrainSettings(epochs=9, patience=2, min_delta=1e6)
    result = fit(network(), patches_of(10), None, AutoencoderLoss(), settings)
    assert (result.best_epoch, len(result.history), result.stopped_reason) == (1, 3, "patience")


def test_the_record_holds_the_parts_and_their_sum():
    record = fit(network(), patches_of(13), None, AutoencoderLoss(l1=0.1), QUICK).history[-1]
    assert record.epoch == 4
    assert set(record.train_parts) == set(record.validation_parts) == {"reconstruction", "sparsity"}
    assert record.train_loss == pytest.approx(sum(record.train_parts.values()), rel=1e-5)
    assert record.validation_loss == pytest.approx(sum(record.validation_parts.values()), rel=1e-5)


def test_the_validation_loss_is_that_of_the_rows_held_back():
    patches, module, losses = patches_of(13), network(), []
    settings = TrainSettings(epochs=1, batch_size=2, validation_fraction=0.4)
    result = fit(module, patches, None, AutoencoderLoss(l1=0), settings)
    _, validation = split_rows(13, settings)
    assert len(validation) == 5
    with torch.no_grad():
        batch = torch.from_numpy(patches[validation])
        losses = ((module(batch)[0] - batch) ** 2).mean(dim=(1, 2, 3, 4))
    assert result.history[0].validation_loss == pytest.approx(float(losses.mean()), rel=1e-5)


def test_broken_patches_are_named():
    patches = patches_of(12)
    patches[7, 0, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match="the first is number 7"):
        fit(network(), patches, None, AutoencoderLoss(), QUICK)


def test_a_training_that_explodes_says_what_to_do():
    settings = TrainSettings(epochs=9, learning_rate=1e30)
    with pytest.raises(DataError, match="Lower learning_rate"):
        fit(network(), patches_of(12), None, AutoencoderLoss(), settings)


@pytest.mark.parametrize(("n", "rows"), [(0, None), (1, None), (3, [0, 1, 2]), (3, [])])
def test_too_few_items_are_refused(n, rows):
    with pytest.raises(DataError, match="too few"):
        split_rows(n, TrainSettings(), None if rows is None else np.array(rows, dtype=int))


def test_rows_that_do_not_exist_are_refused():
    with pytest.raises(ConfigurationError, match="there are 4 items"):
        split_rows(4, TrainSettings(), np.array([4]))


def test_every_row_is_trained_on_or_validated_on():
    train, validation = split_rows(97, TrainSettings())
    assert sorted([*train, *validation]) == list(range(97))
    assert len(validation) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"patience": 0},
        {"batch_size": 0},
        {"threads": 0},
        {"learning_rate": 0.0},
        {"min_delta": -1.0},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"precision": "float16"},
    ],
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        TrainSettings(**wrong)


def test_what_the_process_had_is_put_back():
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    fit(network(), patches_of(6), None, AutoencoderLoss(), TrainSettings(epochs=1, threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.equal(state, torch.get_rng_state())


def test_an_augmentation_of_ones_own_is_used_on_training_items_alone():
    seen = []

    def spy(inputs, targets, rng):
        seen.append((len(inputs), rng.random()))
        return inputs, targets

    settings = TrainSettings(epochs=2, batch_size=10, augment=True)
    fit(network(), patches_of(20), None, AutoencoderLoss(), settings, augmentation=spy)
    assert [n for n, _ in seen] == [10, 8, 10, 8]
    assert len({drawn for _, drawn in seen}) == 4, "every batch of every epoch draws anew"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_a_cuda_device(precision):
    settings = TrainSettings(epochs=2, device="cuda", precision=precision)
    result = fit(network(), patches_of(20), None, AutoencoderLoss(), settings)
    assert all(value.device.type == "cpu" for value in result.best_state.values())
    assert np.isfinite(result.history[-1].validation_loss)
