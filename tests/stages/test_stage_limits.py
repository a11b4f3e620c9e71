"""What stages hold at once stays bounded, and what is measured once is not measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.data.access import Access
from cryoscale.data.arrays import write_arrays
from cryoscale.data.folder import Folder
from cryoscale.data.rows import read_pick_notes, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import write_table
from cryoscale.geometry import Box, Grid
from cryoscale.ops.components import label_block, merge
from cryoscale.ops.dog import Dog, difference_of_gaussians
from cryoscale.ops.peaks import local_maxima
from cryoscale.pipeline.order import steps_for
from cryoscale.stages import networks, patching
from cryoscale.stages.instances import DROPPED, StoredComponents, _part, compact, without_specks
from cryoscale.stages.networks import NetworkCache, worker_threads
from cryoscale.stages.patching import PatchReader, recorded_statistics
from cryoscale.stages.pick import expected_candidates
from cryoscale.stages.review import draw_members, visited_tomograms
from cryoscale.testing.phantoms import write_phantom
from tests.pipeline.driving import drive
from tests.stages.granting import grant

# -- pick -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dog", [Dog.of_radius(2.0), Dog.of_radius(4.5), Dog.of_paper(), Dog(1.5, 2.0)])
def test_noise_has_no_more_candidates_than_expected(dog: Dog) -> None:
    noise = np.random.default_rng(0).normal(size=(96, 96, 96)).astype(np.float32)
    found = len(local_maxima(difference_of_gaussians(noise, dog)))
    assert 0.15 * expected_candidates(noise.size, dog) < found <= expected_candidates(noise.size, dog)


def test_seal_of_picks_takes_the_parts_of_its_plan_only(make_run: Callable[..., Run], tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "t.mrc", (40, 64, 160), seed=0)
    run = make_run("pick.threshold=4", sources=[source])
    drive(run, until="pick")
    expected = read_picks(run.picks, "t")
    stage = next(step.stage for step in steps_for(run.config) if step.name == "pick")
    access = Access(run, run.config, "t", (), stage.reads, stage.writes, "k")
    stage.create(access)
    with stage.open_worker(access) as function:
        for block in stage.plan(access).phases[0]:
            function(block)
    stray = {"z": [20], "y": [30], "x": [30], "score": np.array([1e6], np.float32)}
    write_table(access.parts(), "00000099.parquet", stray)
    facts = stage.seal(access)
    found = read_picks(run.picks, "t")
    assert np.array_equal(found.positions_N3, expected.positions_N3)
    assert facts["candidates"] > facts["picks"] > 10


def test_missing_masks_and_positions_fail_their_tomogram_alone(
    make_run: Callable[..., Run], tmp_path: Path, small_sources: list[Path]
) -> None:
    for key in ("mask", "positions"):
        run = make_run(f"pick.{key}={tmp_path}/{{tomogram}}-gone.mrc", sources=small_sources, name=key)
        ended = drive(run, until="pick")
        assert {f["tomogram"] for f in ended.failures} == {"alpha", "beta"}
        assert all(f"there is no file {tmp_path}" in f["reason"] for f in ended.failures)
        assert not any("paused" in message for message in ended.messages)


# -- ingest -----------------------------------------------------------------------------------------------


def test_source_that_goes_away_fails_its_tomogram_alone(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoscale.errors import SurroundingsError
    from cryoscale.formats.mrc import MrcVolume

    sources = [write_phantom(tmp_path / f"{n}.mrc", (40, 40, 40), seed=0) for n in ("gone", "stays")]
    run = make_run(sources=sources)
    drive(run, until="identify")
    read = MrcVolume.read

    def vanish(volume: MrcVolume, box: Box) -> Any:
        if volume.path.stem == "gone":
            volume.path.unlink(missing_ok=True)
            raise SurroundingsError("stale file handle")
        return read(volume, box)

    monkeypatch.setattr(MrcVolume, "read", vanish)
    ended = drive(run, until="ingest")
    assert {f["tomogram"] for f in ended.failures} == {"gone"}
    assert any("is gone" in f["reason"] or "no file" in f["reason"] for f in ended.failures)
    assert not any("paused" in message for message in ended.messages)
    assert run.tomogram("stays").exists("zarr.json")


# -- normalisation ----------------------------------------------------------------------------------------


def test_statistics_are_measured_once_and_recorded(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, access = grant(finished_run, "encode", "alpha")
    sigma = access.config.patch.smooth_sigma_voxels
    fresh = PatchReader(access.open_tomogram(), 0, access.config.patch).statistics
    monkeypatch.setattr(patching, "smoothed_statistics", lambda *_: pytest.fail("measured again"))
    assert PatchReader.for_access(access).statistics == fresh
    notes = read_pick_notes(finished_run.picks, "alpha")
    assert notes["unit"] == "angstrom"
    assert recorded_statistics(notes, 0, sigma) == fresh
    assert recorded_statistics(notes, 1, sigma) is None
    assert recorded_statistics(notes, 0, sigma + 1) is None
    assert recorded_statistics({}, 0, sigma) is None


def test_statistics_stand_for_the_smoothed_tomogram(finished_run: Run) -> None:
    from cryoscale.ops.gaussian import smooth_exact

    _, access = grant(finished_run, "encode", "alpha")
    whole = access.open_tomogram().read_canonical(0, Box.whole((40, 64, 64)))
    for sigma in (1.0, 2.0):
        mean, sd = patching.smoothed_statistics(access.open_tomogram(), 0, sigma)
        smooth = smooth_exact(whole, sigma)
        median = float(np.median(smooth))
        assert mean == pytest.approx(median, abs=1e-4)
        assert sd == pytest.approx(1.4826 * np.median(np.abs(smooth - median)), rel=1e-3)


# -- instances --------------------------------------------------------------------------------------------

BLOBS = st.tuples(st.integers(0, 2**32 - 1), st.integers(4, 9), st.integers(1, 30))


@settings(max_examples=20)
@given(BLOBS)
def test_joining_stored_parts_equals_joining_in_memory(drawn: tuple[int, int, int]) -> None:
    seed, edge, smallest = drawn
    labels = (np.random.default_rng(seed).random((11, 14, 17)) > 0.72).astype(np.uint8)
    labels[:, :7] *= 2
    parts = Folder.of("memory://parts")
    grid = list(Grid.of(labels.shape, edge).blocks())
    whole = merge([(b.core, label_block(labels[b.core.slices], b.core.start)) for b in grid])
    for block in grid:
        found, dropped = without_specks(label_block(labels[block.core.slices], block.core.start), smallest)
        arrays = compact(found)
        assert arrays["x0"].dtype == np.uint8
        write_arrays(parts, _part(block), arrays | {DROPPED: np.array([dropped])})
    stored = [(b.core, StoredComponents.open(parts, b)) for b in grid]
    joined = merge(stored)
    specks = sum(components.dropped for _, components in stored)
    assert len(joined) + specks == len(whole)
    for name in ("values_N", "voxels_N", "centroids_N3", "first_N3", "lower_N3"):
        ours, theirs = (getattr(x, name)[x.voxels_N >= smallest] for x in (joined, whole))
        assert np.array_equal(ours, theirs), name


def test_each_face_is_read_once_and_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryoscale.stages import instances

    labels = np.ones((12, 12, 12), np.uint8)
    parts, grid = Folder.of("memory://faces"), list(Grid.of(labels.shape, 4).blocks())
    for block in grid:
        arrays = compact(label_block(labels[block.core.slices], block.core.start))
        write_arrays(parts, _part(block), arrays | {DROPPED: np.array([0])})
    stored = [(b.core, StoredComponents.open(parts, b)) for b in grid]
    assert all(getattr(c, name).strides == (0, 0) for _, c in stored for name in ("z0", "z1", "x1"))
    reads: list[tuple[str, str]] = []
    some = instances.read_some
    monkeypatch.setattr(
        instances, "read_some", lambda f, name, keys: reads.append((name, *keys)) or some(f, name, keys)
    )
    assert merge(stored).voxels_N.tolist() == [labels.size]
    assert len(reads) == len(set(reads)) == 3 * 2 * 3 * 3 * 2  # axes, seams, blocks of a seam, sides


# -- networks ---------------------------------------------------------------------------------------------


def test_networks_load_once_per_process(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryoscale.inference import engine

    cache = NetworkCache()
    monkeypatch.setattr(networks, "CACHE", cache)
    opened: list[Any] = []
    real = engine.open_engine
    monkeypatch.setattr(engine, "open_engine", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1])
    codes = []
    for tomogram in ("alpha", "beta", "alpha"):
        _, access = grant(finished_run, "encode", tomogram)
        with networks.open_encoder(access) as encoder:
            codes.append(encoder.run(np.ones((3, 1, 8, 8, 8), np.float32)))
            with networks.open_encoder(access) as again:
                assert again is encoder
    assert len(opened) == 1
    assert np.array_equal(codes[0], codes[2])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with networks.open_encoder(access):
        assert "2 threads" in opened[-1].name
    assert len(opened) == 2
    cache.close()
    assert all(one.closed for one in opened)


class Fake:
    """An engine that can be told to fail."""

    output_shape = (1,)

    def __init__(self) -> None:
        self.closed = False

    def run(self, items: Any) -> Any:
        if items is None:
            raise RuntimeError("broken device")
        return items

    def close(self) -> None:
        self.closed = True


def test_cache_keeps_the_last_and_closes_the_others() -> None:
    made: dict[str, list[Fake]] = {}
    cache = NetworkCache(limit=2)

    def borrow(key: str) -> Any:
        return cache.borrow(key, lambda: made.setdefault(key, []).append(Fake()) or made[key][-1])

    with borrow("a"), borrow("b"), borrow("c"):
        assert not any(one.closed for ones in made.values() for one in ones)
    made.clear()
    cache.close()
    for key in "abc":
        with borrow(key):
            pass
    assert [made[k][0].closed for k in "abc"] == [True, False, False]
    with pytest.raises(RuntimeError), borrow("b") as network:
        network.run(None)
    assert made["b"][0].closed, "a broken device must not meet the next attempt"
    with borrow("b"):
        assert len(made["b"]) == 2
    with borrow("c"):
        assert len(made["c"]) == 1


@pytest.mark.parametrize(
    ("value", "expected"), [("3", 3), ("2,4", 2), ("", None), ("many", None), ("0", None)]
)
def test_threads_are_the_share_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None
) -> None:
    from cryoscale.runtime.memory import cpu_count

    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert worker_threads() == (expected or cpu_count())


# -- review -----------------------------------------------------------------------------------------------


def test_members_are_drawn_from_all_tomograms_together() -> None:
    counts = np.random.default_rng(0).integers(0, 40, (1000, 30))
    drawn = draw_members(counts, 200, seed=3)
    taken = np.array([[len(rows) for rows in one] for one in drawn])
    assert taken.sum(axis=0).tolist() == np.minimum(200, counts.sum(axis=0)).tolist()
    assert (taken <= counts).all()
    for one, of in zip(drawn, counts, strict=True):
        assert all(
            len(np.unique(rows)) == len(rows) and (rows < n).all() for rows, n in zip(one, of, strict=True)
        )


def test_few_tomograms_are_visited_and_no_cluster_is_left_out() -> None:
    counts = np.zeros((1000, 5), np.int64)
    counts[:, :3] = 10
    counts[777, 3] = 4
    visited = visited_tomograms(counts, seed=0, most=64)
    assert 64 <= len(visited) <= 65
    assert 777 in visited
    assert np.array_equal(visited, visited_tomograms(counts, seed=0, most=64))
    assert np.array_equal(visited_tomograms(counts[:5], seed=0), np.arange(5))
