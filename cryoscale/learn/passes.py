"""Passes over rows in many chunks, as dask tasks: Lloyd's iterations by our own reduction or by dask-ml.

Legend of the shape suffixes: N items, F numbers of an encoding, E these and two more, K clusters.

Chunks are put together to tasks of many rows, since a task costs the scheduler about as much as ten thousand
rows cost a core. How many tasks there are changes no bit of what our own reduction finds (see `learn.lloyd`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn import lloyd

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Chunk = Callable[[], Array] | Array

ROWS_PER_TASK = 524_288
TASKS_PER_SLOT = 2  # more would make up for slow slots; each costs the scheduler some milliseconds
BRANCHES = 16  # results that one task adds up


class Units:
    """How rows are brought into the units in which a fit measures distances.

    Mean and scale are rounded to float32: every iteration that loads rows prepares them again, and all that
    counts is that rows and centres are brought to and fro alike.

    Parameters
    ----------
    mean_F, scale_F : (F,) float64
        An infinite scale: the feature counts for nothing.
    quantum : float
        See `lloyd.quantum`.
    """

    def __init__(self, mean_F: Floats, scale_F: Floats, quantum: float) -> None:
        self.mean_F, self.inverse_F = mean_F.astype(np.float32), (1.0 / scale_F).astype(np.float32)
        self.quantum = quantum

    def prepare(self, rows_NF: Array) -> Singles:
        """Standardise and extend rows; see `lloyd.prepared`."""
        return lloyd.prepared(rows_NF, self.mean_F, self.inverse_F, self.quantum)

    def of(self, rows_NF: Array) -> Floats:
        """Bring centres into these units, without rounding them to the quantum."""
        result: Floats = (np.asarray(rows_NF, dtype=np.float64) - self.mean_F) * self.inverse_F
        return result

    def back(self, rows_NF: Floats) -> Floats:
        """Bring centres back into the units of the encodings; features that do not count get their mean."""
        counts_F = self.inverse_F > 0
        inverse_F = np.where(counts_F, self.inverse_F, 1.0).astype(np.float64)
        result: Floats = self.mean_F.astype(np.float64) + np.where(counts_F, rows_NF / inverse_F, 0.0)
        return result


class Rows:
    """Chunks of rows in their order, empty ones left out.

    Parameters
    ----------
    chunks : sequence of arrays (n, F), or of callables that load one
    lengths : sequence of int, optional
        Rows of each chunk; needed for callables.

    Raises
    ------
    ConfigurationError
        Lengths are missing, or do not belong to the chunks.
    """

    def __init__(self, chunks: Sequence[Chunk], lengths: Sequence[int] | None) -> None:
        if lengths is None:
            if any(callable(chunk) for chunk in chunks):
                raise ConfigurationError("Chunks that are loaded need their lengths.")
            lengths = [len(chunk) for chunk in chunks]  # type: ignore[arg-type]
        if len(lengths) != len(chunks):
            raise ConfigurationError(f"{len(chunks)} chunks with {len(lengths)} lengths.")
        self.chunks = [(chunk, int(n)) for chunk, n in zip(chunks, lengths, strict=True) if n > 0]
        self.total = sum(n for _, n in self.chunks)

    def parts(self) -> list[Any]:
        """Return each chunk as a delayed array."""
        import dask

        return [dask.delayed(load, pure=False)(chunk, n) for chunk, n in self.chunks]

    def groups(self) -> list[Group]:
        """Put neighbouring chunks together to what one task works on."""
        wanted = min(ROWS_PER_TASK, -(-self.total // (TASKS_PER_SLOT * slots())))
        groups: list[Group] = []
        begun: list[tuple[Chunk, int]] = []
        for chunk, n in self.chunks:
            begun.append((chunk, n))
            if sum(length for _, length in begun) >= wanted:
                groups.append(Group(begun))
                begun = []
        return [*groups, Group(begun)] if begun else groups

    def sample(self, size: int, seed: int) -> Any:
        """Return `size` rows, drawn without replacement, in their order, as a delayed array."""
        import dask

        drawn = np.sort(np.random.default_rng(seed).choice(self.total, size=size, replace=False))
        starts = np.cumsum([0, *(n for _, n in self.chunks)])
        cuts = np.searchsorted(drawn, starts)
        wanted = [
            dask.delayed(np.take)(part, drawn[cuts[i] : cuts[i + 1]] - starts[i], axis=0)
            for i, part in enumerate(self.parts())
            if cuts[i] < cuts[i + 1]
        ]
        return dask.delayed(np.concatenate)(wanted)


class Group:
    """Chunks that one task works on, one after the other."""

    def __init__(self, chunks: Sequence[tuple[Chunk, int]]) -> None:
        self.chunks = list(chunks)

    def __iter__(self) -> Iterator[Array]:
        """Yield the chunks, loading the next one while the caller works on one."""
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(load, *self.chunks[0])
            for chunk in self.chunks[1:]:
                here, coming = coming, ahead.submit(load, *chunk)
                yield here.result()
            yield coming.result()


class Storage:
    """Rows that are loaded and prepared again each time."""

    def __init__(self, group: Group, units: Units) -> None:
        self.group, self.units = group, units

    def __iter__(self) -> Iterator[Singles]:
        for rows_NF in self.group:
            yield self.units.prepare(rows_NF)


class Passes(Protocol):
    """What iterates over all rows."""

    def iterate(self, centers_KF: Floats, max_iter: int, tol: float) -> tuple[Floats, int, bool]:
        """Return the centres after Lloyd's iterations, how many there were, and whether they have settled."""

    def summary(self, centers_KF: Floats) -> lloyd.Summary:
        """Say how all rows lie around these centres."""

    def farthest(self, centers_KF: Floats, most: int) -> lloyd.Farthest:
        """Find the rows that lie farthest from their nearest centres, at most so many."""


class OwnPasses:
    """Lloyd's iterations by our own reduction.

    Parameters
    ----------
    rows : Rows
    units : Units
    in_memory : bool
        Hold the prepared rows in the workers' memory, or load them in each pass.
    """

    def __init__(self, rows: Rows, units: Units, *, in_memory: bool) -> None:
        import dask

        self.parts: Sequence[Any] = [Storage(group, units) for group in rows.groups()]
        if in_memory:
            self.parts = dask.persist(*[dask.delayed(_hold, pure=False)(part) for part in self.parts])

    def iterate(self, centers_KF: Floats, max_iter: int, tol: float) -> tuple[Floats, int, bool]:
        """Return the centres after Lloyd's iterations, how many there were, and whether they have settled.

        It ends when the squared shift of all centres together falls to `tol`, or when a cluster has no
        members left: its centre stays where it was, for the caller to find a better place.
        """
        number = 0
        while number < max_iter:
            number += 1
            total: lloyd.Totals = _reduced(_totals, self.parts, centers_KF)
            moved_KF = total.means(centers_KF)
            shift = float(((moved_KF - centers_KF) ** 2).sum())
            centers_KF = moved_KF
            if shift <= tol:
                return centers_KF, number, True
            if not total.counts_K.all():
                return centers_KF, number, False
        return centers_KF, number, True

    def summary(self, centers_KF: Floats) -> lloyd.Summary:
        """Say how all rows lie around these centres."""
        found: lloyd.Summary = _reduced(_summary, self.parts, centers_KF)
        return found

    def farthest(self, centers_KF: Floats, most: int) -> lloyd.Farthest:
        """Find the rows that lie farthest from their nearest centres, at most so many."""
        found: lloyd.Farthest = _reduced(_farthest, self.parts, centers_KF, most)
        return found.first(most)


class DaskMLPasses:
    """Lloyd's iterations by dask-ml, on one dask block per chunk, in memory."""

    def __init__(self, rows: Rows, units: Units) -> None:
        import dask
        import dask.array as da

        features = len(units.mean_F)
        parts = [
            da.from_delayed(dask.delayed(_plain)(part, units), (n, features), dtype=np.float32)
            for part, (_, n) in zip(rows.parts(), rows.chunks, strict=True)
        ]
        self.data = da.concatenate(parts).persist()

    def iterate(self, centers_KF: Floats, max_iter: int, tol: float) -> tuple[Floats, int, bool]:
        """Return the centres after Lloyd's iterations, how many there were, and whether they have settled."""
        from dask_ml.cluster import KMeans

        start_KF = centers_KF.astype(np.float32)
        fitted = KMeans(len(start_KF), init=start_KF, max_iter=max_iter, tol=tol).fit(self.data)
        return np.asarray(fitted.cluster_centers_, dtype=np.float64), int(fitted.n_iter_), True

    def summary(self, centers_KF: Floats) -> lloyd.Summary:
        """Say how all rows lie around these centres."""
        found: lloyd.Summary = _reduced(_plain_summary, self._blocks(), centers_KF)
        return found

    def farthest(self, centers_KF: Floats, most: int) -> lloyd.Farthest:
        """Find the rows that lie farthest from their nearest centres, at most so many."""
        found: lloyd.Farthest = _reduced(_plain_farthest, self._blocks(), centers_KF, most)
        return found.first(most)

    def _blocks(self) -> Sequence[Any]:
        blocks: Sequence[Any] = self.data.to_delayed().ravel().tolist()
        return blocks


def load(chunk: Chunk, length: int) -> Array:
    """Load a chunk and look at its shape; raises `DataError` where it is not (length, F)."""
    rows_NF = np.asarray(chunk() if callable(chunk) else chunk)
    if rows_NF.ndim != 2 or len(rows_NF) != length:
        raise DataError(f"A chunk of encodings has shape {rows_NF.shape}, expected {length} rows.")
    return rows_NF


def slots() -> int:
    """Count the tasks that the active dask scheduler works on at once."""
    import dask
    from dask.base import get_scheduler

    # The scheduler is a method of the client where there is a cluster, else a function for this process.
    client = getattr(get_scheduler(), "__self__", None)
    if client is not None and hasattr(client, "nthreads"):
        return max(1, int(sum(client.nthreads().values())))
    if dask.config.get("scheduler", None) in ("synchronous", "sync", "single-threaded"):
        return 1
    return int(dask.config.get("num_workers", None) or os.cpu_count() or 1)


def _hold(storage: Storage) -> Singles:
    return np.concatenate(list(storage))


def _prepared(part: Singles | Storage) -> Iterable[Singles]:
    return part if isinstance(part, Storage) else [part]


def _totals(part: Singles | Storage, centers_KF: Floats) -> lloyd.Totals:
    found: lloyd.Totals = _added([lloyd.totals(rows_NE, centers_KF) for rows_NE in _prepared(part)])
    return found


def _summary(part: Singles | Storage, centers_KF: Floats) -> lloyd.Summary:
    found: lloyd.Summary = _added([lloyd.summary(rows_NE, centers_KF) for rows_NE in _prepared(part)])
    return found


def _farthest(part: Singles | Storage, centers_KF: Floats, most: int) -> lloyd.Farthest:
    found: lloyd.Farthest = _added([lloyd.farthest(rows_NE, centers_KF, most) for rows_NE in _prepared(part)])
    return found.first(most)


def _plain(rows_NF: Array, units: Units) -> Singles:
    return np.ascontiguousarray(units.prepare(rows_NF)[:, :-2])


def _plain_summary(rows_NF: Singles, centers_KF: Floats) -> lloyd.Summary:
    return lloyd.summary(lloyd.extended(rows_NF), centers_KF)


def _plain_farthest(rows_NF: Singles, centers_KF: Floats, most: int) -> lloyd.Farthest:
    return lloyd.farthest(lloyd.extended(rows_NF), centers_KF, most)


def _reduced(function: Callable[..., Any], parts: Sequence[Any], *words: Any) -> Any:
    """Apply a function to each part, one task each, and add up what they return, some at a time."""
    import dask

    found = [dask.delayed(function, pure=False)(part, *words) for part in parts]
    while len(found) > BRANCHES:
        found = [dask.delayed(_added)(found[i : i + BRANCHES]) for i in range(0, len(found), BRANCHES)]
    return _added(dask.compute(*found))


def _added(found: Sequence[Any]) -> Any:
    total = found[0]
    for other in found[1:]:
        total = total + other
    return total
