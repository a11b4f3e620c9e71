"""Open a trained network of the run as an engine: load once, run many batches."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from cryoscale.data.access import Access
from cryoscale.runtime.memory import cpu_count

if TYPE_CHECKING:
    from cryoscale.inference.engine import Engine

BATCH = 64  # patches; fixed, so that results do not depend on how rows or windows fall into blocks


def _load(access: Access, name: str) -> Any:
    from cryoscale.models.registry import build

    model = access.model(name)
    module = build(model.card["architecture"])
    module.load_state_dict(model.load())
    return module


def open_encoder(access: Access) -> contextlib.AbstractContextManager[Engine]:
    """Open the encoder: patches (N, 1, Z, Y, X) to encodings (N, F)."""
    from cryoscale.inference.engine import open_engine
    from cryoscale.inference.wrappers import EncoderOnly

    shape = (1, *access.config.patch.box)
    return open_engine(
        EncoderOnly(_load(access, "encoder")), input_shape=shape, batch=BATCH, threads=cpu_count()
    )


def open_decoder(access: Access) -> contextlib.AbstractContextManager[Engine]:
    """Open the decoder: encodings (N, F) to patches (N, 1, Z, Y, X)."""
    from cryoscale.inference.engine import open_engine
    from cryoscale.inference.wrappers import DecoderOnly

    module = _load(access, "encoder")
    shape = (int(module.architecture["dimension"]),)
    return open_engine(DecoderOnly(module), input_shape=shape, batch=BATCH, threads=cpu_count())


def open_segmenter(access: Access) -> contextlib.AbstractContextManager[Engine]:
    """Open the segmenter: patches (N, 1, Z, Y, X) to probabilities (N, C, Z, Y, X)."""
    from cryoscale.inference.engine import open_engine
    from cryoscale.inference.wrappers import SoftmaxOf

    shape = (1, *access.config.patch.box)
    return open_engine(
        SoftmaxOf(_load(access, "segmenter")), input_shape=shape, batch=BATCH, threads=cpu_count()
    )
