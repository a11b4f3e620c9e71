"""From an architecture, a plain dictionary that travels with the weights, to a network.

A model file is one class with an `architecture` property, and three constants: `PURPOSE`, `SOURCE` and
`EXAMPLE` (the architecture that `cryoscale models` shows). To add one, write the file and a line in `MODELS`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cryoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

# name -> module and class; imported when wanted, since torch takes seconds to import
MODELS: dict[str, tuple[str, str]] = {
    "autoencoder3d": ("cryoscale.models.autoencoder3d", "Autoencoder3D"),
    "edss3d": ("cryoscale.models.edss3d", "EDSS3D"),
}


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
        `name`, `box` (z, y, x of the example, None where any size goes), `parameters` (of the example),
        `example` (the architecture), `source` and `purpose`.
    """
    import torch

    from cryoscale.models.layers import count_parameters

    rows = []
    for name, (module_name, _) in MODELS.items():
        module = importlib.import_module(module_name)
        with torch.device("meta"):  # shapes without memory
            network = build(module.EXAMPLE)
        rows.append(
            {
                "name": name,
                "box": module.EXAMPLE.get("box"),
                "parameters": count_parameters(network),
                "example": network.architecture,
                "source": module.SOURCE,
                "purpose": module.PURPOSE,
            }
        )
    return rows


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
