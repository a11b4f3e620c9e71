from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cryoscale.errors import DataError
from cryoscale.geometry import Box
from cryoscale.ops.normalise import (
    band_profile,
    canonical,
    guess_contrast,
    robust_statistics,
    sample_boxes,
    suggest_z_range,
)

random = np.random.default_rng


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_normal_values_give_their_mean_and_sd(dtype):
    values = np.rint(100.0 + 30.0 * random(0).standard_normal(200_000)).astype(dtype)
    mean, sd = robust_statistics(values)
    assert mean == pytest.approx(100.0, abs=0.6)
    assert sd == pytest.approx(30.0, rel=0.02)


def test_gold_does_not_count():
    values = random(1).standard_normal(100_000)
    values[:1000] = -1000.0
    mean, sd = robust_statistics(values)
    assert abs(mean) < 0.03
    assert sd == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("sd", [0.4, 0.7, 1.0, 2.3, 5.0])
def test_few_whole_levels_are_interpolated(sd):
    values = np.rint(3.3 + sd * random(2).standard_normal(200_000)).astype(np.int8)
    mean, found = robust_statistics(values)
    assert mean == pytest.approx(3.3, abs=0.15)
    assert found == pytest.approx(values.std(), rel=0.2)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_padding_is_left_out(dtype):
    values = np.zeros(100_000)
    values[:40_000] = 500 + 50 * random(3).standard_normal(40_000)
    mean, sd = robust_statistics(values.astype(dtype))
    assert mean == pytest.approx(500, abs=2)
    assert sd == pytest.approx(50, rel=0.03)


def test_a_nearly_binary_volume_still_has_a_spread():
    values = np.zeros(10_000, dtype=np.float32)
    values[:10] = 0.5
    mean, sd = robust_statistics(values)
    assert mean == pytest.approx(0.0005)
    assert sd == pytest.approx(values.std())


def test_values_that_are_not_finite_are_left_out():
    values = random(4).standard_normal(10_000)
    values[::10] = np.nan
    values[5] = np.inf
    assert robust_statistics(values)[1] == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf], [3.0] * 9, np.full(9, 7, dtype=np.uint8)])
def test_no_spread_is_an_error(values):
    with pytest.raises(DataError, match=r"finite|value"):
        robust_statistics(values)


def test_canonical_is_dark_and_leaves_the_input_alone():
    raw = np.array([[[90, 100, 130]]], dtype=np.int16)
    np.testing.assert_allclose(canonical(raw, 100.0, 10.0, bright=False), [[[-1, 0, 3]]])
    np.testing.assert_allclose(canonical(raw, 100.0, 10.0, bright=True), [[[1, 0, -3]]])
    single = raw.astype(np.float32)
    assert canonical(single, 100.0, 10.0, bright=True).dtype == np.float32
    np.testing.assert_array_equal(single, raw)
    with pytest.raises(DataError):
        canonical(raw, 0.0, 0.0, bright=False)


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 90)] * 3), budget=st.integers(1, 300_000), seed=st.integers(0, 9))
def test_sample_boxes_stay_inside_and_within_the_budget(shape, budget, seed):
    boxes = sample_boxes(shape, edge=16, budget_voxels=budget, seed=seed)
    whole = Box.whole(shape)
    assert boxes
    assert len(set(boxes)) == len(boxes)
    assert all(whole.contains(box) and not box.empty for box in boxes)
    assert boxes == sample_boxes(shape, edge=16, budget_voxels=budget, seed=seed)
    if whole.voxels <= budget:
        assert boxes == [whole]
    else:
        assert sum(box.voxels for box in boxes) <= max(budget, 16**3)
        assert boxes == sorted(boxes)


def test_the_seed_moves_the_boxes():
    a, b = (sample_boxes((200, 200, 200), budget_voxels=10 * 32**3, seed=s) for s in (0, 1))
    assert a != b
    assert len(a) == len(b) == 10


def blobs(sign, *, noise=1.0, seed=0, shape=(48, 64, 64)):
    volume = np.zeros(shape)
    places = random(seed).integers(0, shape, (60, 3))
    np.add.at(volume, tuple(places.T), 1.0)
    volume = sign * ndimage.gaussian_filter(volume, 2.0)
    volume *= 3.0 / np.abs(volume).max()
    return (volume + noise * random(seed + 1).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize(("sign", "value"), [(-1, "dark"), (1, "bright")])
def test_contrast_of_blobs_in_noise(sign, value):
    guess = guess_contrast([blobs(sign)], 10.0)
    assert guess.value == value
    assert guess.confidence > 0.5
    assert f"{value} blobs are" in guess.reason


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_contrast_and_is_called_dark(seed):
    guess = guess_contrast([random(seed).standard_normal((40, 64, 64)).astype(np.float32)])
    assert guess.value == "dark"
    assert guess.confidence < 0.5
    assert "assumed" in guess.reason


def test_contrast_without_usable_sample():
    assert guess_contrast([np.full((4, 4, 4), np.nan)]).confidence == 0.0
    assert guess_contrast([]).value == "dark"
    assert guess_contrast([np.zeros((8, 8, 8))]).value == "dark"


def lamella(depth, start, stop, ratio, seed=0):
    volume = random(seed).standard_normal((depth, 40, 40))
    volume[start:stop] *= np.sqrt(ratio)
    return volume.astype(np.float32)


def test_a_lamella_is_found():
    found = suggest_z_range(band_profile(lamella(60, 18, 44, 10.0)))
    assert found.start == pytest.approx(18, abs=2)
    assert found.stop == pytest.approx(44, abs=2)
    assert "slices" in found.reason


def test_a_lamella_at_a_face_is_found():
    found = suggest_z_range(band_profile(lamella(60, 0, 30, 10.0)))
    assert found.start == 0
    assert found.stop == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    "profile",
    [
        np.ones(50),
        1 + 0.02 * random(0).standard_normal(50),
        3.0 + 2.5 * np.sin(np.pi * np.arange(50) / 49),
        np.exp(np.arange(50) / 10),
        np.exp(-((np.arange(50) - 25) ** 2) / 200),
        np.zeros(50),
        np.full(50, np.nan),
        np.ones(5),
        band_profile(random(0).standard_normal((48, 40, 40))),
    ],
    ids=["even", "noisy", "sagging", "ramp", "dome", "zero", "nan", "short", "noise volume"],
)
def test_no_empty_ice_gives_none_and_a_reason(profile):
    found = suggest_z_range(profile)
    assert found.start is None
    assert found.stop is None
    assert found.reason


def test_reflection_does_not_raise_the_profile_at_the_faces():
    profile = band_profile(random(0).standard_normal((48, 64, 64)))
    assert profile.shape == (48,)
    np.testing.assert_allclose(profile, np.median(profile), rtol=0.2)


def tomogram(name):
    default = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
    path = pathlib.Path(os.environ.get("CRYOSCALE_TEST_DATA", default)) / "tomograms" / f"{name}.mrc"
    if not path.exists():
        pytest.skip(f"no test data at {path}")
    raw = path.read_bytes()
    nx, ny, nz, mode = np.frombuffer(raw[:16], dtype="<i4")
    extra = int(np.frombuffer(raw[92:96], dtype="<i4")[0])
    dtype = {0: "<i1", 1: "<i2", 2: "<f4", 6: "<u2"}[int(mode)]
    return np.frombuffer(raw, dtype=dtype, offset=1024 + extra, count=nx * ny * nz).reshape(nz, ny, nx)


@pytest.mark.parametrize(
    ("name", "voxel_size", "value"),
    [("tomo171", 31.36, "dark"), ("microtubule_13pf", 10.52, "bright"), ("simulated_vesicles", None, "dark")],
)
def test_contrast_of_real_tomograms(name, voxel_size, value):
    volume = tomogram(name)
    boxes = sample_boxes(volume.shape, budget_voxels=500_000, seed=0)
    guess = guess_contrast([volume[box.slices] for box in boxes], voxel_size)
    assert guess.value == value
    assert guess.confidence > 0.5


def test_lamella_of_a_real_tomogram():
    volume = tomogram("tomo171")[:, 64:192, 64:192]
    found = suggest_z_range(band_profile(volume))
    assert found.start == pytest.approx(33, abs=2)
    assert found.stop == pytest.approx(96, abs=2)
    assert suggest_z_range(band_profile(volume[38:90])).start is None


def test_padding_in_z_does_not_decide_the_contrast():
    """A step between density and a constant answers more strongly than any particle."""
    rng = np.random.default_rng(3)
    volume = rng.normal(0, 0.3, (48, 48, 48))
    for centre in rng.integers(8, 40, (25, 3)):
        volume[tuple(slice(c - 3, c + 3) for c in centre)] -= 2.0
    plain = guess_contrast([volume])
    padded = np.concatenate([volume, np.full((24, 48, 48), 40.0)])
    assert plain.value == guess_contrast([padded]).value == "dark"
    assert guess_contrast([padded]).confidence == plain.confidence


def test_constant_slices_are_outside_of_the_sample():
    profile = np.concatenate([np.full(40, 2.0), np.full(20, 1e-13)])
    found = suggest_z_range(profile)
    assert (found.start, found.stop) == (0, 40)
    assert "the others are constant" in found.reason
