"""k-means: one iteration of Lloyd over all encodings, in and out of memory, and how good the clusters are."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Case, Contestant, Setup, Size, Target, installed
from benchmarks.harness.growth import Growth

ROWS = {"tiny": 4_000, "small": 500_000, "full": 2_000_000}
FEATURES = 32
CLUSTERS = {"tiny": 8, "small": 100, "full": 100}
ITERATIONS = {"tiny": 2, "small": 10, "full": 10}
LOAD = 65_536  # rows of a chunk, as the stage cuts them


def encodings(rows: int, seed: int = 0) -> Any:
    """Make rows of 150 overlapping groups of unequal size and width; features differ in spread."""
    import numpy as np

    rng = np.random.default_rng(seed)
    places = rng.normal(size=(150, FEATURES)).astype(np.float32) * 0.8
    widths = rng.uniform(0.5, 1.2, size=150).astype(np.float32)
    share = rng.dirichlet(np.full(150, 2.0))
    spread = np.linspace(2.0, 0.3, FEATURES, dtype=np.float32)
    out = np.empty((rows, FEATURES), np.float32)
    for start in range(0, rows, LOAD):
        part = out[start : start + LOAD]
        group = rng.choice(150, size=len(part), p=share)
        noise = rng.standard_normal(part.shape, dtype=np.float32)
        part[:] = (places[group] + noise * widths[group, None]) * spread
    return out


@contextlib.contextmanager
def workers(size: Size) -> Iterator[Any]:
    """Two workers of one thread, as the package has them; processes, but for the tests."""
    import dask
    from distributed import Client, LocalCluster

    from cryoscale.runtime.environment import environment

    # In this process too while they start: what stands there counts more for Dask than its configuration.
    pools = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    settings = {
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.nanny.pre-spawn-environ": pools,
        "distributed.worker.memory.pause": False,
    }
    with warnings.catch_warnings(), dask.config.set(settings), environment(pools):
        warnings.simplefilter("ignore")
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, processes=size != "tiny", dashboard_address="127.0.0.1:0",
                memory_limit=0, silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            yield client


def _units(rows_NF: Any) -> Any:
    """Return the units of a clustering that does not standardise: what the configuration's default does."""
    import numpy as np

    from cryoscale.learn.lloyd import quantum
    from cryoscale.learn.passes import Units

    mean_F, sd_F = rows_NF.mean(axis=0, dtype=np.float64), rows_NF.std(axis=0, dtype=np.float64)
    scale = float(np.sqrt((sd_F**2).mean()))
    return Units(mean_F, np.full(FEATURES, scale), quantum(len(rows_NF), float(sd_F.max()) / scale))


class Store:
    """Rows as the stage `encode` leaves them, and loaders as the stage `cluster` makes them."""

    def __init__(self, folder: Path, rows_NF: Any) -> None:
        from cryoscale.data.folder import Folder
        from cryoscale.data.rows import Encodings
        from cryoscale.learn.passes import Rows
        from cryoscale.stages.cluster import RowLoader

        array = Encodings(Folder.of(folder / "encodings.zarr"))
        array.create(*rows_NF.shape)
        for start in range(0, len(rows_NF), LOAD):
            array.write(start, rows_NF[start : start + LOAD])
        stops = [min(start + LOAD, len(rows_NF)) for start in range(0, len(rows_NF), LOAD)]
        self.loaders = [RowLoader(array, stop - (stop - 1) % LOAD - 1, stop) for stop in stops]
        self.lengths = [loader.stop - loader.start for loader in self.loaders]
        self.rows = Rows(self.loaders, self.lengths)


def _scikit_learn(rows_NF: Any, start_KF: Any, iterations: int) -> Callable[[], Any]:
    from sklearn.cluster import KMeans

    def run() -> Any:
        model = KMeans(
            len(start_KF), init=start_KF, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(rows_NF).cluster_centers_

    return run


def _mini_batch(rows_NF: Any, start_KF: Any, iterations: int) -> Callable[[], Any]:
    from sklearn.cluster import MiniBatchKMeans

    def run() -> Any:
        model = MiniBatchKMeans(
            len(start_KF), init=start_KF, n_init=1, max_iter=iterations, tol=0.0, max_no_improvement=None,
            batch_size=4096, random_state=0,
        )  # fmt: skip
        return model.fit(rows_NF).cluster_centers_

    return run


def _faiss(rows_NF: Any, start_KF: Any, iterations: int) -> Callable[[], Any]:
    import faiss

    def run() -> Any:
        model = faiss.Kmeans(
            FEATURES, len(start_KF), niter=iterations, nredo=1, max_points_per_centroid=len(rows_NF), seed=0
        )
        model.train(rows_NF, init_centroids=start_KF)
        return model.centroids

    return run


def _ours(passes: Any, start_KF: Any, iterations: int) -> Callable[[], Any]:
    def run() -> Any:
        centers_KF, *_ = passes.iterate(start_KF.astype("float64"), iterations, 0.0)
        passes.summary(centers_KF)  # as the peers do: labels and inertia of the last centres
        return centers_KF

    return run


def _threads(run: Callable[[], Any]) -> Callable[[], Any]:
    """Run on dask's threads instead of the client's workers."""

    def on_threads() -> Any:
        import dask
        from threadpoolctl import threadpool_limits

        with dask.config.set(scheduler="threads", num_workers=2), threadpool_limits(limits=1):
            return run()

    return on_threads


def inertia(rows_NF: Any, centers_KF: Any) -> float:
    """Sum of squared distances to the nearest centre, float64."""
    import dask
    from threadpoolctl import threadpool_limits

    from cryoscale.learn import lloyd

    def part(start: int) -> Any:
        rows_NE = lloyd.extended(rows_NF[start : start + LOAD])
        return lloyd.summary(rows_NE, centers_KF.astype("float64")).inertia

    parts = [dask.delayed(part)(start) for start in range(0, len(rows_NF), LOAD)]
    with dask.config.set(scheduler="threads", num_workers=2), threadpool_limits(limits=1):
        return float(sum(dask.compute(*parts)))


def _agree(rows_NF: Any, exact: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Compare inertias after the same iterations from the same start: those of Lloyd must be equal.

    Centres are not compared with scikit-learn's: where a cluster has a few rows alone, the rounding of one
    distance in float32 moves it. The tests of the package compare them on rows where that does not happen.
    """

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        import numpy as np

        found = {name: inertia(rows_NF, np.asarray(centers)) for name, centers in results.items()
                 if centers is not None}  # fmt: skip
        reference = found["scikit-learn"]
        for name in set(exact) & set(found):
            assert abs(found[name] / reference - 1) < 1e-4, f"{name}: {found[name]} not {reference}"
        if {"ours", "ours, threads"} <= set(results):
            np.testing.assert_array_equal(results["ours"], results["ours, threads"])
        return {f"inertia over scikit-learn's: {name}": round(i / reference, 6) for name, i in found.items()}

    return check


@contextlib.contextmanager
def _iteration(size: Size, scratch: Path, rows: int | None = None) -> Iterator[Setup]:
    import dask
    import numpy as np
    from threadpoolctl import threadpool_limits

    from cryoscale.learn.passes import DaskMLPasses, OwnPasses

    raw_NF, iterations = encodings(rows or ROWS[size]), ITERATIONS[size]
    store, units = Store(scratch, raw_NF), _units(raw_NF)
    rows_NF = np.ascontiguousarray(units.prepare(raw_NF)[:, :-2])
    del raw_NF
    start_KF = rows_NF[np.random.default_rng(1).choice(len(rows_NF), CLUSTERS[size], replace=False)]
    work = len(rows_NF) * iterations / 1e6
    with workers(size):
        ours = _ours(OwnPasses(store.rows, units, in_memory=True), start_KF, iterations)
        dask_ml = _ours(DaskMLPasses(store.rows, units), start_KF, iterations)
        with dask.config.set(scheduler="threads", num_workers=2), threadpool_limits(limits=1):
            threads = _threads(_ours(OwnPasses(store.rows, units, in_memory=True), start_KF, iterations))
        contestants = [
            Contestant("ours", ours, work, settings="two Dask workers of one thread"),
            Contestant("ours, threads", threads, work, settings="two threads of one process"),
            Contestant("dask-ml", dask_ml, work, "peer", "on the same workers", rounds=1),
            Contestant("scikit-learn", _scikit_learn(rows_NF, start_KF, iterations), work, "peer", "Lloyd"),
            Contestant(
                "scikit-learn, MiniBatch", _mini_batch(rows_NF, start_KF, iterations), work, "peer",
                "batches of 4096, as many rows in all", rounds=2,
            ),
        ]  # fmt: skip
        missing = [] if installed("faiss") else ["faiss"]
        if not missing:
            contestants.append(Contestant("faiss", _faiss(rows_NF, start_KF, iterations), work, "peer"))
        facts = {
            "rows": len(rows_NF),
            "features": FEATURES,
            "clusters": len(start_KF),
            "iterations": iterations,
        }
        yield Setup(contestants, facts, _agree(rows_NF, ("ours", "ours, threads")), missing)


@contextlib.contextmanager
def _out_of_core(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np

    from cryoscale.learn.passes import OwnPasses
    from cryoscale.runtime.memory import peak_bytes, reset_peak

    raw_NF, iterations = encodings(ROWS[size]), min(4, ITERATIONS[size])
    store, units = Store(scratch, raw_NF), _units(raw_NF)
    rows_NF = np.ascontiguousarray(units.prepare(raw_NF)[:, :-2])
    del raw_NF
    start_KF = rows_NF[np.random.default_rng(1).choice(len(rows_NF), CLUSTERS[size], replace=False)]
    work = len(rows_NF) * iterations / 1e6
    with workers(size) as client:
        from dask import compute, delayed

        def read() -> None:
            for _ in range(iterations + 1):
                compute(*[delayed(_touched)(loader) for loader in store.loaders])

        ours = _ours(OwnPasses(store.rows, units, in_memory=False), start_KF, iterations)
        read()  # what reading needs is loaded
        client.run(reset_peak)
        before = sum(client.run(peak_bytes).values())
        ours()
        grown = sum(client.run(peak_bytes).values()) - before
        facts = {
            "rows": len(rows_NF), "MB of rows": round(rows_NF.nbytes / 1e6),
            "MB that the two workers took for it": round(grown / 1e6),
        }  # fmt: skip
        contestants = [
            Contestant("ours, from storage", ours, work, settings="each iteration reads every chunk again"),
            Contestant("reading only", read, work, "baseline", "the same chunks as often, and nothing else"),
            Contestant(
                "scikit-learn", _scikit_learn(rows_NF, start_KF, iterations), work, "peer", "Lloyd, in memory"
            ),
        ]
        yield Setup(contestants, facts, _agree(rows_NF, ("ours, from storage",)))


def _touched(loader: Callable[[], Any]) -> int:
    return len(loader())


@contextlib.contextmanager
def _inertia(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np
    from sklearn.cluster import KMeans

    from cryoscale.learn.kmeans import fit_kmeans

    rows = {"tiny": 2_000, "small": 100_000, "full": 2_000_000}[size]
    raw_NF, clusters = encodings(rows), CLUSTERS[size]
    store, units = Store(scratch, raw_NF), _units(raw_NF)
    rows_NF = np.ascontiguousarray(units.prepare(raw_NF)[:, :-2])
    del raw_NF
    tried = 100_000 if size == "full" else rows // 4

    def ours(engine: Any) -> Any:
        found = fit_kmeans(
            store.loaders, store.lengths, n_clusters=clusters, standardise=False, sample_rows=tried,
            engine=engine,
        )  # fmt: skip
        return found.standardised(found.centers_KF)

    def scikit_learn() -> Any:
        return KMeans(clusters, n_init=10, random_state=0).fit(rows_NF).cluster_centers_

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        found = {name: inertia(rows_NF, centers) for name, centers in results.items()}
        over = {name: value / found["scikit-learn, best of 10"] for name, value in found.items()}
        assert size == "tiny" or over["ours"] < 1.01, over
        return {f"inertia over scikit-learn's best of 10: {name}": round(o, 5) for name, o in over.items()}

    with workers(size):
        contestants = [
            Contestant("ours", lambda: ours("lloyd"), 1, settings=f"starts tried on {tried} rows", rounds=2),
            Contestant(
                "dask-ml", lambda: ours("dask-ml"), 1, "peer", "from our starts", rounds=1, warm=False
            ),
            Contestant("scikit-learn, best of 10", scikit_learn, 1, "peer", rounds=1, warm=False),
        ]
        yield Setup(contestants, {"rows": rows}, check)


@contextlib.contextmanager
def _ten_million(size: Size, scratch: Path) -> Iterator[Setup]:
    rows = 10_000_000 if size == "full" else ROWS[size]
    with _iteration(size, scratch, rows) as setup:
        wanted = ("ours", "ours, threads", "scikit-learn")
        setup.contestants = [c for c in setup.contestants if c.name in wanted]
        yield setup


_IN_CORE = tuple(
    Target(
        name, 1 / 1.5, "scikit-learn", aim=1.0, words="an iteration takes at most 1.5 times scikit-learn's"
    )
    for name in ("ours", "ours, threads")
)

CASES = (
    Case(
        "kmeans.iteration", "How fast is an iteration of Lloyd over encodings in memory?", "Mrow x iteration",
        _iteration, threads=2, targets=_IN_CORE, rounds=3,
    ),
    Case(
        "kmeans.outofcore", "How fast is an iteration where the memory does not hold the encodings?",
        "Mrow x iteration", _out_of_core, threads=2, rounds=3,
        targets=(
            Target("ours, from storage", 1 / 3, "scikit-learn",
                   words="from storage an iteration takes at most 3 times scikit-learn's in memory"),
        ),
    ),
    Case(
        "kmeans.inertia", "Are the clusters as tight as scikit-learn's best of ten, and when are they there?",
        "fit", _inertia, threads=2, rounds=2,
    ),
    Case(
        "kmeans.tenmillion", "Does an iteration over ten million encodings cost as much per row?",
        "Mrow x iteration", _ten_million, threads=2, targets=_IN_CORE, rounds=2,
    ),
)  # fmt: skip


@contextlib.contextmanager
def _grow_step(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    from cryoscale.learn import lloyd

    rows_NF = encodings({"tiny": 500, "small": 30_000, "full": 250_000}[size] * factor)
    rows_NE = _units(rows_NF).prepare(rows_NF)
    centers_KF = rows_NE[: CLUSTERS[size], :-2].astype("float64")
    lloyd.totals(rows_NE[:1000], centers_KF)
    yield lambda: lloyd.totals(rows_NE, centers_KF), float(len(rows_NF))


@contextlib.contextmanager
def _grow_assign(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    import numpy as np

    from cryoscale.learn.clustering import Clustering, assign

    rows_NF = encodings({"tiny": 500, "small": 30_000, "full": 250_000}[size] * factor)
    centers_KF = rows_NF[: CLUSTERS[size]].astype("float64")
    found = Clustering(
        centers_KF, np.zeros(FEATURES), np.ones(FEATURES), np.ones(len(centers_KF), np.int64), 1.0, 1
    )
    assign(rows_NF[:1000], found)
    yield lambda: assign(rows_NF, found), float(len(rows_NF))


GROWTH = (
    Growth("kmeans.step", "rows x iterations", _grow_step),
    Growth("kmeans.assign", "rows", _grow_assign),
)
