"""From an architecture, a plain dictionary that travels with the weights, to a network.

A model file is one class and three constants: `PURPOSE`, `SOURCE` and `EXAMPLE` (the architecture that
`cryoscale models` shows). The class has an `architecture` property and says what `ModelFacts` lists.
To add one, write the file and a line in `MODELS`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

# name -> module and class; imported when wanted, since torch takes seconds to import
MODELS: dict[str, tuple[str, str]] = {
    "autoencoder3d": ("cryoscale.models.autoencoder3d", "Autoencoder3D"),
    "edss3d": ("cryoscale.models.edss3d", "EDSS3D"),
    "ssn3d-ed": ("cryoscale.models.ssn3d", "SSN3DED"),
    "ssn3d-fcn": ("cryoscale.models.ssn3d_fcn", "SSN3DFCN"),
    "dsrf3d-v2": ("cryoscale.models.dsrf3d", "DSRF3D"),
    "dsm-net": ("cryoscale.models.dsm_net", "DSMNet"),
    "unet2d": ("cryoscale.models.unet2d", "UNet2D"),
    "cnn2d-chen": ("cryoscale.models.cnn2d", "CNN2D"),
    "unet3d": ("cryoscale.models.unet3d", "UNet3D"),
}


@dataclass(frozen=True)
class ModelFacts:
    """What others have to know of a network.

    Attributes
    ----------
    dimensions : int
        3: inputs (N, 1, Z, Y, X). 2: inputs (N, C, Y, X), C neighbouring slices.
    heads : tuple of str
        What it gives, of "cls" (logits of the patch's class), "seg" (logits of each voxel's), "rec" (density
        without neighbours), in this order. With one head it returns a tensor, with several a dict. Empty for
        networks that learn without labels.
    alignment : int
        What sides and starts of tiles divide by in dense use. Boxes need not, where poolings round up.
    halo : int, optional
        How far it looks beyond an aligned tile, voxels; a margin is that, rounded up to whole `alignment`s.
        None: it looks as far as it is given.
    """

    dimensions: int
    heads: tuple[str, ...]
    alignment: int
    halo: int | None


def facts_of(architecture: Mapping[str, Any]) -> ModelFacts:
    """Tell what an architecture's network takes and gives.

    Raises
    ------
    ConfigurationError
        As `build`.
    """
    import torch

    with torch.device("meta"):  # shapes without memory
        return _facts(build(architecture))


def networks(head: str | None = None, *, dimensions: int | None = None) -> list[str]:
    """List the names of the networks, or of those whose example has a head, or so many dimensions."""
    names = []
    for name, (module_name, _) in MODELS.items():
        facts = facts_of(importlib.import_module(module_name).EXAMPLE)
        if (head is None or head in facts.heads) and dimensions in (None, facts.dimensions):
            names.append(name)
    return names


def build(architecture: Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """Make the network that an architecture describes, freshly initialised.

    Parameters
    ----------
    architecture : mapping
        `name`, and the keywords of the class; what its `architecture` property returns.
    seed : int
        Of the first weights; without effect where weights are loaded afterwards.

    Returns
    -------
    module : nn.Module
        In training mode, float32, on the CPU.

    Raises
    ------
    ConfigurationError
        An unknown name or key (the nearest one is named), a key that is missing, or an impossible value.
    """
    keywords = dict(architecture)
    name = keywords.pop("name", None)
    if name is None:
        raise ConfigurationError(
            f"The architecture {dict(architecture)!r} has no 'name'.", remedy=f"Known: {', '.join(MODELS)}."
        )
    if name not in MODELS:
        raise ConfigurationError(f"There is no model {name!r}.", remedy=_nearest(str(name), list(MODELS)))
    model = _load(name)
    _check_keys(name, keywords, model)
    module: nn.Module = model(**keywords, seed=seed)
    return module


def describe() -> list[dict[str, Any]]:
    """List the networks as `cryoscale models` shows them.

    Returns
    -------
    rows : list of dict
        `name`, `dimensions` (2 or 3), `heads`, `box` (z, y, x of the example, None where any size goes),
        `sides_divide_by` (what the sides of a patch have to divide by), `alignment` and `halo` (see
        `ModelFacts`), `parameters` (of the example), `example` (the architecture), `source` and `purpose`.
    """
    import torch

    from cryoscale.models.layers import count_parameters

    rows = []
    for name, (module_name, _) in MODELS.items():
        module = importlib.import_module(module_name)
        with torch.device("meta"):  # shapes without memory
            network = build(module.EXAMPLE)
        facts = _facts(network)
        rows.append(
            {
                "name": name,
                "dimensions": facts.dimensions,
                "heads": list(facts.heads),
                "box": module.EXAMPLE.get("box"),
                "sides_divide_by": getattr(network, "sides_divide_by", 1),
                "alignment": facts.alignment,
                "halo": facts.halo,
                "parameters": count_parameters(network),
                "example": network.architecture,
                "source": module.SOURCE,
                "purpose": module.PURPOSE,
            }
        )
    return rows


def _facts(network: Any) -> ModelFacts:
    return ModelFacts(network.dimensions, network.heads, network.alignment, network.halo)


def _load(name: str) -> Any:
    module_name, class_name = MODELS[name]
    return getattr(importlib.import_module(module_name), class_name)


def _check_keys(name: str, keywords: dict[str, Any], model: Any) -> None:
    accepted = {key: p for key, p in inspect.signature(model).parameters.items() if key != "seed"}
    for key in keywords:
        if key not in accepted:
            raise ConfigurationError(f"{name}: unknown key {key!r}.", remedy=_nearest(key, list(accepted)))
    missing = [k for k, p in accepted.items() if p.default is inspect.Parameter.empty and k not in keywords]
    if missing:
        raise ConfigurationError(f"{name}: the architecture lacks {', '.join(missing)}.")


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
