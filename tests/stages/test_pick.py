"""Picks against the exact filter on the whole volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from cryoscale.data.ledger import unit_states
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box
from cryoscale.ops.dog import Dog, difference_of_gaussians
from cryoscale.ops.peaks import local_maxima, range_threshold, suppress
from cryoscale.testing.phantoms import blobs, write_phantom
from tests.pipeline.driving import drive

SHAPE = (24, 40, 272)  # three filter tiles along x


def reference(run: Run, dog: Dog, threshold: float, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Filter, threshold and suppress the whole volume at once; positions in voxels, and scores."""
    density = Tomogram(run.tomogram("t")).read_canonical(0, Box.whole(SHAPE))
    scores = difference_of_gaussians(-density, dog)
    peaks = local_maxima(scores)
    peaks = peaks[np.all((peaks >= 4) & (peaks <= np.array(SHAPE) - 4), axis=1)]
    values = scores[tuple(peaks.T)]
    good = values >= range_threshold(values, threshold)
    kept = suppress(peaks[good], values[good], distance)
    return peaks[good][kept], values[good][kept]


@pytest.mark.parametrize(
    ("settings", "dog", "distance"),
    [
        (("pick.radius_angstrom=45", "pick.min_distance_angstrom=60"), Dog.of_radius(4.5), 6.0),
        (("pick.radius_angstrom=30", "pick.ratio=1.4"), Dog.of_radius(3.0, ratio=1.4), 2 * 3.0 / 3**0.5),
    ],
)
def test_picks_equal_the_whole_volume_reference(
    make_run: Callable[..., Run], tmp_path: Path, settings: tuple[str, ...], dog: Dog, distance: float
) -> None:
    source = write_phantom(tmp_path / "t.mrc", SHAPE, seed=3, count=90)
    words = [w for w in settings if not w.startswith("pick.min")] if len(settings) == 3 else list(settings)
    run = make_run("pick.min_distance_angstrom=none", *words, "pick.threshold=3", sources=[source])
    ended = drive(run, until="pick")
    assert ended.ran["pick"] == 4
    picks = read_picks(run.picks, "t")
    places, scores = reference(run, dog, 3.0, distance)
    assert len(places) > 30
    gap, match = cKDTree(places).query(picks.positions_N3 / 10.0)
    same = gap == 0
    assert same.mean() > 0.97, "positions differ from the reference"
    assert abs(len(picks) - len(places)) <= 0.03 * len(places)
    np.testing.assert_allclose(picks.scores_N[same], scores[match[same]], atol=2e-3 * scores.max())


def test_picks_find_the_blobs(make_run: Callable[..., Run], tmp_path: Path) -> None:
    volume, _ = blobs((40, 64, 64), seed=0, count=0)
    truth = np.array([[z, y, x] for z in (10, 30) for y in (12, 32, 52) for x in (12, 32, 52)])
    for centre in truth:
        grid = np.meshgrid(*(np.arange(n) - c for n, c in zip(volume.shape, centre, strict=True)),
                           indexing="ij")  # fmt: skip
        volume -= 3 * (sum(g**2 for g in grid) <= 4.5**2)
    write_mrc(tmp_path / "t.mrc", volume, 10.0)
    run = make_run("pick.threshold=8", sources=[tmp_path / "t.mrc"])
    drive(run, until="pick")
    found = read_picks(run.picks, "t").positions_N3 / 10.0
    gap, nearest = cKDTree(truth).query(found)
    assert sorted(nearest.tolist()) == list(range(len(truth)))
    assert gap.max() <= 1


def test_z_range_mask_and_cap(make_run: Callable[..., Run], tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "t.mrc", (40, 64, 64), seed=0)
    everything = make_run(sources=[source], name="all")
    drive(everything, until="pick")
    picks = read_picks(everything.picks, "t")

    slab = make_run("pick.z_range=[10, 30]", sources=[source], name="slab")
    drive(slab, until="pick")
    z = read_picks(slab.picks, "t").positions_N3[:, 0] / 10
    assert len(z) > 5
    assert z.min() >= 10
    assert z.max() < 30

    mask = np.zeros((40, 64, 64), np.int8)
    mask[:, :, :32] = 1
    write_mrc(tmp_path / "mask.mrc", mask, 10.0)
    masked = make_run(f"pick.mask={tmp_path}/mask.mrc", sources=[source], name="masked")
    drive(masked, until="pick")
    x = read_picks(masked.picks, "t").positions_N3[:, 2] / 10
    assert len(x) > 5
    assert x.max() < 32

    capped = make_run("pick.max_picks=7", sources=[source], name="capped")
    drive(capped, until="pick")
    best = np.sort(picks.scores_N)[-7:]
    assert np.array_equal(np.sort(read_picks(capped.picks, "t").scores_N), best)


def test_working_level_moves_positions_by_its_origin(make_run: Callable[..., Run], tmp_path: Path) -> None:
    """The same blobs are found at half the resolution, within half a coarse voxel."""
    volume, _ = blobs((48, 64, 64), seed=0, count=0)
    truth = np.array([[z, y, x] for z in (14, 33) for y in (17, 46) for x in (17, 46)])
    for centre in truth:
        grid = np.meshgrid(*(np.arange(n) - c for n, c in zip(volume.shape, centre, strict=True)),
                           indexing="ij")  # fmt: skip
        volume -= 3 * (sum(g**2 for g in grid) <= 5.5**2)
    write_mrc(tmp_path / "t.mrc", volume, 10.0)
    words = ["run.working_voxel_size_angstrom=20", "pick.radius_angstrom=55", "pick.threshold=8"]
    run = make_run(*words, sources=[tmp_path / "t.mrc"])
    drive(run, until="pick")
    found = read_picks(run.picks, "t").positions_N3
    gap, nearest = cKDTree(truth * 10.0).query(found)
    assert sorted(nearest.tolist()) == list(range(len(truth)))
    assert gap.max() <= 20
    assert abs((found - truth[nearest] * 10.0).mean(axis=0)).max() <= 5.0, "positions are shifted"


def test_imported_positions_are_sorted_and_kept(make_run: Callable[..., Run], tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "t.mrc", (40, 64, 64), seed=0)
    first = make_run(sources=[source], name="first")
    drive(first, until="pick")
    picks = read_picks(first.picks, "t")
    order = np.random.default_rng(0).permutation(len(picks))
    lines = ["z,y,x"] + [",".join(f"{v:.3f}" for v in picks.positions_N3[i] / 10) for i in order]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    second = make_run(f"pick.positions={tmp_path}/{{tomogram}}.csv", sources=[source], name="second")
    ended = drive(second, until="pick")
    assert ended.exit_code == 0, ended.failures
    np.testing.assert_allclose(read_picks(second.picks, "t").positions_N3, picks.positions_N3, atol=0.02)


@pytest.mark.parametrize("header", ["z,y,x", "tomogram,z,y,x"])
def test_an_empty_list_of_positions_is_an_answer(
    make_run: Callable[..., Run], tmp_path: Path, header: str
) -> None:
    """Like a tomogram in which nothing is found; the other goes on."""
    sources = [write_phantom(tmp_path / f"{name}.mrc", (24, 24, 24), seed=0) for name in ("t", "u")]
    (tmp_path / "t.csv").write_text(header + "\n")
    (tmp_path / "u.csv").write_text("z,y,x\n12,12,12\n11,10,9\n9,12,13\n")
    run = make_run(f"pick.positions={tmp_path}/{{tomogram}}.csv", "encoder.epochs=1", sources=sources)
    ended = drive(run, until="encode")
    assert ended.exit_code == 0, ended.failures
    assert [len(read_picks(run.picks, name)) for name in ("t", "u")] == [0, 3]
    states = {state.unit: state.state for state in unit_states(run.ledger) if state.stage == "pick"}
    assert states == {"t": "empty", "u": "done"}
