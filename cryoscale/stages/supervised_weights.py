"""Weights that somebody else trained: what they must be before a run applies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryoscale.config.run import RunConfig
from cryoscale.config.sections import IN_SLICES
from cryoscale.data.access import Access
from cryoscale.data.folder import Folder
from cryoscale.data.weights import ModelFolder, identity_of
from cryoscale.errors import ConfigurationError, CryoscaleError, FormatError, StateError
from cryoscale.stages.supervised_set import HEADS
from cryoscale.stages.training import check_voxel_size

if TYPE_CHECKING:
    from torch import Tensor, nn

OTHER_FILES = "Restore that folder as it was written, or choose another in supervised.weights."


def check_weights(config: RunConfig, place: str) -> dict[str, Any]:
    """Check the card of given weights against what a run wants of them; no weights are read.

    Returns
    -------
    card : dict

    Raises
    ------
    ConfigurationError
        There is no model, or its card is not whole, or it is of another architecture, other heads, channels,
        patches or voxel size.
    """
    asked, given = config.supervised, ModelFolder(Folder.of(place))
    if not given.exists:
        raise ConfigurationError(
            f"{place} holds no trained model (model.toml is missing).",
            remedy="Give the folder models/segmenter of a run.",
        )
    try:
        card = given.card
    except StateError as error:
        raise ConfigurationError(f"{error}", remedy=OTHER_FILES) from error
    architecture = card.get("architecture")
    if not isinstance(architecture, dict) or "name" not in architecture:
        raise ConfigurationError(
            f"the model card in {place} names no architecture: it is not one of cryoscale."
        )
    if not isinstance(card.get("weights_sha256"), str):
        raise ConfigurationError(
            f"the model card in {place} has no weights_sha256: nobody can tell whose it is.",
            remedy="Give the folder models/segmenter of a run, as it was written.",
        )
    if architecture["name"] != asked.model:
        raise ConfigurationError(
            f"the model in {place} is {architecture['name']}, supervised.model is {asked.model}.",
            remedy=f"Set supervised.model = {architecture['name']}, or give other weights.",
        )
    for key, wanted in (("channels", asked.channels), ("batch_norm", asked.batch_norm)):
        if wanted is not None and architecture.get(key) != wanted:
            raise ConfigurationError(
                f"the model in {place} has {key} = {architecture.get(key)}, supervised.{key} is {wanted}.",
                remedy=f"Leave supervised.{key} away: weights know it.",
            )
    _check_heads(config, architecture, place)
    _check_names(card, architecture, place)
    _check_patches(config, card, place)
    return card


def heads_of(architecture: dict[str, Any]) -> tuple[str, ...]:
    """List what the network of an architecture gives, in the order cls, seg, rec."""
    if architecture["name"] == "dsm-net":
        has = architecture.get("heads", HEADS)
        return tuple(head for head in HEADS if isinstance(has, list | tuple) and head in has)
    return ("cls",) if architecture["name"] == "dsrf3d-v2" else ("seg",)


def _check_heads(config: RunConfig, architecture: dict[str, Any], place: str) -> None:
    """Refuse a network without the heads that the run's stages are planned by, or with others."""
    asked, heads = config.supervised, heads_of(architecture)
    fits = bool(heads) and (asked.classifies, asked.segments) == ("cls" in heads, "seg" in heads)
    if fits and (not asked.heads or set(asked.heads) == set(heads)):
        return
    wanted = f"are {', '.join(asked.heads)}" if asked.heads else "are not set: all of them"
    if not heads:
        raise ConfigurationError(f"the model card in {place} names no heads of dsm-net.", remedy=OTHER_FILES)
    listed = ", ".join(f'"{head}"' for head in heads)
    raise ConfigurationError(
        f"the model in {place} has the heads {', '.join(heads)}, supervised.heads {wanted}.",
        remedy=f"Set supervised.heads = [{listed}], or give other weights.",
    )


def _check_names(card: dict[str, Any], architecture: dict[str, Any], place: str) -> None:
    """Refuse a card that does not say what the outputs of its network mean, or of as many as it has."""
    name, heads = architecture["name"], heads_of(architecture)
    labels = "n_labels" if name == "dsm-net" else "n_classes"
    for head, table, key, unnamed in (("seg", "classes", labels, 1), ("cls", "particles", "n_classes", 0)):
        if head not in heads:
            continue
        names = _names_in(card, table)
        if not names:
            raise ConfigurationError(
                f"the model card in {place} has no [{table}] with names.",
                remedy="Give a model that train_supervised or train_segmenter made.",
            )
        outputs = architecture.get(key)
        if outputs is not None and outputs != len(names) + unnamed:
            background = " and the background" if unnamed else ""
            raise ConfigurationError(
                f"the model card in {place} names {len(names)} {table}{background}, "
                f"its network has {key} = {outputs}.",
                remedy=OTHER_FILES,
            )


def _names_in(card: dict[str, Any], table: str) -> list[str]:
    found = card.get(table)
    names = found.get("names") if isinstance(found, dict) else None
    return names if isinstance(names, list) else []


def _check_patches(config: RunConfig, card: dict[str, Any], place: str) -> None:
    patch, trained = config.patch.model_dump(mode="json"), card.get("patch")
    if config.supervised.model in IN_SLICES:  # slices have no box; what smoothing does counts all the same
        patch, trained = (
            {k: v for k, v in (p or {}).items() if k != "size_voxels"} for p in (patch, trained)
        )
    if trained != patch:
        raise ConfigurationError(
            f"the model in {place} was trained on patches {trained}, this run has {patch}.",
            remedy="Set the [patch] table as it was for that model.",
        )
    if (size := config.run.working_voxel_size_angstrom) is not None:
        check_voxel_size(card, size, f"the model in {place}", "run.working_voxel_size_angstrom")


def import_supervised(access: Access, place: str) -> dict[str, Any]:
    """Copy given weights into the run, checked against their card and their network.

    Raises
    ------
    ConfigurationError
        As `check_weights`.
    FormatError
        The file is missing, damaged, no safetensors, does not hold the parameters of its architecture, or
        not finite ones.
    """
    card = check_weights(access.config, place)
    given = ModelFolder(Folder.of(place))
    try:
        state, history = given.load(), given.history
    except (OSError, StateError) as error:
        raise FormatError(f"the weights in {place} cannot be read: {error}", remedy=OTHER_FILES) from error
    except FormatError as error:
        # That one's remedy is for a model of this run, which may be deleted; these are somebody's work.
        raise FormatError(
            f"the weights in {place} are damaged: no safetensors file, or not of the SHA-256 in their card.",
            remedy=OTHER_FILES,
        ) from error
    module = _network_with(state, card["architecture"], place)
    architecture: dict[str, Any] = module.architecture  # type: ignore[assignment]
    _check_names(card, architecture, place)  # a card may leave away what has a default
    card = {k: v for k, v in card.items() if k != "weights_sha256"} | {"imported_from": place}
    digest = access.model("segmenter").save(state, card, history)
    return {"hash": identity_of({**card, "weights_sha256": digest}), "imported": True}


def _network_with(state: dict[str, Tensor], architecture: dict[str, Any], place: str) -> nn.Module:
    """Build the network that given weights say they are of, and put them in."""
    import torch

    from cryoscale.models.registry import build

    broken = [name for name, values in state.items() if not bool(torch.isfinite(values).all())]
    if broken:
        raise FormatError(
            f"the weights in {place} are not finite ({broken[0]}): that training diverged.",
            remedy="Choose others in supervised.weights.",
        )
    try:
        module = build(architecture)
        module.load_state_dict(state)
    except CryoscaleError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise FormatError(
            f"the weights in {place} are not those of its architecture {architecture['name']}: "
            f"{' '.join(str(error).split())[:300]}.",
            remedy=OTHER_FILES,
        ) from error
    return module
