"""Set up a supervised training: what `cryoscale train --model` writes into `run.toml`, checked first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram
from cryoscale.errors import ConfigurationError, CryoscaleError
from cryoscale.formats.labels import open_labels
from cryoscale.formats.mrc_header import read_header
from cryoscale.geometry import Zyx
from cryoscale.pipeline.setup import initial_config, write_run
from cryoscale.stages.annotate import level_of
from cryoscale.stages.supervised_set import check_request

NAME = "{tomogram}"


def set_up_training(
    place: str,
    *,
    model: str | None = None,
    labels: str | None = None,
    subtomograms: str | None = None,
    settings: Sequence[str] = (),
) -> tuple[RunConfig, list[str]]:
    """Write what a supervised training is into `run.toml`.

    Parameters
    ----------
    place : str
        The run.
    model : str, optional
        Network; that of `run.toml` by default.
    labels : str, optional
        Pattern of the drawn volumes, `{tomogram}` for the name; or "truth".
    subtomograms : str, optional
        A table of boxes, or "run".
    settings : sequence of str
        As given to `--set`; they count more than what follows from the others.

    Returns
    -------
    config : RunConfig
    lines : list of str
        What was set, for the person.

    Raises
    ------
    ConfigurationError
        No model, no labels where the pattern says, volumes of another grid, boxes of a size that no network
        takes, or weights that are of another network. `run.toml` stays as it was.
    """
    Run.open(place)  # a run must be there
    if labels is not None and subtomograms is not None:
        raise ConfigurationError(
            "--labels and --subtomograms exclude each other.", remedy="Give one of them."
        )
    words = [] if model is None else [f"supervised.model={model}"]
    if labels is not None:
        words += ["supervised.truth=labels", f"supervised.labels={labels}"]
    if subtomograms is not None:
        table = "none" if subtomograms == "run" else subtomograms
        words += ["supervised.truth=subtomograms", f"supervised.subtomograms={table}"]
    config = initial_config(place, [*words, *settings])
    if config.supervised.model is None:
        raise ConfigurationError("which network is to be trained?", remedy="Give --model NAME.")
    given = {word.partition("=")[0].strip() for word in settings}
    if config.supervised.truth == "labels":  # boxes bring their own size
        check_request(config)
    config, said = _completed(config, Run.at(place), given)
    check_request(config)
    if config.supervised.weights is not None:
        from cryoscale.stages.supervised_weights import check_weights

        check_weights(config, config.supervised.weights)
    write_run(place, config)
    return config, [*_told([*words, *settings], config), *said]


def _completed(config: RunConfig, run: Run, given: set[str]) -> tuple[RunConfig, list[str]]:
    """Add what follows: which tomograms have labels, and the size of boxes that are given."""
    asked = config.supervised
    if asked.weights is not None:
        return config, []
    if asked.truth == "subtomograms":
        return _with_boxes(config, given)
    if asked.drawn is None:  # a simulated run knows the truth of its tomograms
        return config, []
    if "supervised.tomograms" in given:
        names = asked.tomograms
    else:
        names = _with_files(asked.drawn, [source.name for source in config.inputs])
        config = config.model_copy(update={"supervised": asked.model_copy(update={"tomograms": names})})
    for name in names:
        _check_labels(config, run, name)
    shown = ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")
    return config, [f"labels of {shown}"]


def _with_files(pattern: str, tomograms: Sequence[str]) -> tuple[str, ...]:
    """List the tomograms that were drawn in.

    Raises
    ------
    ConfigurationError
        None, or one file for several tomograms.
    """
    if NAME not in pattern and len(tomograms) > 1:
        raise ConfigurationError(
            f"'{pattern}' is one file, and the run has {len(tomograms)} tomograms.",
            remedy=f"Put {NAME} where their names differ.",
        )
    found = tuple(name for name in tomograms if Path(pattern.replace(NAME, name)).exists())
    if not found:
        looked = [pattern.replace(NAME, name) for name in tomograms]
        more = f" and {len(looked) - 3} more" if len(looked) > 3 else ""
        raise ConfigurationError(
            f"no tomogram has labels at '{pattern}': looked for {', '.join(looked[:3]) or 'nothing'}{more}.",
            remedy=f"{NAME} stands for the name of a tomogram.",
        )
    return found


def _check_labels(config: RunConfig, run: Run, name: str) -> None:
    """Hold a label volume against its tomogram, or against the header of its source before ingest."""
    from cryoscale.data.pyramid import Level, pyramid_levels

    source = next((s for s in config.inputs if s.name == name), None)
    if source is None:
        known = ", ".join(s.name for s in config.inputs[:5])
        raise ConfigurationError(f"the run has no tomogram '{name}'; it has {known}.")
    path = (config.supervised.drawn or "").replace(NAME, name)
    with open_labels(path) as labels:
        try:
            levels: Sequence[Level] = Tomogram(run.tomogram(name)).facts.levels
        except CryoscaleError:
            try:
                header = read_header(run.source_path(source.path))
            except CryoscaleError:
                return  # ingest will say what is wrong with it
            size = (
                source.voxel_size_angstrom or config.ingest.voxel_size_angstrom or header.voxel_size_angstrom
            )
            if size is None:
                return
            levels = pyramid_levels(header.shape, size, count=config.ingest.levels)
        level_of(labels, levels, name)


def _with_boxes(config: RunConfig, given: set[str]) -> tuple[RunConfig, list[str]]:
    """Set the patches to the boxes that are given; they are not smoothed."""
    asked = config.supervised
    if asked.subtomograms is not None:
        from cryoscale.formats.subtomograms import read_box_table

        shape = read_box_table(asked.subtomograms).shape
    else:
        assert config.simulate is not None  # the configuration makes sure that there are boxes
        assert config.simulate.subtomograms is not None
        shape = Zyx.of(config.simulate.subtomograms.size_voxels)
    if any(side % 4 for side in shape):
        raise ConfigurationError(
            f"the boxes are {tuple(shape)} voxels; sides must divide by 4.", remedy="Cut or pad them."
        )
    update: dict[str, Any] = {}
    if "patch.size_voxels" not in given:
        update["size_voxels"] = shape[0] if len(set(shape)) == 1 else tuple(shape)
    if "patch.smooth_sigma_voxels" not in given:
        update["smooth_sigma_voxels"] = 0.0
    size = update.get("size_voxels", config.patch.size_voxels)
    return (
        config.model_copy(update={"patch": config.patch.model_copy(update=update)}),
        [
            f"patch.size_voxels = {size}, as the boxes are",
            "patch.smooth_sigma_voxels = 0: boxes are not smoothed",
        ],
    )


def _told(words: Sequence[str], config: RunConfig) -> list[str]:
    """Say what was set, as it stands in `run.toml` now."""
    lines = []
    for key in dict.fromkeys(word.partition("=")[0].strip() for word in words):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        shown = os.fspath(value) if isinstance(value, str) else value
        lines.append(f"{key} = {'none' if shown is None else shown}")
    return lines


def assumed_card(config: RunConfig, classes: int) -> dict[str, Any]:
    """Foretell the card of a supervised network that is not trained yet: of given weights, or a likely one.

    Parameters
    ----------
    config : RunConfig
        With a supervised model.
    classes : int
        How many to assume where no names are known.
    """
    from cryoscale.data.folder import Folder
    from cryoscale.data.weights import ModelFolder
    from cryoscale.stages.supervised_set import colors_of
    from cryoscale.stages.train_supervised import architecture_for

    asked = config.supervised
    if asked.weights is not None:
        return ModelFolder(Folder.of(asked.weights)).card
    kinds = asked.classes or tuple(f"class {number}" for number in range(1, classes + 1))
    boxes = asked.truth == "subtomograms"
    labels = ("particle",) if boxes else kinds
    heads = asked.heads or (("cls", "seg", "rec") if boxes else ("cls", "seg"))
    return {
        "architecture": architecture_for(config, heads, len(labels), len(kinds)),
        "classes": {"names": list(labels), "colors": [list(color) for color in colors_of(len(labels))]},
        "particles": {"names": list(kinds)},
        "patch": config.patch.model_dump(mode="json"),
    }
