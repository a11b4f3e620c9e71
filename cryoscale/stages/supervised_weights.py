"""Weights that somebody else trained: what they must be before a run applies them."""

from __future__ import annotations

from typing import Any

from cryoscale.config.run import RunConfig
from cryoscale.config.sections import IN_SLICES
from cryoscale.data.access import Access
from cryoscale.data.folder import Folder
from cryoscale.data.weights import ModelFolder, identity_of
from cryoscale.errors import ConfigurationError, CryoscaleError, FormatError
from cryoscale.stages.training import check_voxel_size


def check_weights(config: RunConfig, place: str) -> dict[str, Any]:
    """Check the card of given weights against what a run wants of them; no weights are read.

    Returns
    -------
    card : dict

    Raises
    ------
    ConfigurationError
        There is no model, or it is of another architecture, other heads, channels, patches or voxel size.
    """
    asked, given = config.supervised, ModelFolder(Folder.of(place))
    if not given.exists:
        raise ConfigurationError(
            f"{place} holds no trained model (model.toml is missing).",
            remedy="Give the folder models/segmenter of a run.",
        )
    card = given.card
    architecture = card.get("architecture")
    if not isinstance(architecture, dict) or "name" not in architecture:
        raise ConfigurationError(
            f"the model card in {place} names no architecture: it is not one of cryoscale."
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
    if asked.heads and sorted(asked.heads) != sorted(architecture.get("heads", asked.heads)):
        raise ConfigurationError(
            f"the model in {place} has the heads {', '.join(architecture['heads'])}, "
            f"supervised.heads are {', '.join(asked.heads)}.",
            remedy="Leave supervised.heads away, or give other weights.",
        )
    _check_names(card, architecture, place)
    _check_patches(config, card, place)
    return card


def _check_names(card: dict[str, Any], architecture: dict[str, Any], place: str) -> None:
    """Refuse a card that does not say what the outputs of its network mean."""
    heads = architecture.get("heads", ["cls"] if architecture["name"] == "dsrf3d-v2" else ["seg"])
    lacking = [
        table
        for head, table in (("seg", "classes"), ("cls", "particles"))
        if head in heads and not card.get(table, {}).get("names")
    ]
    if lacking:
        tables = " and no ".join(f"[{table}]" for table in lacking)
        raise ConfigurationError(
            f"the model card in {place} has no {tables} with names.",
            remedy="Give a model that train_supervised or train_segmenter made.",
        )


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
        The file is damaged, no safetensors, or does not hold the parameters of its architecture.
    """
    from cryoscale.models.registry import build

    card = check_weights(access.config, place)
    given = ModelFolder(Folder.of(place))
    try:
        state = given.load()
    except OSError as error:
        raise FormatError(f"the weights in {place} cannot be read: {error}.") from error
    try:
        build(card["architecture"]).load_state_dict(state)
    except CryoscaleError:
        raise
    except RuntimeError as error:
        raise FormatError(
            f"the weights in {place} are not those of its architecture {card['architecture']['name']}: "
            f"{' '.join(str(error).split())[:300]}.",
            remedy="Restore the folder as it was written.",
        ) from error
    card = {k: v for k, v in card.items() if k != "weights_sha256"} | {"imported_from": place}
    digest = access.model("segmenter").save(state, card, given.history)
    return {"hash": identity_of({**card, "weights_sha256": digest}), "imported": True}
