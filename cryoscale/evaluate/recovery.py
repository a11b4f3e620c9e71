"""Recovered densities against the truth: of single subtomograms, and averaged at their true orientations.

Shape suffixes: N subtomograms, M chosen ones, S shells, ZYX voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.evaluate.averages import ParticleAverage, average_particles, on_grid
from cryoscale.evaluate.boxes import Boxes
from cryoscale.evaluate.structure_scores import EDGE_VOXELS, SAME_SIZE, TrueDensity
from cryoscale.evaluate.structures import (
    ShellCorrelation,
    fourier_shell_correlation,
    soft_spherical_mask,
)
from cryoscale.evaluate.subtomogram_scores import plain

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

LEAST = 2  # particles of an average
EXAMPLES = 3  # single subtomograms that are shown
QUARTERS = (25, 50, 75)
WORDS = {
    "recovered": "recovered, averaged", "members": "all of the cluster, averaged",
    "shuffled": "recovered, turns shuffled", "raw": "boxes as they are, averaged",
}  # fmt: skip
"""What averages are of."""


@dataclass(frozen=True)
class Volume:
    """A density that is kept as a file: its name, what it is in words, and its values; objects positive."""

    name: str
    words: str
    density_ZYX: Floats


@dataclass(frozen=True)
class Recovery:
    """What was recovered: numbers, and volumes to keep; `examples` are triples of box, recovered and true."""

    scores: dict[str, Any]
    volumes: tuple[Volume, ...]
    examples: tuple[tuple[Volume, Volume, Volume], ...]


def recovery_of(
    boxes: Boxes,
    recovered_NZYX: Floats,
    members: Rows,
    of_class: Rows,
    truth: TrueDensity | None,
    *,
    tilts_degrees: tuple[float, float] | None,
    seed: int,
) -> Recovery:
    """Compare recovered densities with the truth.

    Parameters
    ----------
    recovered_NZYX : (N, Z, Y, X) float
        What the network gave, for all subtomograms.
    members, of_class : rows
        Of the richest cluster, and of the class that was left out. What is averaged are the rows in both;
        where they are fewer than two, all of the class, and `from_cluster` is False.
    truth : TrueDensity, optional
        The density of the class; without, the mean of the subtomograms' own densities is taken for it.
    tilts_degrees : two floats, optional
        Tilt range of the tomograms: averages of raw boxes take each Fourier voxel from those that measured
        it.
    seed : int
        Of halves, and of the shuffled turns.

    Returns
    -------
    recovery : Recovery
        Scores: `single` with `recovered` and `raw`: of each subtomogram the density against its own
        neighbour-free one (`fsc_0.5_angstrom`: quartiles of those that reach it, `reached`: their share;
        `fsc`: mean curve). `average` with `recovered`, `members` (all members of the cluster), `shuffled`
        (turns shuffled) and `raw` (boxes as they are): against the density of the class. Resolutions are
        where the correlation falls below 0.5 and 0.143, Å; None where it never reaches them.
    """
    both = np.intersect1d(members, of_class)
    from_cluster = len(both) >= LEAST
    rows = both if from_cluster else of_class
    size = boxes.voxel_size_angstrom
    if truth is not None and abs(truth.voxel_size_angstrom / size - 1) > SAME_SIZE:
        truth = None
    radius = max(1.0, boxes.side / 2 - EDGE_VOXELS - 1)
    if truth is not None:
        radius = min(radius, truth.radius_angstrom / size)
    mask = soft_spherical_mask((boxes.side,) * 3, radius, edge_voxels=EDGE_VOXELS)
    scores: dict[str, Any] = {
        "particles": len(rows), "from_cluster": from_cluster, "voxel_size_angstrom": size,
        "box_voxels": boxes.side, "mask_radius_angstrom": float(radius * size),
        "truth": truth.name if truth is not None else "mean of the subtomograms' own densities",
    }  # fmt: skip
    curves = {
        "recovered": [_fsc(recovered_NZYX[n], boxes.density_NZYX[n], size, mask) for n in rows],
        "raw": [_fsc(-boxes.data_NZYX[n], boxes.density_NZYX[n], size, mask) for n in rows],
    }
    scores["single"] = {name: _of_singles(found) for name, found in curves.items()}
    volumes, examples = [], _examples(boxes, recovered_NZYX, rows, curves["recovered"])
    if len(rows) >= LEAST:
        own = _average(boxes, boxes.density_NZYX, rows, seed=seed)
        density_ZYX = own.average_ZYX if truth is None else on_grid(truth.volume_ZYX, own.average_ZYX.shape)
        volumes.append(Volume("truth", "true density", density_ZYX))
        averages = {
            "recovered": _average(boxes, recovered_NZYX, rows, seed=seed),
            "members": _average(boxes, recovered_NZYX, members, seed=seed) if from_cluster else None,
            "shuffled": _average(boxes, recovered_NZYX, rows, seed=seed, shuffled=True),
            "raw": _average(boxes, boxes.data_NZYX, rows, seed=seed, dark=True, tilts_degrees=tilts_degrees),
        }
        scores["average"] = {
            name: _of_average(found, density_ZYX, size, mask) for name, found in averages.items() if found
        }
        volumes += [Volume(name, WORDS[name], a.average_ZYX) for name, a in averages.items() if a]
    return Recovery(scores, tuple(volumes), tuple(examples))


def _fsc(found_ZYX: Floats, true_ZYX: Floats, size: float, mask: Floats) -> ShellCorrelation:
    return fourier_shell_correlation(found_ZYX, true_ZYX, size, mask=mask)


def _average(
    boxes: Boxes, volumes_NZYX: Floats, rows: Rows, *, seed: int, shuffled: bool = False, **options: Any
) -> ParticleAverage:
    """Turn some boxes back by the truth and average them."""
    turns = rows if not shuffled else np.random.default_rng(seed).permutation(rows)
    return average_particles(
        lambda n: volumes_NZYX[rows[n]],
        boxes.quaternion_N4[turns],
        boxes.offsets_N3[rows],
        seed=seed,
        **options,
    )


def _of_singles(curves: Sequence[ShellCorrelation]) -> dict[str, Any]:
    """Put the correlations of single subtomograms together."""
    scores: dict[str, Any] = {}
    for name, threshold in (("0.5", 0.5), ("0.143", 0.143)):
        reached = np.array([curve.resolution(threshold) for curve in curves])
        finite = reached[np.isfinite(reached)]
        scores[f"reached_{name}"] = float(len(finite) / len(reached))
        scores[f"fsc_{name}_angstrom"] = np.percentile(finite, QUARTERS).tolist() if len(finite) else None
    all_MS = np.stack([curve.correlation_K for curve in curves])
    known_S = np.isfinite(all_MS).any(axis=0)
    mean_S = np.full(all_MS.shape[1], np.nan)
    mean_S[known_S] = np.nanmean(all_MS[:, known_S], axis=0)
    return scores | {"fsc": _curve(curves[0].frequency_K, mean_S)}


def _of_average(average: ParticleAverage, density_ZYX: Floats, size: float, mask: Floats) -> dict[str, Any]:
    against = average.correlation_with(density_ZYX, size, mask=mask)
    scores: dict[str, Any] = {
        "particles": average.n_particles,
        "fsc_0.5_angstrom": plain(against.at_half), "fsc_0.143_angstrom": plain(against.at_0143),
        "fsc": _curve(against.frequency_K, against.correlation_K),
    }  # fmt: skip
    if average.n_particles > LEAST:
        halves = average.half_correlation(size, mask=mask)
        scores["half_fsc_0.143_angstrom"] = plain(halves.at_0143)
    return scores


def _curve(frequency_S: Floats, correlation_S: Floats) -> dict[str, list[float | None]]:
    return {
        "frequency": [float(f) for f in frequency_S],
        "correlation": [plain(float(c)) for c in correlation_S],
    }


def _examples(
    boxes: Boxes, recovered_NZYX: Floats, rows: Rows, curves: Sequence[ShellCorrelation]
) -> list[tuple[Volume, Volume, Volume]]:
    """Choose subtomograms by their mean correlation: a quarter down the ranks, half, three quarters."""
    quality = np.array([np.nanmean(np.nan_to_num(curve.correlation_K)) for curve in curves])
    order = np.argsort(-quality, kind="stable")
    places = dict.fromkeys(round(share * (len(rows) - 1)) for share in (0.25, 0.5, 0.75))
    chosen = [int(rows[order[place]]) for place in places][:EXAMPLES]
    return [
        (
            Volume(f"example{number}-box", "box", -boxes.data_NZYX[row]),
            Volume(f"example{number}-recovered", "recovered", recovered_NZYX[row]),
            Volume(f"example{number}-truth", "truth", boxes.density_NZYX[row]),
        )
        for number, row in enumerate(chosen, start=1)
    ]
