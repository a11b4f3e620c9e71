"""Set up a run: parameters and inputs to `run.toml`."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError
from cryoscale.formats.inputs import expand_inputs, names_for

PATHS = (
    ("pick", "mask"), ("pick", "positions"), ("encoder", "weights"), ("segmenter", "weights"),
    ("supervised", "weights"), ("supervised", "labels"), ("supervised", "subtomograms"),
)  # fmt: skip


def initial_config(place: str, settings: list[str]) -> RunConfig:
    """Return the configuration of an existing run, or a fresh one, with settings applied.

    Paths among the settings are relative to the working directory, and are made absolute: `run` may be given
    elsewhere. Those that `run.toml` holds already stay as they are.
    """
    run = Run.at(place)
    config = run.config if run.folder.exists("run.toml") else RunConfig()
    config = apply_settings(config, settings)
    given = {word.partition("=")[0].strip() for word in settings}
    for table, key in PATHS:
        section = getattr(config, table)
        path = getattr(section, key)
        if f"{table}.{key}" in given and path and "://" not in path and path != "truth":
            absolute = section.model_copy(update={key: os.path.abspath(path)})
            config = config.model_copy(update={table: absolute})
    return config


def add_inputs(
    config: RunConfig, patterns: list[str], *, voxel_size_angstrom: float | None = None
) -> tuple[RunConfig, list[str]]:
    """Add the files that patterns name; files that are inputs already stay as they are.

    Parameters
    ----------
    config : RunConfig
        What the run was asked so far.
    patterns : list of str
        Paths and globs.
    voxel_size_angstrom : float, optional
        Counts instead of the headers of the files that are new or, when none is, of all that are named: a
        later batch never takes the valid headers of an earlier one away.

    Returns
    -------
    config, added : RunConfig, list of str
        The configuration with the inputs, and the names of the new ones.

    Raises
    ------
    ConfigurationError
        No file matches, two files would get the same name, or the voxel size is not positive.
    """
    if voxel_size_angstrom is not None and not 0 < voxel_size_angstrom < math.inf:
        raise ConfigurationError(f"a voxel size of {voxel_size_angstrom:g} Å cannot be; it must be positive.")
    if config.simulate is not None:
        raise ConfigurationError(
            "this run is simulated; real tomograms do not belong in it.", remedy="Use a folder of its own."
        )
    known = {source.name: source for source in config.inputs}
    added = []
    named = names_for(expand_inputs(patterns))
    for name, path in named.items():
        place = str(path.absolute())
        if name in known and known[name].path != place:
            raise ConfigurationError(
                f"{place} would be named '{name}', which is {known[name].path} already.",
                remedy="Rename one of the files, or put it into a run of its own.",
            )
        if name not in known:
            known[name] = SourceConfig(name=name, path=place)
            added.append(name)
    if voxel_size_angstrom is not None:
        for name in added or named:
            known[name] = known[name].model_copy(update={"voxel_size_angstrom": voxel_size_angstrom})
    return config.model_copy(update={"inputs": tuple(known[n] for n in sorted(known))}), added


def write_run(place: str, config: RunConfig) -> Run:
    """Write `run.toml`; raises `SurroundingsError` when the place cannot be written."""
    run = Run.at(place)
    if run.folder.is_local and Path(run.folder.url).is_file():
        raise ConfigurationError(f"{run.folder.url} is a file; a run is a folder.")
    run.save_config(config)
    return run
