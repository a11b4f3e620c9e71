"""Train the encoder: Autoencoder3D on a seeded, capped sample of patches over all tomograms of the run."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.weights import ModelCheckpoint
from cryoscale.errors import NothingToDoError
from cryoscale.stages.base import WholeStage
from cryoscale.stages.training import (
    card_of,
    gather_rows,
    history_columns,
    import_model,
    sample_rows,
    settings_for,
)

DEAD_WARNING = 0.25  # from this share of dead code units on, the summary says so


class TrainEncoderStage(WholeStage):
    """From patches to the weights of an autoencoder."""

    name = "train_encoder"
    engine = "model"
    reads = frozenset({"tomogram", "picks"})
    writes = "encoder"

    def compute(self, access: Access) -> dict[str, Any]:
        """Train, or take given weights; a killed training goes on at its last epoch.

        Raises
        ------
        NothingToDoError
            Fewer than two picks over all tomograms.
        """
        config = access.config.encoder
        if config.weights:
            return import_model(access, "encoder", config.weights)
        from cryoscale.learn.losses import AutoencoderLoss, dead_share
        from cryoscale.learn.training import fit
        from cryoscale.models.registry import build

        patches_NCZYX = _sample(access)
        architecture = {
            "name": "autoencoder3d",
            "box": list(access.config.patch.box),
            "channels": config.channels,
            "dimension": config.dimension,
            "code": config.code,
        }
        module = build(architecture, seed=config.seed)
        settings = settings_for(config)
        folder = access.model("encoder")
        result = fit(
            module,
            patches_NCZYX,
            None,
            AutoencoderLoss(l1=config.l1),
            settings,
            checkpoint=ModelCheckpoint(folder.folder, access.key),
        )
        codes_NF = _codes(module, patches_NCZYX[:4096])
        dead = dead_share(codes_NF)
        card = card_of(access, architecture, result, settings, len(patches_NCZYX))
        card["metrics"]["dead_code_share"] = dead
        digest = folder.save(result.best_state, card, history_columns(result.history))
        facts = {"hash": digest, "patches": len(patches_NCZYX), "dead_code_share": dead, **card["metrics"]}
        if dead >= DEAD_WARNING:
            facts["warning"] = (
                f'{dead:.0%} of the code units are dead; use code = "linear", or lower encoder.l1'
            )
        return facts


def _sample(access: Access) -> Any:
    counts = [access.pick_count(tomogram) for tomogram in access.tomograms]
    if sum(counts) < 2:
        raise NothingToDoError(
            f"{sum(counts)} picks in {len(counts)} tomograms are too few to train on.",
            remedy="Lower pick.threshold, or check pick.radius_angstrom, the voxel size and the contrast.",
        )
    config = access.config.encoder
    rows = sample_rows(counts, config.max_patches, config.seed)
    parts = [gather_rows(access, t, r) for t, r in zip(access.tomograms, rows, strict=True) if len(r)]
    return np.concatenate(parts)[:, None]


def _codes(module: Any, patches_NCZYX: Any) -> Any:
    from cryoscale.inference.engine import open_engine
    from cryoscale.inference.wrappers import EncoderOnly
    from cryoscale.runtime.memory import cpu_count

    with open_engine(
        EncoderOnly(module),
        input_shape=patches_NCZYX.shape[1:],
        batch=64,
        backend="torch",
        threads=cpu_count(),
    ) as engine:
        return engine.run(patches_NCZYX)
