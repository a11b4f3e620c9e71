"""How fast this machine takes a tomogram through every stage: a trial run on a piece of it, timed.

The stages are the real ones, driven by the real driver in one process, so that each can be timed by itself.
Beside each stands what it does besides computing (reading, cutting patches), done alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoscale.config import RunConfig
from cryoscale.data.clusters import SELECTION, Selection
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.geometry import Box, Grid, Zyx, round_up
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.setup import add_inputs, initial_config, write_run
from cryoscale.runtime.events import Event, StageSealed, TaskEnded

SHORT = [
    "encoder.epochs=2", "encoder.max_patches=1024", "segmenter.epochs=1", "segmenter.max_patches=256",
    "cluster.restarts=1", "cluster.max_iterations=20", "run.fit_tomograms=[]",
]  # fmt: skip
"""The fits are cut short: their rates are wanted, not their results."""
NAME = "piece"
FEWEST_PICKS = 50
STAGES = ("ingest", "pick", "train_encoder", "encode", "cluster", "train_segmenter", "segment", "instances")


@dataclass(frozen=True)
class StageRate:
    """What one stage of the trial took.

    Parameters
    ----------
    stage : str
        Its name.
    amount : float
        How much it went through, in `unit`.
    unit : str
        "Mvoxel" of the tomogram, "patch", "patch x epoch", "row x iteration".
    seconds : float
        In one process.
    besides : float
        Seconds that reading alone, or cutting patches alone, takes; 0 where it was not looked at.
    what : str
        What was done in those.
    """

    stage: str
    amount: float
    unit: str
    seconds: float
    besides: float = 0.0
    what: str = ""

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.amount / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Trial:
    """A trial run and what it measured.

    Parameters
    ----------
    shape : Zyx
        Of the piece, voxels.
    whole : Zyx
        Of the tomogram that it was cut from.
    picks : int
        Found in the piece.
    rates : tuple of StageRate
    network_seconds : dict of str to float
        Seconds per patch of the encoder alone, from memory, by precision.
    failures : tuple of str
        Stages that did not end, with their reasons.
    """

    shape: Zyx
    whole: Zyx
    picks: int
    rates: tuple[StageRate, ...]
    network_seconds: dict[str, float]
    failures: tuple[str, ...]
    config: RunConfig


def cut_piece(source: Path | None, target: Path, voxels: int, voxel_size: float | None) -> tuple[Zyx, Zyx]:
    """Write the middle of a tomogram, at most so many voxels, as an MRC file; or a simulated cell.

    Returns
    -------
    shape, whole : Zyx
        Extents of the piece and of the tomogram, voxels.

    Raises
    ------
    FormatError, DataError
        The file is no MRC volume, or its header gives no voxel size and none was given.
    """
    from cryoscale.formats.mrc import MrcVolume, write_mrc

    if source is None:
        from cryoscale.simulate.cells import demo_cells

        cell = demo_cells(n=1, seed=0)[0]
        # Four times the same cell: enough work beside what each stage needs to begin.
        volume_ZYX = np.tile(cell.volume_ZYX, (1, 2, 2))
        write_mrc(target, volume_ZYX, cell.voxel_size_angstrom)
        shape = Zyx.of(volume_ZYX.shape)
        return shape, shape
    with MrcVolume(source, ignore_voxel_size=voxel_size is not None) as volume:
        size = voxel_size or volume.header.voxel_size_angstrom
        if size is None:
            raise ConfigurationError(
                f"{source}: the header does not say the voxel size ({volume.header.voxel_size_note}).",
                remedy="Give it: --voxel-size N.",
            )
        whole = volume.shape
        box = middle(whole, voxels)
        write_mrc(target, volume.read(box), size)
    return box.shape, whole


def middle(shape: Zyx, voxels: int) -> Box:
    """Return the middle of a volume: whole if it is small enough, else its longest sides cut."""
    sides = list(shape)
    while np.prod(sides, dtype=np.int64) > voxels and max(sides) > 64:
        longest = sides.index(max(sides))
        sides[longest] = max(64, sides[longest] * 3 // 4)
    start = [(n - side) // 2 for n, side in zip(shape, sides, strict=True)]
    return Box.of(start, [a + side for a, side in zip(start, sides, strict=True)])


def try_out(
    folder: Path, source: Path | None, settings: list[str], *, voxels: int, voxel_size: float | None = None
) -> Trial:
    """Run every stage on a piece of a tomogram, in this process, and time each.

    Parameters
    ----------
    folder : Path
        For the piece and the run; made, and left to the caller to remove.
    source : Path or None
        An MRC file; None simulates a cell.
    settings : list of str
        TABLE.KEY=VALUE, as of `cryoscale init`.
    voxels : int
        The most that the piece has.
    voxel_size : float, optional
        Å, instead of the header's.

    Raises
    ------
    ConfigurationError
        A setting is unknown or cannot be.
    """
    place = folder / "run"
    piece = folder / f"{NAME}.mrc"
    if source is None:
        from cryoscale.pipeline.demo import SETTINGS

        settings = [*(word for word in SETTINGS if word.startswith(("pick.", "patch."))), *settings]
    config = initial_config(str(place), [*settings, *SHORT])
    folder.mkdir(parents=True, exist_ok=True)
    shape, whole = cut_piece(source, piece, voxels, voxel_size)
    config, _ = add_inputs(config, [str(piece)])
    run = write_run(str(place), config)
    seconds: dict[str, float] = {}

    def note(event: Event) -> None:
        if isinstance(event, (TaskEnded, StageSealed)):
            seconds[event.stage] = seconds.get(event.stage, 0.0) + event.seconds

    failures = []
    for until in ("pick", "cluster", "instances"):
        if until == "cluster":
            run = _fewer_clusters(run)
        elif until == "instances":
            _choose_all(run)
        # What Dask workers do is timed as one of them does it: with one thread.
        with one_thread() if until == "pick" else contextlib.nullcontext():
            result = run_pipeline(run, Options("serial", until=until, trace=False), listeners=(note,))
        if result.failures or result.problem:
            failures = [f"{f['stage']}: {f['reason']}" for f in result.failures] or [result.problem]
            break
    rates = tuple(_rates(run, seconds, piece))
    return Trial(shape, whole, _count(run), rates, _network(run, seconds), tuple(failures), run.config)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep products of matrices and the store to one thread each for a while."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = os.environ.get("BLOSC_NTHREADS")
    os.environ["BLOSC_NTHREADS"] = "1"
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        os.environ.pop("BLOSC_NTHREADS")
        if before is not None:
            os.environ["BLOSC_NTHREADS"] = before


def _count(run: Run) -> int:
    return len(read_picks(run.picks, NAME)) if run.picks.exists(f"{NAME}.parquet") else 0


def _fewer_clusters(run: Run) -> Run:
    """Ask for as many clusters as the picks of a piece can fill."""
    found = _count(run)
    if found < FEWEST_PICKS:
        raise ConfigurationError(
            f"only {found} picks were found in the piece: too few to measure by.",
            remedy="Give the particle's radius, --set pick.radius_angstrom=N, or a larger --piece.",
        )
    config = run.config
    fewer = min(config.cluster.n_clusters, max(2, found // 5))
    changed = config.cluster.model_copy(update={"n_clusters": fewer})
    run.save_config(config.model_copy(update={"cluster": changed}))
    return Run.open(run.folder.url)


def _choose_all(run: Run) -> None:
    """Make one class of half the clusters: what is chosen does not matter for the time."""
    card = run.clusters.card
    half = tuple(range((int(card["n_clusters"]) + 1) // 2))
    selection = Selection(str(card["centers_sha256"]), (("objects", half),), ((230, 80, 60),))
    run.clusters.folder.write_toml(SELECTION, selection.to_toml())


def _rates(run: Run, seconds: dict[str, float], piece: Path) -> Iterator[StageRate]:
    """Put amounts and what is done besides to the seconds of each stage."""
    tomogram = Tomogram(run.tomogram(NAME))
    try:
        voxels = tomogram.facts.levels[0].shape.voxels / 1e6
    except StateError:  # not ingested: the failure says why
        return
    picks = _count(run)
    for stage in STAGES:
        took = seconds.get(stage, 0.0)
        if not took:
            continue
        if stage in ("train_encoder", "train_segmenter"):
            training = run.model(stage.removeprefix("train_")).card["training"]
            yield StageRate(stage, training["patches"] * training["epochs"], "patch x epoch", took)
        elif stage == "encode":
            yield StageRate(stage, picks, "patch", took, _gather(run, tomogram), "cutting patches")
        elif stage == "cluster":
            card = run.clusters.card
            yield StageRate(stage, picks * int(card["iterations"]), "row x iteration", took)
        elif stage == "ingest":
            yield StageRate(stage, voxels, "Mvoxel", took, _copy(piece, run), "reading and writing the file")
        else:
            reads = stage in ("pick", "segment")
            besides = _read(run, tomogram, halo=stage == "pick") if reads else 0.0
            yield StageRate(stage, voxels, "Mvoxel", took, besides, "reading and unpacking the store")


def _copy(piece: Path, run: Run) -> float:
    """Read the file and write its bytes into the run, and nothing else: seconds."""
    target = Path(run.folder.url) / "copied"
    started = time.perf_counter()
    target.write_bytes(piece.read_bytes())
    took = time.perf_counter() - started
    target.unlink()
    return took


def _read(run: Run, tomogram: Tomogram, *, halo: bool) -> float:
    """Read and unpack what the blocks of a stage read, and do nothing with it: seconds."""
    from cryoscale.ops.dog import TILE, required_read, tile_voxels
    from cryoscale.stages.pick import dog_for

    config = run.config
    number = tomogram.facts.level_for(config.run.working_voxel_size_angstrom)
    level = tomogram.facts.levels[number]
    edges, dog = Zyx.of(config.execution.block_voxels), None
    if halo and not config.pick.positions:
        dog = dog_for(config.pick, level)
        edges = Zyx(
            *(round_up(n, t) for n, t in zip(edges, tile_voxels(level.shape, dog, TILE), strict=True))
        )
    boxes = list(Grid.of(level.shape, edges).boxes())
    if dog is not None:
        boxes = [required_read(core, level.shape, dog, TILE) for core in boxes]
    started = time.perf_counter()
    for box in boxes:
        tomogram.read(number, box)
    return time.perf_counter() - started


def _gather(run: Run, tomogram: Tomogram) -> float:
    """Cut all patches and do nothing with them: seconds."""
    from cryoscale.stages.patching import PatchReader

    number = tomogram.facts.level_for(run.config.run.working_voxel_size_angstrom)
    reader = PatchReader(tomogram, number, run.config.patch)
    centres = reader.voxels(read_picks(run.picks, NAME).positions_N3)
    assert reader.statistics  # measured once when picks are sealed, not here
    started = time.perf_counter()
    reader.gather(centres)
    return time.perf_counter() - started


def _network(run: Run, seconds: dict[str, float]) -> dict[str, float]:
    """Time the encoder alone on patches in memory, in both precisions: seconds per patch."""
    if "encode" not in seconds:
        return {}
    from cryoscale.inference.engine import Precision, open_engine
    from cryoscale.inference.wrappers import EncoderOnly
    from cryoscale.models.registry import build
    from cryoscale.stages.networks import BATCH, worker_threads

    model, box = run.model("encoder"), run.config.patch.box
    module = build(model.card["architecture"])
    module.load_state_dict(model.load())
    patches = np.random.default_rng(0).standard_normal((2 * BATCH, 1, *box), dtype=np.float32)
    found: dict[str, float] = {}
    kinds: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in kinds:
        with open_engine(
            EncoderOnly(module),
            input_shape=(1, *box),
            batch=BATCH,
            threads=worker_threads(),
            precision=precision,
        ) as engine:
            engine.run(patches[:BATCH])
            started = time.perf_counter()
            engine.run(patches)
            found[precision] = (time.perf_counter() - started) / len(patches)
    return found
