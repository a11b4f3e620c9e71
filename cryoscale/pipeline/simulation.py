"""Set up a simulated run: a recipe and changes to it become `run.toml`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
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
    simulate = _chosen(config, recipe_name, seed, structures)
    changes: dict[str, Any] = {}
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
    _check_densities(config.simulate)
    config = config.model_copy(update={"inputs": _inputs(config.simulate)})
    write_run(place, config)
    return config


def _chosen(config: RunConfig, name: str | None, seed: int | None, structures: str) -> SimulateConfig:
    from cryoscale.simulate.recipes import RECIPES, recipe

    if name is not None:
        if structures not in ("stand-in", "paper"):
            raise ConfigurationError(f"structures are 'stand-in' or 'paper', not '{structures}'.")
        return recipe(name, seed=seed or 0, structures="paper" if structures == "paper" else "stand-in")
    if config.simulate is None:
        raise ConfigurationError(
            "what is to be simulated?", remedy=f"Give --recipe, one of {', '.join(RECIPES)}."
        )
    return config.simulate if seed is None else config.simulate.model_copy(update={"seed": seed})


def _validated(raw: dict[str, Any]) -> SimulateConfig:
    from cryoscale.config.toml import validate

    whole = validate({"simulate": _without_none(raw)}, origin="simulate")
    assert whole.simulate is not None
    return whole.simulate


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def _inputs(simulate: SimulateConfig) -> tuple[SourceConfig, ...]:
    """Name the files that will be simulated, relative to the run: it can be moved as a whole."""
    return tuple(SourceConfig(name=n, path=f"simulated/{n}.mrc") for n in sorted(simulate.names))


def _check_densities(simulate: SimulateConfig) -> None:
    """Find every density before any work starts; raises `ConfigurationError` naming all that cannot be."""
    from cryoscale.simulate.structures import find_density
    from cryoscale.stages.templates import structure_cache

    problems = []
    for density in dict.fromkeys(p.density for p in simulate.scene.particles):
        try:
            find_density(density, simulate.densities, cache=structure_cache())
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("\n".join(problems))
