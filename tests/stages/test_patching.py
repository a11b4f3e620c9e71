"""Patches come out the same whatever else is asked for."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.config.sections import PatchConfig
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram
from cryoscale.geometry import Box
from cryoscale.ops.gaussian import smooth_exact
from cryoscale.ops.smooth import WIDEST
from cryoscale.stages.patching import PatchReader, one_ahead
from cryoscale.testing.strategies import boxes


@pytest.fixture(scope="session")
def reader(finished_run: Run) -> PatchReader:
    config = PatchConfig(size_voxels=8, smooth_sigma_voxels=1.5)
    return PatchReader(Tomogram(finished_run.tomogram("alpha")), 0, config)


@pytest.fixture(scope="session")
def centres(finished_run: Run, reader: PatchReader) -> np.ndarray:
    return reader.voxels(read_picks(finished_run.picks, "alpha").positions_N3)


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_patches_are_cut_from_the_smoothed_tomogram(
    finished_run: Run, centres: np.ndarray, sigma: float
) -> None:
    tomogram = Tomogram(finished_run.tomogram("alpha"))
    whole = tomogram.read_canonical(0, Box.whole((40, 64, 64)))
    reader = PatchReader(tomogram, 0, PatchConfig(size_voxels=(8, 4, 12), smooth_sigma_voxels=sigma))
    fits = np.all((centres >= 6) & (centres <= np.array([33, 57, 57])), axis=1)
    patches = reader.gather(centres[fits])
    mean, sd = reader.statistics
    expected = (smooth_exact(whole, sigma) - mean) / sd if sigma else whole
    for patch, (z, y, x) in zip(patches, centres[fits], strict=True):
        np.testing.assert_allclose(patch, expected[z - 4 : z + 4, y - 2 : y + 2, x - 6 : x + 6], atol=2e-5)


@settings(max_examples=20)
@given(st.data())
def test_gather_does_not_depend_on_the_company(
    reader: PatchReader, centres: np.ndarray, data: st.DataObject
) -> None:
    everything = reader.gather(centres)
    chosen = data.draw(st.lists(st.integers(0, len(centres) - 1), min_size=1, max_size=8))
    assert np.array_equal(reader.gather(centres[chosen]), everything[chosen])


@settings(max_examples=20)
@given(box=boxes(low=0, high=40))
def test_read_does_not_depend_on_the_box(reader: PatchReader, box: Box) -> None:
    inside = box.intersect(Box.whole((40, 64, 64)))
    if not inside.empty:
        whole = reader.read(Box.whole((40, 64, 64)))
        assert np.array_equal(reader.read(inside), whole[inside.slices])


def test_no_centres_no_patches(reader: PatchReader) -> None:
    assert reader.gather(np.empty((0, 3), np.int64)).shape == (0, 8, 8, 8)


def test_rows_of_one_tile_read_it_once(
    finished_run: Run, centres: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tomogram = Tomogram(finished_run.tomogram("alpha"))
    reader = PatchReader(tomogram, 0, PatchConfig(size_voxels=8, smooth_sigma_voxels=1))
    whole = reader.gather(centres)
    seen: list[Box] = []
    real = tomogram.read_canonical
    monkeypatch.setattr(tomogram, "read_canonical", lambda number, box: seen.append(box) or real(number, box))
    parts = [reader.gather(centres[:5]), reader.gather(centres[5:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not seen  # the tomogram is a single tile, and the reader still has it


@pytest.mark.parametrize("sigma", [WIDEST, WIDEST + 0.1])
def test_both_ways_to_smooth_agree_with_read(finished_run: Run, sigma: float) -> None:
    tomogram = Tomogram(finished_run.tomogram("alpha"))
    reader = PatchReader(tomogram, 0, PatchConfig(size_voxels=8, smooth_sigma_voxels=sigma))
    patch = reader.gather(np.array([[20, 30, 4]]))[0]
    np.testing.assert_allclose(patch, reader.read(Box.of((16, 26, 0), (24, 34, 8))), rtol=0, atol=2e-4)


def test_one_ahead_keeps_the_order_and_is_never_further() -> None:
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        return 10 * number

    with ThreadPoolExecutor(1) as pool:
        for count, result in enumerate(one_ahead(pool, job, range(5))):
            assert result == 10 * count
            assert len(begun) <= count + 2
        assert list(one_ahead(pool, job, [])) == []


def test_one_ahead_waits_for_what_is_under_way_when_it_is_closed() -> None:
    go, ended = threading.Event(), threading.Event()

    def job(number: int) -> int:
        if number:
            go.wait(30)
            ended.set()
        return number

    with ThreadPoolExecutor(1) as pool, contextlib.closing(one_ahead(pool, job, range(3))) as results:
        assert next(results) == 0
        go.set()
        results.close()
        assert ended.is_set()
