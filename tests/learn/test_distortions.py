"""Grey values, wedges and rotations in the plane; augmentations by name."""

import numpy as np
import pytest
import torch

from cryoscale.errors import ConfigurationError
from cryoscale.learn.augmentation import augmentation_of, random_turns, turned
from cryoscale.learn.distortions import Intensity, Wedge, random_rotations
from cryoscale.learn.targets import IGNORED
from cryoscale.learn.turns import kept_wedge_turns_of, plane_turns_of
from cryoscale.simulate.transfer import Imaging, wedge_mask

BOX = (6, 8, 7)


def patches_of(n, box=BOX, seed=0):
    return torch.randn(n, 1, *box, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return np.random.default_rng(seed)


def heads_of(patches):
    return {"cls": torch.arange(len(patches)), "seg": (patches[:, 0] > 0).to(torch.uint8), "rec": patches * 2}


@pytest.mark.parametrize(("degrees", "box"), [(60, (6, 8, 7)), (40, (9, 4, 8)), (90, (6, 4, 4))])
def test_the_wedge_is_that_of_simulated_tomograms(degrees, box):
    imaging = Imaging(snr=1.0, tilt_min_degrees=-degrees, tilt_max_degrees=degrees)
    mask = wedge_mask(box[0], box[2], imaging)
    wanted = np.fft.irfft2(np.fft.rfft2(patches_of(3, box).numpy(), axes=(2, 4)) * mask[:, None],
                           s=(box[0], box[2]), axes=(2, 4))  # fmt: skip
    found, _ = Wedge(degrees)(patches_of(3, box), None, rng())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    again, _ = Wedge(degrees)(found, None, rng())
    np.testing.assert_allclose(again, found, atol=1e-5)


def test_a_tilt_axis_along_x_is_y_and_x_exchanged():
    patches = patches_of(2)
    along_x, _ = Wedge(50, "x")(patches, None, rng())
    along_y, _ = Wedge(50)(patches.transpose(-1, -2), None, rng())
    torch.testing.assert_close(along_x, along_y.transpose(-1, -2))


def test_half_turns_and_flips_leave_the_wedge_where_it_is_and_quarter_turns_do_not():
    filtered, _ = Wedge()(patches_of(1, (8, 8, 8)), None, rng())
    for turn in kept_wedge_turns_of((8, 8, 8), mirror=True):
        moved = turned(filtered, turn)
        torch.testing.assert_close(Wedge()(moved, None, rng())[0], moved, atol=1e-5, rtol=0)
    moved = filtered.transpose(2, 4)
    assert (Wedge()(moved, None, rng())[0] - moved).abs().max() > 0.1
    assert len(kept_wedge_turns_of((8, 8, 8))) == 4
    assert len(kept_wedge_turns_of((8, 8, 8), mirror=True)) == 8


def test_intensity_changes_inputs_alone_within_its_limits():
    patches = patches_of(50, (8, 8, 8)) * 3 + 1
    changed, targets = Intensity(0.2, 0.5, 0)(patches, heads_of(patches), rng())
    assert all(torch.equal(value, heads_of(patches)[head]) for head, value in targets.items())
    gain = changed.flatten(1).std(1) / patches.flatten(1).std(1)
    assert gain.min() > 1 / 1.2 - 1e-5
    assert gain.max() < 1.2 + 1e-5
    assert gain.max() / gain.min() > 1.3
    offset = (changed - patches * gain.view(-1, 1, 1, 1, 1)).flatten(1).mean(1) / patches.flatten(1).std(1)
    assert 0.4 < offset.abs().max() <= 0.5 + 1e-5
    noisy, _ = Intensity(0, 0, 0.4)(patches, None, rng())
    noise = (noisy - patches).flatten(1).std(1) / patches.flatten(1).std(1)
    assert 0.3 < noise.max() < 0.45
    assert noise.min() < 0.1


def test_noise_has_no_waves_in_the_wedge():
    patches = patches_of(3)
    found, _ = augmentation_of(("intensity", "wedge", "turns"), 3, intensity=Intensity(0, 0, 0.5))(
        patches, None, rng()
    )
    power = torch.fft.rfft2(found, dim=(-3, -1)).abs().amax(dim=(0, 1, 3))
    missing = ~Wedge().mask(found.shape[-3], found.shape[-1])
    assert missing.any()
    assert float(power[missing].max()) < 1e-4 * float(power.max())


def test_the_same_generator_gives_the_same_items():
    augment = augmentation_of(("turns", "flips", "wedge", "intensity"), 3)
    for seed in (0, 1):
        one, _ = augment(patches_of(5), None, rng(seed))
        again, _ = augment(patches_of(5), None, rng(seed))
        assert torch.equal(one, again)
    assert not torch.equal(one, augment(patches_of(5), None, rng(0))[0])
    state = torch.get_rng_state()
    augment(patches_of(5), None, rng())
    assert torch.equal(state, torch.get_rng_state())


def test_heads_are_turned_alike_and_classes_stay():
    patches = patches_of(20)
    found, targets = augmentation_of(("turns", "flips"), 3)(patches, heads_of(patches), rng())
    assert not torch.equal(found, patches)
    assert torch.equal(targets["rec"], found * 2)
    assert torch.equal(targets["seg"], (found[:, 0] > 0).to(torch.uint8))
    assert torch.equal(targets["cls"], torch.arange(20))
    assert torch.equal(found, random_turns(patches, None, rng(), mirror=True)[0])
    _, classes = random_turns(patches, torch.arange(20), rng())
    assert torch.equal(classes, torch.arange(20))


@pytest.mark.parametrize(
    ("names", "sides", "count"),
    [
        (("turns",), (4, 4, 4), 24),
        (("turns", "flips"), (4, 4, 4), 48),
        (("flips",), (4, 4, 4), 8),
        (("half-turns",), (4, 4, 4), 4),
        (("half-turns", "flips"), (4, 4, 4), 8),
        (("turns",), (4, 4), 4),
        (("turns",), (4, 6), 2),
        (("turns", "flips"), (4, 4), 8),
        (("turns", "flips"), (4, 6), 4),
        (("flips",), (4, 4), 4),
    ],
)
def test_names_stand_for_so_many_turns(names, sides, count):
    items = torch.randn(1, 2, *sides, generator=torch.Generator().manual_seed(0)).repeat(
        1000, *(1,) * (len(sides) + 1)
    )
    found, targets = augmentation_of(names, len(sides))(items, items[:, 1] * 3, rng())
    assert len({tuple(item.flatten().tolist()) for item in found}) == count
    assert torch.equal(targets, found[:, 1] * 3)


def test_turns_of_a_slice_stay_in_its_plane():
    slice_ = torch.arange(16.0).view(1, 1, 4, 4)
    wanted = {tuple(torch.rot90(slice_, k, (2, 3)).flatten().tolist()) for k in range(4)}
    assert {tuple(turned(slice_, turn).flatten().tolist()) for turn in plane_turns_of((4, 4))} == wanted


class Fixed:
    """A generator that gives one angle."""

    def __init__(self, angle):
        self.angle = angle

    def uniform(self, low, high, size):
        return np.full(size, self.angle)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_a_rotation_by_a_quarter_is_that_turn(quarter):
    slices = torch.randn(3, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    labels = (slices[:, 0] > 0).to(torch.uint8)
    found, targets = random_rotations(slices, labels, Fixed(quarter * np.pi / 2))
    torch.testing.assert_close(found, torch.rot90(slices, quarter, (2, 3)), atol=1e-5, rtol=1e-4)
    assert torch.equal(targets, torch.rot90(labels, quarter, (1, 2)))


def test_a_rotation_keeps_lengths_and_ignores_what_comes_from_outside():
    labels = torch.ones(1, 40, 60, dtype=torch.uint8)
    labels[:, 19:21, 10:50] = 2
    image = (labels == 2).float()[:, None]
    found, targets = random_rotations(image, {"seg": labels, "cls": torch.tensor([7])}, Fixed(0.5))
    rows, columns = torch.nonzero(found[0, 0] > 0.5, as_tuple=True)
    length = float(torch.hypot(rows.max() - rows.min() + 0.0, columns.max() - columns.min() + 0.0))
    assert length == pytest.approx(40, abs=2)
    slope = np.polyfit(columns.numpy(), rows.numpy(), 1)[0]
    assert abs(np.degrees(np.arctan(slope))) == pytest.approx(np.degrees(0.5), abs=2)
    assert set(targets["seg"].unique().tolist()) == {1, 2, IGNORED}
    assert targets["seg"].dtype == torch.uint8
    assert targets["seg"][0, 0, 0] == IGNORED
    assert targets["seg"][0, 20, 30] == 2
    assert targets["cls"].tolist() == [7]


def test_every_slice_has_its_own_angle():
    slices = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)).repeat(6, 1, 1, 1)
    found, _ = random_rotations(slices, None, rng())
    assert len({tuple(item.flatten().tolist()) for item in found}) == 6


@pytest.mark.parametrize(
    ("names", "dimensions", "message"),
    [
        (("rotations",), 3, "'rotations' in 3 dimensions"),
        (("wedge",), 2, "'wedge' in 2 dimensions"),
        (("turns", "half-turns"), 3, "take one"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, dimensions, message):
    with pytest.raises(ConfigurationError, match=message):
        augmentation_of(names, dimensions)


def test_impossible_distortions_are_refused():
    with pytest.raises(ConfigurationError, match="noise"):
        Intensity(noise=-1)
    with pytest.raises(ConfigurationError, match="degrees = 0"):
        Wedge(0)
    with pytest.raises(ConfigurationError, match="'z'"):
        Wedge(60, "z")
