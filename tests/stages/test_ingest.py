"""Ingest against numpy on the whole volume, for every kind of MRC file."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box
from cryoscale.testing.phantoms import blobs
from tests.pipeline.driving import drive

MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def halve(volume: np.ndarray) -> np.ndarray:
    """Mean of each 2x2x2 cell; the last voxel of an odd side is repeated."""
    pads = [(0, n % 2) for n in volume.shape]
    even = np.pad(volume.astype(np.float64), pads, mode="edge")
    z, y, x = (n // 2 for n in even.shape)
    mean = even.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5))
    return np.rint(mean).astype(volume.dtype) if volume.dtype.kind in "iu" else mean.astype(volume.dtype)


def scaled(shape: tuple[int, int, int], dtype: type) -> np.ndarray:
    volume = blobs(shape, seed=1)[0]
    if np.dtype(dtype).kind == "f":
        return volume.astype(dtype)
    low = 0 if np.dtype(dtype).kind == "u" else -20
    return np.clip(np.rint(volume * 20 + (100 if low == 0 else 0)), -127 if low else 0, 127).astype(dtype)


def read_all(run: Run, name: str) -> tuple[Tomogram, list[np.ndarray]]:
    tomogram = Tomogram(run.tomogram(name))
    return tomogram, [tomogram.read(i, Box.whole(v.shape)) for i, v in enumerate(tomogram.facts.levels)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(33, 47, 65), (8, 70, 41)])
def test_pyramid_equals_numpy(
    make_run: Callable[..., Run], tmp_path: Path, mode: int, shape: tuple[int, int, int]
) -> None:
    volume = scaled(shape, MODES[mode])
    write_mrc(tmp_path / "t.mrc", volume, 7.5, mode=mode)
    run = make_run("ingest.levels=4", sources=[tmp_path / "t.mrc"])
    assert drive(run, until="ingest").exit_code == 0
    tomogram, levels = read_all(run, "t")
    assert levels[0].dtype == volume.dtype
    assert np.array_equal(levels[0], volume)
    for below, level in itertools.pairwise(levels):
        expected = halve(below)
        assert level.dtype == volume.dtype
        if volume.dtype.kind == "f":
            np.testing.assert_allclose(level, expected, rtol=2e-3 if mode == 12 else 1e-5, atol=1e-3)
        else:
            assert np.array_equal(level, expected)
    assert tomogram.facts.levels[0].voxel_size_angstrom == pytest.approx(7.5)
    assert tomogram.facts.source["mrc_mode"] == mode


def test_files_of_other_programs_and_byte_orders(make_run: Callable[..., Run], tmp_path: Path) -> None:
    volume = scaled((20, 33, 41), np.int16)
    for name, order in (("little", "<"), ("big", ">")):
        with mrcfile.new(tmp_path / f"{name}.mrc") as file:
            file.set_data(volume.astype(np.dtype(np.int16).newbyteorder(order)))
            file.voxel_size = 12.0
            file.set_volume()
    run = make_run(sources=[tmp_path / "little.mrc", tmp_path / "big.mrc"])
    assert drive(run, until="ingest").exit_code == 0
    for name in ("little", "big"):
        assert np.array_equal(read_all(run, name)[1][0], volume)


def test_given_voxel_size_beats_the_header(make_run: Callable[..., Run], tmp_path: Path) -> None:
    write_mrc(tmp_path / "t.mrc", scaled((20, 24, 28), np.float32), 7.5)
    run = make_run("ingest.voxel_size_angstrom=9.0", sources=[tmp_path / "t.mrc"])
    drive(run, until="ingest")
    assert read_all(run, "t")[0].facts.levels[0].voxel_size_angstrom == 9.0


@pytest.mark.parametrize("contrast", ["dark", "bright"])
def test_canonical_density_is_standard_and_its_objects_dark(
    make_run: Callable[..., Run], tmp_path: Path, contrast: str
) -> None:
    volume, centres = blobs((40, 48, 56), seed=2, count=20, depth=4.0)
    volume = (volume if contrast == "dark" else -volume) * 37 + 1000
    write_mrc(tmp_path / "t.mrc", volume, 10.0)
    run = make_run(f"ingest.contrast={contrast}", sources=[tmp_path / "t.mrc"])
    drive(run, until="ingest")
    tomogram = Tomogram(run.tomogram("t"))
    density = tomogram.read_canonical(0, Box.whole(volume.shape))
    assert density.dtype == np.float32
    assert abs(float(np.median(density))) < 0.5
    assert density[tuple(centres.T)].mean() < -2
    part = Box.of((3, 5, 7), (20, 31, 40))
    assert np.array_equal(tomogram.read_canonical(0, part), density[part.slices])
