"""Set up a simulated run: a recipe and changes to it become `run.toml`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.simulate import SimulateConfig
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError
from cryoscale.pipeline.setup import write_run


def set_up_simulation(
    place: str,
    recipe_name: str | None,
    *,
    seed: int | None = None,
    tomograms: int | None = None,
    snr: float | None = None,
    densities: Sequence[str] = (),
    structures: str = "stand-in",
    settings: Sequence[str] = (),
) -> RunConfig:
    """Write `run.toml` for a simulated data set; without a recipe the one that stands there is changed.

    Parameters
    ----------
    place : str
        The run; a local folder.
    recipe_name : str or None
        As in `cryoscale.simulate.recipes.RECIPES`.
    seed, tomograms, snr : optional
        In place of the recipe's; `snr` counts for every variant.
    densities : sequence of str
        Folders of maps and structures.
    structures : str
        "stand-in" or "paper".
    settings : sequence of str
        As given to `--set`.

    Raises
    ------
    ConfigurationError
        The place holds real tomograms, no recipe is given or known, a density is missing or ambiguous, or a
        setting cannot be.
    """
    run = Run.at(place)
    if not run.folder.is_local:
        raise ConfigurationError(f"{run.folder.url}: simulated tomograms are files; give a local folder.")
    standing = run.config if run.folder.exists("run.toml") else None
    if standing is not None and standing.simulate is None and standing.inputs:
        raise ConfigurationError(
            f"{run.folder.url} is a run of real tomograms.", remedy="Simulate into another folder."
        )
    config = standing or RunConfig()
    simulate = _chosen(config, recipe_name, structures)
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    if tomograms is not None:
        changes["tomograms"] = tomograms
    if densities:
        changes["densities"] = tuple(os.path.abspath(folder) for folder in densities)
    if snr is not None:
        changes["imaging"] = {**simulate.imaging.model_dump(), "snr": snr}
        changes["variants"] = [v.model_dump() | {"snr": None} for v in simulate.variants]
    raw = simulate.model_dump() | changes
    config = config.model_copy(update={"simulate": _validated(raw)})
    config = apply_settings(config, list(settings))
    assert config.simulate is not None
    simulate = _absolute(config.simulate)
    _check(simulate, run)
    config = RunConfig.model_validate({**config.model_dump(), "simulate": simulate.model_dump()})
    write_run(place, config)
    return config


def _chosen(config: RunConfig, name: str | None, structures: str) -> SimulateConfig:
    """Return the recipe; the one that stands there, with its changes, if it is the same."""
    from cryoscale.simulate.recipes import RECIPES, recipe

    if name is not None and (config.simulate is None or config.simulate.recipe != name):
        if structures not in ("stand-in", "paper"):
            raise ConfigurationError(f"structures are 'stand-in' or 'paper', not '{structures}'.")
        return recipe(name, seed=0, structures="paper" if structures == "paper" else "stand-in")
    if config.simulate is None:
        raise ConfigurationError(
            "what is to be simulated?", remedy=f"Give --recipe, one of {', '.join(RECIPES)}."
        )
    return config.simulate


def _validated(raw: dict[str, Any]) -> SimulateConfig:
    from cryoscale.config.toml import validate

    whole = validate({"simulate": _without_none(raw)}, origin="simulate")
    assert whole.simulate is not None
    return whole.simulate


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def _absolute(simulate: SimulateConfig) -> SimulateConfig:
    """Make paths absolute: the command may be given elsewhere the next time."""
    folders = tuple(os.path.abspath(os.path.expanduser(folder)) for folder in simulate.densities)
    particles = tuple(
        p.model_copy(update={"density": os.path.abspath(os.path.expanduser(p.density))})
        if "/" in p.density or p.density.startswith("~")
        else p
        for p in simulate.scene.particles
    )
    scene = simulate.scene.model_copy(update={"particles": particles})
    return simulate.model_copy(update={"densities": folders, "scene": scene})


def _check(simulate: SimulateConfig, run: Run) -> None:
    """Refuse before any work what can be known before it; raises `ConfigurationError` naming all of it."""
    from cryoscale.simulate.structures import find_density
    from cryoscale.stages.imaging import imaging_of
    from cryoscale.stages.templates import LIST, keys_of, structure_cache

    for name in simulate.names:
        imaging_of(simulate.for_tomogram(name))
    keys = keys_of(list(dict.fromkeys(p.density for p in simulate.scene.particles)))
    kept = run.densities.read_toml(LIST) if run.densities.exists(LIST) else {}
    problems = []
    for density, key in keys.items():
        try:
            find_density(density, simulate.densities, cache=structure_cache())
        except ConfigurationError as error:
            if key not in kept:  # the run has a copy of its own
                problems.append(str(error))
    if problems:
        raise ConfigurationError("\n".join(problems))
