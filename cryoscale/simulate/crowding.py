"""Crowded packings: spheres without overlap, up to more than half of the volume.

Spheres are added at random, large ones first, in batches. Where that gets stuck, all spheres push each other
apart, as soft balls, until none overlaps: what molecular dynamics does in Pei et al. 2016
(doi:10.1186/s12859-016-1283-3). The energy is the sum of squared overlaps, minimised with FIRE (Bitzek et al.
2006, doi:10.1103/PhysRevLett.97.170201). Below the density of random close packing (0.64 for equal spheres)
it falls to zero; spheres that stay stuck are moved to the emptiest of some random places.

Shape suffixes: N spheres, P pairs, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

GIVE_UP = 6
"""So often are stuck spheres moved elsewhere without the energy falling by a tenth."""


@dataclass(frozen=True)
class Barrier:
    """Something that spheres keep off, or also stay near to.

    Parameters
    ----------
    approach : callable
        From points (N, 3) to distances (N,) from the thing and unit directions (N, 3) in which they grow.
    least_N : (N,) float64
        Least distance of each sphere's centre, Å.
    most_N : (N,) float64
        Greatest, Å; infinite for spheres that are not bound to it.
    """

    approach: Callable[[Floats], tuple[Floats, Floats]]
    least_N: Floats
    most_N: Floats

    def kept(self, rows: Rows, points_N3: Floats, spare: float = 0.0) -> npt.NDArray[np.bool_]:
        """Return which of these rows would be where they may, at these points."""
        distance, _ = self.approach(points_N3)
        far_enough = distance >= self.least_N[rows] + spare
        return np.asarray(far_enough & (distance <= self.most_N[rows] - spare))


@dataclass(frozen=True)
class Room:
    """Where each sphere may be.

    Parameters
    ----------
    low_N3, high_N3 : (N, 3) float64
        Box for each centre, Å.
    barriers : sequence of Barrier
        What else bounds it.
    draw : callable
        From rows (N,) and a generator to random points (N, 3) that may or may not keep to the barriers.
    """

    low_N3: Floats
    high_N3: Floats
    barriers: Sequence[Barrier]
    draw: Callable[[Rows, np.random.Generator], Floats]

    @property
    def spare(self) -> float:
        """Å by which everything is kept wider while spheres move, so that rounding never makes an overlap."""
        bands = [float((b.most_N - b.least_N).min(initial=1.0)) for b in self.barriers]
        return min([0.25, *(band / 4 for band in bands)])

    def only(self, rows: Rows) -> Room:
        """Return the room of some of the spheres, for as long as nothing is drawn."""
        barriers = [Barrier(b.approach, b.least_N[rows], b.most_N[rows]) for b in self.barriers]
        return Room(self.low_N3[rows], self.high_N3[rows], barriers, self.draw)

    def kept(self, rows: Rows, points_N3: Floats, spare: float = 0.0) -> npt.NDArray[np.bool_]:
        """Return which of these rows would be where they may, at these points."""
        within_N3 = (points_N3 >= self.low_N3[rows]) & (points_N3 <= self.high_N3[rows])
        kept: npt.NDArray[np.bool_] = np.asarray(within_N3.all(axis=1))
        for barrier in self.barriers:
            inside = np.flatnonzero(kept)
            kept[inside] = barrier.kept(rows[inside], points_N3[inside], spare)
        return kept

    def propose(self, rows: Rows, each: int, rng: np.random.Generator) -> tuple[Rows, Floats]:
        """Draw `each` points for each row; return those that keep to the barriers, with their rows."""
        many = np.repeat(rows, each)
        points_N3 = self.draw(many, rng)
        kept = self.kept(many, points_N3, self.spare)
        return many[kept], points_N3[kept]


def touching(first: Floats, first_radii: Floats, others: Floats, other_radii: Floats) -> tuple[Rows, Rows]:
    """Return the pairs (row of the first, row of the others) of spheres that overlap."""
    if not len(first) or not len(others):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    reach = float(first_radii.max() + other_radii.max())
    near = cKDTree(first).sparse_distance_matrix(cKDTree(others), reach, output_type="ndarray")
    hit = near["v"] < first_radii[near["i"]] + other_radii[near["j"]]
    return near["i"][hit].astype(np.int64), near["j"][hit].astype(np.int64)


def overlapping(centres_N3: Floats, radii_N: Floats) -> npt.NDArray[np.int64]:
    """Return the pairs (P, 2) of spheres that overlap, lower row first, computed exactly in float64."""
    if len(centres_N3) < 2:
        return np.empty((0, 2), np.int64)
    pairs = cKDTree(centres_N3).query_pairs(2.0001 * float(radii_N.max()), output_type="ndarray")
    apart = np.sqrt(((centres_N3[pairs[:, 0]] - centres_N3[pairs[:, 1]]) ** 2).sum(axis=1))
    found: npt.NDArray[np.int64] = pairs[apart < radii_N[pairs[:, 0]] + radii_N[pairs[:, 1]]].astype(np.int64)
    return found


def pack_crowded(radii_N: Sequence[float] | Floats, room: Room, rng: np.random.Generator) -> Floats:
    """Place spheres without overlap, up to about half of the volume.

    Large ones are added first, at random, in batches. When a batch finds no more places, the rest are put
    anywhere that the barriers allow, and all spheres push each other apart until none overlaps.

    Parameters
    ----------
    radii_N : (N,) float
        Radii, Å.
    room : Room
        Where each may be.
    rng : numpy.random.Generator
        Source of chance.

    Returns
    -------
    centres_N3 : (N, 3) float64
        z, y, x in Å, in the order of `radii_N`. No two spheres overlap, checked in float64 without tolerance.

    Raises
    ------
    PackingError
        They do not fit; it has the number that does.
    """
    radii = np.asarray(radii_N, dtype=np.float64)
    centres_N3 = np.full((len(radii), 3), np.nan)
    left = _add_in_batches(centres_N3, radii, room, rng)
    if not len(left):
        return centres_N3
    homeless = _put_anywhere(centres_N3, left, room, rng)
    if len(homeless):
        placed = np.setdiff1d(np.arange(len(radii)), left)
        raise PackingError(placed, homeless)
    return relax(centres_N3, radii, room, rng)


class PackingError(ConfigurationError):
    """Spheres do not fit.

    Parameters
    ----------
    placed : (P,) int
        Rows that have a place without overlap.
    missing : (M,) int
        Rows that have none.
    """

    def __init__(self, placed: Rows, missing: Rows) -> None:
        super().__init__(f"only {len(placed)} spheres fit without overlap; {len(missing)} have no place.")
        self.placed, self.missing = placed, missing

    def __reduce__(self) -> tuple[type, tuple[Rows, Rows]]:
        return PackingError, (self.placed, self.missing)


def _add_in_batches(
    centres_N3: Floats,
    radii: Floats,
    room: Room,
    rng: np.random.Generator,
    *,
    batch: int = 512,
    rounds: int = 24,
) -> Rows:
    """Add spheres at random, large ones first; return the rows left over when a batch is stuck."""
    order = np.argsort(-radii, kind="stable").astype(np.int64)
    for start in range(0, len(order), batch):
        todo = order[start : start + batch]
        done = order[:start]
        for _ in range(rounds):
            rows, points_N3 = room.propose(todo, 8, rng)
            bad, _ = touching(points_N3, radii[rows], centres_N3[done], radii[done])
            free = np.ones(len(rows), bool)
            free[bad] = False
            rows, first = np.unique(rows[free], return_index=True)
            points_N3 = points_N3[free][first]
            pairs = overlapping(points_N3, radii[rows])
            keep = np.ones(len(rows), bool)
            keep[pairs[:, 1]] = False  # the other of the pair may go, too: then both are drawn again
            centres_N3[rows[keep]] = points_N3[keep]
            done = np.concatenate([done, rows[keep]])
            todo = np.setdiff1d(todo, rows[keep])
            if not len(todo):
                break
        else:
            return np.concatenate([todo, order[start + batch :]])
    return np.empty(0, np.int64)


def _put_anywhere(centres_N3: Floats, rows: Rows, room: Room, rng: np.random.Generator) -> Rows:
    """Put rows where the barriers allow it, overlapping or not; return those that found no place."""
    for _ in range(400):
        if not len(rows):
            break
        found, points_N3 = room.propose(rows, 8, rng)
        found, first = np.unique(found, return_index=True)
        centres_N3[found] = points_N3[first]
        rows = np.setdiff1d(rows, found)
    return rows


class _Soft:
    """Soft spheres with a list of neighbours that stays valid while they move less than half a skin."""

    def __init__(self, centres_N3: Floats, radii: Floats, room: Room) -> None:
        self.x = np.clip(centres_N3, room.low_N3, room.high_N3)
        self.radii, self.room, self.spare = radii, room, room.spare
        self.skin = 0.35 * float(radii.mean())
        self.everything = np.arange(len(radii))
        self.refresh()
        self.rest()

    def rest(self) -> None:
        """Stop all motion."""
        self.velocity, self.dt, self.mixing, self.downhill = np.zeros_like(self.x), 0.1, 0.1, 0

    def advance(self, force: Floats) -> None:
        """Move by one step of FIRE."""
        velocity = self.velocity
        if (force * velocity).sum() > 0:
            self.downhill += 1
            scale = self.mixing * np.sqrt((velocity**2).sum() / max((force**2).sum(), 1e-30))
            velocity = (1 - self.mixing) * velocity + scale * force
            if self.downhill > 5:
                self.dt, self.mixing = min(self.dt * 1.1, 0.35), self.mixing * 0.99
        else:
            velocity = np.zeros_like(velocity)
            self.dt, self.mixing, self.downhill = max(self.dt * 0.5, 0.02), 0.1, 0
        velocity = velocity + self.dt * force
        low_N3, high_N3 = self.room.low_N3, self.room.high_N3
        moved = np.clip(self.x + np.clip(self.dt * velocity, -15, 15), low_N3, high_N3)
        self.velocity = (moved - self.x) / self.dt
        self.x = moved
        if ((self.x - self.listed_at) ** 2).sum(axis=1).max() > (self.skin / 2) ** 2:
            self.refresh()

    def refresh(self) -> None:
        """Find the neighbours anew."""
        self.listed_at = self.x.copy()
        reach = 2 * float(self.radii.max()) + self.spare + self.skin
        pairs = cKDTree(self.x).query_pairs(reach, output_type="ndarray")
        first, second = pairs[:, 0], pairs[:, 1]
        apart = np.sqrt(((self.x[first] - self.x[second]) ** 2).sum(axis=1))
        touch = self.radii[first] + self.radii[second] + self.spare
        near = apart < touch + self.skin
        self.first, self.second, self.touch = first[near], second[near], touch[near]
        self.bounded = []
        for barrier in self.room.barriers:
            distance, _ = barrier.approach(self.x)
            slack = np.minimum(distance - barrier.least_N, barrier.most_N - distance)
            self.bounded.append((barrier, np.flatnonzero(slack < self.spare + self.skin)))

    def forces(self) -> tuple[Floats, Floats]:
        """Return the force (N, 3) on each sphere and how deep (N,) it overlaps in all; sets `worst`."""
        way = self.x[self.first] - self.x[self.second]
        apart = np.sqrt((way**2).sum(axis=1))
        depth = self.touch - apart
        hit = np.flatnonzero(depth > 0)
        first, second, depth = self.first[hit], self.second[hit], depth[hit]
        push = way[hit] * (depth / np.maximum(apart[hit], 1e-9))[:, None]
        count = len(self.x)
        force = np.empty_like(self.x)
        for axis in range(3):
            force[:, axis] = np.bincount(first, push[:, axis], count)
            force[:, axis] -= np.bincount(second, push[:, axis], count)
        overlap: Floats = np.zeros(count)
        overlap += np.bincount(first, depth, count) + np.bincount(second, depth, count)
        self.worst = float(depth.max(initial=0.0))
        for barrier, rows in self.bounded:
            distance, way = barrier.approach(self.x[rows])
            below = np.maximum(barrier.least_N[rows] + self.spare - distance, 0)
            above = np.maximum(distance - barrier.most_N[rows] + self.spare, 0)
            force[rows] += 2 * (below - above)[:, None] * way
            overlap[rows] += below + above
            self.worst = max(self.worst, float((below + above).max(initial=0.0)))
        return force, overlap

    def done(self) -> bool:
        """Whether nothing overlaps, exactly."""
        if self.worst >= self.spare:
            return False
        return not len(overlapping(self.x, self.radii)) and bool(
            self.room.kept(self.everything, self.x).all()
        )

    def relocate(self, overlap: Floats, rng: np.random.Generator) -> None:
        """Move the spheres that overlap most to the emptiest of some random places."""
        stuck = np.flatnonzero(overlap > self.spare)
        deepest = np.argsort(-overlap[stuck], kind="stable")[: max(24, len(stuck) // 12)]
        worst = stuck[deepest].astype(np.int64)
        rows, points_N3 = self.room.propose(worst, 48, rng)
        new, old = touching(points_N3, self.radii[rows], self.x, self.radii)
        other = rows[new] != old
        new, old = new[other], old[other]
        apart = np.sqrt(((points_N3[new] - self.x[old]) ** 2).sum(axis=1))
        depth = np.bincount(new, self.radii[rows[new]] + self.radii[old] - apart, len(rows))
        best = np.lexsort((depth, rows))
        moved, first = np.unique(rows[best], return_index=True)
        better = depth[best][first] < overlap[moved]
        self.x[moved[better]] = points_N3[best][first][better]
        self.refresh()
        self.rest()


def relax(
    centres_N3: Floats,
    radii_N: Floats,
    room: Room,
    rng: np.random.Generator,
    *,
    steps: int = 2500,
    patience: int = 150,
) -> Floats:
    """Push spheres apart until none overlaps.

    Parameters
    ----------
    centres_N3 : (N, 3) float64
        Where they are, overlapping, Å.
    radii_N : (N,) float64
        Radii, Å.
    room : Room
        Where each may be.
    rng : numpy.random.Generator
        Source of chance for spheres that are moved because they are stuck.
    steps : int
        Steps before giving up.
    patience : int
        Steps in which the energy must fall by a third; otherwise the worst spheres are moved elsewhere.

    Returns
    -------
    centres_N3 : (N, 3) float64
        Without overlap, checked in float64 without tolerance.

    Raises
    ------
    PackingError
        Some still overlap.
    """
    soft = _Soft(centres_N3, radii_N, room)
    before = least = np.inf
    in_vain = 0
    for step in range(1, steps + 1):
        force, overlap = soft.forces()
        if soft.done():
            return soft.x
        if step % patience == 0:
            energy = float((overlap**2).sum())
            if energy > 0.67 * before:
                in_vain = 0 if energy < 0.9 * least else in_vain + 1
                if in_vain == GIVE_UP:
                    break
                least = min(least, energy)
                soft.relocate(overlap, rng)
                before = np.inf
                continue
            before = energy
        soft.advance(force)
    raise _what_fits(soft)


def _what_fits(soft: _Soft, *, steps: int = 80) -> PackingError:
    """Take away the spheres that overlap most, little by little, until the others fit."""
    rows = everything = soft.everything
    while len(rows):
        for _ in range(steps):
            force, overlap = soft.forces()
            if soft.done():
                return PackingError(rows, np.setdiff1d(everything, rows))
            soft.advance(force)
        stuck = int((overlap > soft.spare).sum())
        drop = min(max(1, len(rows) // 40), max(1, stuck))
        kept = np.sort(np.argsort(overlap, kind="stable")[:-drop])
        rows = rows[kept]
        if len(rows):
            soft = _Soft(soft.x[kept], soft.radii[kept], soft.room.only(kept))
    return PackingError(rows, everything)
