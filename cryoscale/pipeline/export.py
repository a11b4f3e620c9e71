"""From a run to the files of other programs: volumes to MRC, positions to STAR and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryoscale.data.classes import read_classes
from cryoscale.data.pyramid import Pyramid
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.data.volumes import Kind, finished_features, image_volumes
from cryoscale.errors import ConfigurationError, DataError, StateError, SurroundingsError
from cryoscale.formats.mrc_write import MrcWriter
from cryoscale.formats.points_write import write_csv, write_import_list, write_star
from cryoscale.geometry import Box

KINDS = ("labels", "picks", "instances", "classes", "probabilities", "densities")
SLAB_BYTES = 256 * 2**20  # of labels in memory at a time
CHUNK = 64  # planes; label volumes are stored in chunks of this depth, a slab of it decodes each once
LARGEST_IN_MODE_0 = 127  # MRC mode 0 is signed


@dataclass
class Exported:
    """What an export wrote, and what was not there to be exported.

    Parameters
    ----------
    files : list of Path
        Written files.
    missing : list of str
        Sentences about artifacts that are not made yet.
    """

    files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def export_run(
    run: Run, *, kinds: Sequence[str] = KINDS, tomograms: Sequence[str] = (), target: str | None = None
) -> Exported:
    """Write artifacts of a run as files of other programs.

    Parameters
    ----------
    run : Run
        The run.
    kinds : sequence of str
        Of `KINDS`.
    tomograms : sequence of str
        Names; none for all.
    target : str, optional
        A local folder; `exports/` of the run by default.

    Raises
    ------
    ConfigurationError
        A tomogram that the run does not have, or a run on remote storage without a target.
    SurroundingsError
        The folder cannot be written.
    """
    names = _names(run, tomograms)
    folder = _folder(run, target)
    exported = Exported()
    for kind in kinds:
        lists: dict[str, str] = {}
        for name in names:
            try:
                files = _WRITERS[kind](run, name, folder)
            except (StateError, FileNotFoundError):
                exported.missing.append(f"{kind} of {name}: not made yet")
                continue
            exported.files += files
            for file in files:
                if file.suffix == ".star":
                    lists[name] = file.name
        if lists:
            path = folder / f"{kind}_import.star"
            write_import_list(path, lists)
            exported.files.append(path)
    return exported


def usual_kinds(run: Run) -> list[str]:
    """List the kinds that a run makes, by its configuration."""
    config = run.config
    rest = {
        "instances": config.supervised.model is None
        or (config.supervised.segments and config.segment.volumes != "features"),
        "classes": config.supervised.classifies,
        "probabilities": config.segment.probabilities,
        "densities": config.segment.densities,
    }
    return [kind for kind in KINDS if rest.get(kind, True)]


def _names(run: Run, asked: Sequence[str]) -> list[str]:
    known = sorted(source.name for source in run.config.inputs)
    for name in asked:
        if name not in known:
            raise ConfigurationError(
                f"the run has no tomogram '{name}'.", remedy=f"It has {', '.join(known[:20])}."
            )
    return list(asked) or known


def _folder(run: Run, target: str | None) -> Path:
    if target is None and not run.folder.is_local:
        raise ConfigurationError(
            f"{run.folder.url} is not on this machine.", remedy="Name a local folder: --to FOLDER."
        )
    folder = Path(target if target is not None else run.folder.path("exports"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurroundingsError(
            f"{folder} cannot be made: {error.strerror}.", remedy="Name another folder: --to FOLDER."
        ) from error
    return folder


def _export_labels(run: Run, name: str, folder: Path) -> list[Path]:
    """Write label volumes at the tomogram's own voxel size, slab by slab; value n is class n.

    Beside the label volume, or in its place, there may be one for each class.
    """
    written = []
    for volume in _label_volumes(run, name):
        facts = volume.facts
        mode = 0 if len(facts.class_names) <= LARGEST_IN_MODE_0 else 6
        path = folder / f"{name}_{facts.name}.mrc"
        _write_volume(path, volume.pyramid, np.uint8, facts.levels[0].voxel_size_angstrom, mode=mode)
        written.append(path)
    return written


def _label_volumes(run: Run, name: str) -> list[LabelVolume]:
    """List the finished label volumes of the configuration; raises `StateError` when there is none."""
    tomogram, config = run.tomogram(name), run.config.segment
    merged = [] if config.volumes == "features" else [LabelVolume(tomogram, config.labels)]
    features = [] if config.volumes == "merged" else finished_features(tomogram, config.labels)
    if not merged and not features:
        raise StateError(f"there are no label volumes of '{name}'.")
    return [*merged, *features]


def _write_volume(
    path: Path, pyramid: Pyramid, dtype: npt.DTypeLike, voxel_size_angstrom: float, *, mode: int | None = None
) -> None:
    """Write the first level of a volume, slab by slab."""
    shape = pyramid.shape(0)
    planes = _planes_per_slab(shape.y * shape.x * np.dtype(dtype).itemsize)
    with MrcWriter(path, shape, dtype, voxel_size_angstrom, mode=mode) as writer:
        for z in range(0, shape.z, planes):
            stop = (min(z + planes, shape.z), *shape[1:])
            writer.write(pyramid.read(0, Box.of((z, 0, 0), stop)).astype(dtype, copy=False))


def _export_images(kind: Kind, run: Run, name: str, folder: Path) -> list[Path]:
    """Write probabilities or densities at the voxel size of the level at work, as float32."""
    written = []
    for volume in image_volumes(run.tomogram(name), kind, run.config.segment.labels):
        path = folder / f"{name}_{volume.name.replace('/', '_')}.mrc"
        _write_volume(path, volume.pyramid, np.float32, volume.notes["voxel_size_angstrom"])
        written.append(path)
    if not written:
        raise StateError(f"there are no {kind} of '{name}'.")
    return written


def _planes_per_slab(plane_bytes: int) -> int:
    """Return a multiple of the chunk's depth, or its half, its quarter, … so that a slab stays small."""
    planes = CHUNK
    while planes > 1 and planes * plane_bytes > SLAB_BYTES:
        planes //= 2
    return planes


def _export_picks(run: Run, name: str, folder: Path) -> list[Path]:
    picks = read_picks(run.picks, name)
    base = Tomogram(run.tomogram(name)).facts.levels[0]
    star, table = folder / f"{name}_picks.star", folder / f"{name}_picks.csv"
    size = base.voxel_size_angstrom
    write_star(star, picks.positions_N3, tomogram=name, shape=base.shape, voxel_size_angstrom=size,
               score_N=picks.scores_N)  # fmt: skip
    write_csv(table, picks.positions_N3, tomogram=name, voxel_size_angstrom=size, score_N=picks.scores_N)
    return [star, table]


def _export_instances(run: Run, name: str, folder: Path) -> list[Path]:
    table = read_table(run.instances, f"{name}.parquet")
    base = Tomogram(run.tomogram(name)).facts.levels[0]
    positions_N3 = np.stack([table["z"], table["y"], table["x"]], axis=1)
    star, text = folder / f"{name}_instances.star", folder / f"{name}_instances.csv"
    size = base.voxel_size_angstrom
    write_star(star, positions_N3, tomogram=name, shape=base.shape, voxel_size_angstrom=size,
               class_number_N=table["class_value"])  # fmt: skip
    write_csv(text, positions_N3, tomogram=name, voxel_size_angstrom=size, class_N=table["class_name"])
    return [star, text]


def _export_classes(run: Run, name: str, folder: Path) -> list[Path]:
    """Write the picks with their classes: numbers from 1 and probabilities in STAR, names in CSV."""
    picks, classes = read_picks(run.picks, name), read_classes(run.classes, name)
    if len(picks) != len(classes):
        raise StateError(f"the classes of '{name}' are of other picks.")
    base = Tomogram(run.tomogram(name)).facts.levels[0]
    star, table = folder / f"{name}_classes.star", folder / f"{name}_classes.csv"
    size = base.voxel_size_angstrom
    write_star(star, picks.positions_N3, tomogram=name, shape=base.shape, voxel_size_angstrom=size,
               score_N=classes.probability_N, class_number_N=classes.ids_N + 1)  # fmt: skip
    write_csv(table, picks.positions_N3, tomogram=name, voxel_size_angstrom=size,
              score_N=classes.probability_N, class_N=classes.names_N)  # fmt: skip
    return [star, table]


_WRITERS: dict[str, Callable[[Run, str, Path], list[Path]]] = {
    "labels": _export_labels,
    "picks": _export_picks,
    "instances": _export_instances,
    "classes": _export_classes,
    "probabilities": partial(_export_images, "probabilities"),
    "densities": partial(_export_images, "densities"),
}


def nothing_exported(exported: Exported) -> DataError:
    """Return the error for an export that found nothing at all."""
    return DataError(f"nothing could be exported: {exported.missing[0]}.", remedy="Run the pipeline first.")
