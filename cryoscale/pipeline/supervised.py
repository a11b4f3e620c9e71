"""Set up a supervised training: what `cryoscale train --model` writes into `run.toml`, checked first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.config.run import SourceConfig
from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Level, pyramid_levels
from cryoscale.data.run import Run
from cryoscale.data.tomogram import VOXEL_SIZE_TOLERANCE, Tomogram
from cryoscale.errors import ConfigurationError, CryoscaleError, StateError
from cryoscale.formats.labels import open_labels
from cryoscale.formats.mrc_header import read_header
from cryoscale.geometry import Zyx
from cryoscale.pipeline.setup import initial_config, write_run
from cryoscale.stages.annotate import level_of
from cryoscale.stages.supervised_set import HEADS, check_request

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
        takes, or without what the network learns, or weights that are of another network; boxes or weights of
        another voxel size than the tomograms. `run.toml` stays as it was.
    """
    before = Run.open(place).config.supervised  # a run must be there
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
    given = {word.partition("=")[0].strip() for word in settings}
    fresh = _fresh_heads(before, [*words, *settings], given)
    config = initial_config(place, [*fresh, *words, *settings])
    if config.supervised.model is None:
        raise ConfigurationError("which network is to be trained?", remedy="Give --model NAME.")
    if config.supervised.truth == "labels":  # boxes bring their own size
        check_request(config)
    config, said = _completed(config, Run.at(place), given, look=labels is not None)
    check_request(config)
    write_run(place, config)
    told = _told([*words, *settings], config)
    return config, [*(line for line in told if not any(more.startswith(line) for more in said)), *said]


def _fresh_heads(before: SupervisedConfig, words: Sequence[str], given: set[str]) -> list[str]:
    """Forget the heads that an earlier set-up took, where the network or the truth is another now."""
    if before.model is None or not before.heads or "supervised.heads" in given:
        return []
    said = {key.strip(): value.strip(" \"'") for key, _, value in (word.partition("=") for word in words)}
    for key in ("model", "truth", "labels", "subtomograms"):
        was = getattr(before, key) or "none"
        now = said.get(f"supervised.{key}", was)
        if was not in (now, os.path.abspath(now)):  # paths are written as absolute ones
            break
    else:
        return []
    weighted = before.loss_weights and "supervised.loss_weights" not in given
    return ["supervised.heads=[]", *(["supervised.loss_weights=[]"] if weighted else [])]


def _completed(config: RunConfig, run: Run, given: set[str], *, look: bool) -> tuple[RunConfig, list[str]]:
    """Add what follows: which tomograms have labels, the size of boxes that are given, and the heads."""
    asked = config.supervised
    if asked.weights is not None:
        return _with_weights(config, run)
    if asked.truth == "subtomograms":
        return _with_boxes(config, run, given)
    config, said = _with_heads(config, ("seg",) if len(asked.classes) == 1 else ("cls", "seg"))
    if asked.drawn is None:  # a simulated run knows the truth of its tomograms
        return config, said
    names = asked.tomograms
    if "supervised.tomograms" not in given and (look or not names):
        names = _with_files(asked.drawn, [source.name for source in config.inputs])
        config = _with_supervised(config, tomograms=names)
    for name in names:
        _check_labels(config, run, name)
    shown = ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")
    return config, [*said, f"labels of {shown}"]


def _with_supervised(config: RunConfig, **update: Any) -> RunConfig:
    return config.model_copy(update={"supervised": config.supervised.model_copy(update=update)})


def _with_heads(config: RunConfig, heads: tuple[str, ...]) -> tuple[RunConfig, list[str]]:
    """Write the heads of dsm-net where nobody chose: the stages that follow are planned by them."""
    asked = config.supervised
    if asked.model != "dsm-net" or asked.heads or not heads:
        return config, []
    update: dict[str, Any] = {"heads": heads}
    said = [f"supervised.heads = {list(heads)}, as the truth or the given weights have them"]
    if len(asked.loss_weights) == len(HEADS) != len(heads):  # given for all of them
        given = dict(zip(HEADS, asked.loss_weights, strict=True))
        update["loss_weights"] = tuple(given[head] for head in heads)
        said.append(f"supervised.loss_weights = {list(update['loss_weights'])}, of these heads")
    return _with_supervised(config, **update), said


def _with_weights(config: RunConfig, run: Run) -> tuple[RunConfig, list[str]]:
    """Take the heads from the card of given weights, and hold it against the tomograms."""
    from cryoscale.data.weights import ModelFolder
    from cryoscale.stages.supervised_weights import check_weights, heads_of

    asked = config.supervised
    assert asked.weights is not None
    said: list[str] = []
    with contextlib.suppress(StateError):  # `check_weights` says what is wrong with it
        architecture = ModelFolder(Folder.of(asked.weights)).card.get("architecture")
        if isinstance(architecture, dict) and architecture.get("name") == "dsm-net":
            config, said = _with_heads(config, heads_of(architecture))
    card = check_weights(config, asked.weights)
    _check_size(config, run, card.get("voxel_size_angstrom"), f"the model in {asked.weights}")
    return config, said


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
    source = next((s for s in config.inputs if s.name == name), None)
    if source is None:
        known = ", ".join(s.name for s in config.inputs[:5])
        raise ConfigurationError(f"the run has no tomogram '{name}'; it has {known}.")
    path = (config.supervised.drawn or "").replace(NAME, name)
    with open_labels(path) as labels:
        levels = _levels(config, run, source)
        if levels is not None:  # else ingest will say what is wrong with it
            level_of(labels, levels, name)


def _levels(config: RunConfig, run: Run, source: SourceConfig) -> Sequence[Level] | None:
    """Return the levels of an input, before ingest those that it will have; None where nobody can tell."""
    try:
        return Tomogram(run.tomogram(source.name)).facts.levels
    except CryoscaleError:
        pass
    try:
        header = read_header(run.source_path(source.path))
    except CryoscaleError:
        return None
    size = source.voxel_size_angstrom or config.ingest.voxel_size_angstrom or header.voxel_size_angstrom
    return None if size is None else pyramid_levels(header.shape, size, count=config.ingest.levels)


def _check_size(config: RunConfig, run: Run, size: float | None, what: str) -> None:
    """Refuse boxes or weights of another voxel size than the tomograms are worked on at.

    One tomogram that fits is enough, since the others are refused one by one; unknown sizes pass.
    """
    if size is None:
        return
    working = config.run.working_voxel_size_angstrom
    found: dict[str, Sequence[float]] = {}
    for source in config.inputs:
        if levels := _levels(config, run, source):
            found[source.name] = [level.voxel_size_angstrom for level in levels]
    at_work = [working] if working is not None else [sizes[0] for sizes in found.values()]
    if not at_work or any(abs(mine / float(size) - 1) <= VOXEL_SIZE_TOLERANCE for mine in at_work):
        return
    fits = any(abs(v / float(size) - 1) <= VOXEL_SIZE_TOLERANCE for sizes in found.values() for v in sizes)
    where = (
        "run.working_voxel_size_angstrom is" if working is not None else f"tomogram '{next(iter(found))}' has"
    )
    raise ConfigurationError(
        f"{what}: voxels of {float(size):g} Å; {where} {at_work[0]:g} Å.",
        remedy=f"Set run.working_voxel_size_angstrom = {float(size):g}: a level of the tomograms has it."
        if fits
        else "Bring both to one voxel size, or correct the header that is wrong (0: unknown).",
    )


def _with_boxes(config: RunConfig, run: Run, given: set[str]) -> tuple[RunConfig, list[str]]:
    """Set the patches to the boxes that are given, unsmoothed, and the heads to what they have."""
    from cryoscale.stages.particle_boxes import check_boxes, heads_of_run, heads_of_table, heads_to_learn

    asked = config.supervised
    check_request(_with_patch(config, size_voxels=32))  # networks in slices see no boxes, whatever their size
    if asked.subtomograms is not None:
        from cryoscale.formats.subtomograms import read_box_table

        table = read_box_table(asked.subtomograms)
        shape, available = table.shape, heads_of_table(table)
        _check_size(config, run, table.voxel_size_angstrom, f"the boxes of {asked.subtomograms}")
    else:
        assert config.simulate is not None  # the configuration makes sure that there are boxes
        assert config.simulate.subtomograms is not None
        shape = Zyx.of(config.simulate.subtomograms.size_voxels)
        available = heads_of_run(len({particle.class_name for particle in config.simulate.scene.particles}))
    if any(side % 4 for side in shape):
        raise ConfigurationError(
            f"the boxes are {tuple(shape)} voxels; sides must divide by 4.", remedy="Cut or pad them."
        )
    config, said = _with_heads(config, heads_to_learn(config, available))
    update: dict[str, Any] = {}
    if "patch.size_voxels" not in given:
        update["size_voxels"] = shape[0] if len(set(shape)) == 1 else tuple(shape)
    if "patch.smooth_sigma_voxels" not in given:
        update["smooth_sigma_voxels"] = 0.0
    config = _with_patch(config, **update)
    check_boxes(config, shape)  # what somebody asked for may be another
    patch = config.patch
    return config, [
        *said,
        f"patch.size_voxels = {patch.size_voxels}, as the boxes are",
        f"patch.smooth_sigma_voxels = {patch.smooth_sigma_voxels:g}: boxes are not smoothed",
    ]


def _with_patch(config: RunConfig, **update: Any) -> RunConfig:
    return config.model_copy(update={"patch": config.patch.model_copy(update=update)})


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
