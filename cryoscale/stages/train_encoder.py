"""Train the encoder: Autoencoder3D on a seeded, capped sample of patches over all tomograms of the run."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.weights import identity_of
from cryoscale.errors import NothingToDoError
from cryoscale.geometry import Zyx
from cryoscale.learn.settings import history_columns
from cryoscale.stages.base import WholeStage
from cryoscale.stages.networks import (
    expected_invariants,
    invariants_bytes,
    invariants_of,
    worker_threads,
)
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.training import (
    batch_bytes,
    card_of,
    finished_card,
    gather_sample,
    import_model,
    sample_rows,
    settings_for,
    train,
    training_bytes,
    voxels_at_work,
)

MEASURED = 4096  # patches, over all of the sample, whose codes say how much of them is dead, and the gain
DEAD_WARNING = 0.25  # from this share of dead code units on, the summary says so


class TrainEncoderStage(WholeStage):
    """From patches to the weights of an autoencoder."""

    name = "train_encoder"
    version = 5
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
            return _imported(access)
        if card := finished_card(access, "encoder"):
            return _facts(card)
        from cryoscale.learn.losses import AutoencoderLoss, dead_share
        from cryoscale.models.registry import build

        patches_NCZYX = _sample(access)
        architecture = _architecture(access)
        settings = settings_for(config)
        module, result, notes = train(
            access,
            "encoder",
            lambda: build(architecture, seed=config.seed),
            patches_NCZYX,
            None,
            AutoencoderLoss(l1=config.l1),
            settings,
        )
        measured_NCZYX = patches_NCZYX[:: -(-len(patches_NCZYX) // MEASURED)]  # of all tomograms
        codes_NF = _codes(module, measured_NCZYX)
        card = card_of(access, architecture, result, settings, len(patches_NCZYX))
        card["metrics"]["dead_code_share"] = dead_share(codes_NF)
        if config.invariant_weight:
            card["invariants"] = _invariants(measured_NCZYX, codes_NF, config.invariant_weight)
        digest = access.model("encoder").save(result.best_state, card, history_columns(result.history))
        return {**_facts({**card, "weights_sha256": digest}), **notes}

    def bytes_needed(self, access: Access) -> int:
        """Bound the sample, what cutting it takes, and a training step."""
        config = access.config.encoder
        if config.weights:
            return 0
        box = Zyx.of(access.config.patch.box)
        rows = min(config.max_patches, sum(access.pick_count(t) for t in access.tomograms))
        # Of each voxel at work: C channels at full and at half resolution, their gradients, 27 neighbours.
        activations = 4 * voxels_at_work(config.batch_size, box.voxels) * (32 + config.channels * 4)
        features = config.channels * (box.voxels // 64) * config.dimension * 2
        weights = 4 * (features + 4 * 27 * config.channels**2)
        gather = max(PatchReader.for_access(access, t).bytes_per_gather() for t in access.tomograms)
        if config.invariant_weight:  # after the training, while its best weights are still there
            added = invariants_bytes({"invariants": expected_invariants(box)}, box)
            gather = max(gather, 7 * weights + added)
        batch = batch_bytes(config.batch_size, box.voxels)
        return training_bytes(activations + batch, weights, 4 * rows * box.voxels, gather)


def _architecture(access: Access) -> dict[str, Any]:
    config = access.config.encoder
    return {
        "name": "autoencoder3d",
        "box": list(access.config.patch.box),
        "channels": config.channels,
        "dimension": config.dimension,
        "code": config.code,
    }


def _imported(access: Access) -> dict[str, Any]:
    """Take given weights; they come with the invariants that they were trained for, or with none."""
    config = access.config.encoder
    facts = import_model(access, "encoder", config.weights or "")
    has = bool(access.model("encoder").card.get("invariants"))
    if has != bool(config.invariant_weight):
        what = "has invariants of its own" if has else "was trained without invariants"
        facts["note"] = f"encoder.invariant_weight has no effect: the model of encoder.weights {what}"
    return facts


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    """Return what the ledger and the summary say of a trained encoder, from its card alone."""
    dead = card["metrics"]["dead_code_share"]
    facts = {"hash": identity_of(card), "patches": card["training"]["patches"], **card["metrics"]}
    if dead >= DEAD_WARNING:
        facts["warning"] = f'{dead:.0%} of the code units are dead; use code = "linear", or lower encoder.l1'
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
    patches_NZYX = np.empty((sum(map(len, rows)), *access.config.patch.box), np.float32)
    gather_sample(access, rows, patches_NZYX)
    return patches_NZYX[:, None]


def _invariants(patches_NCZYX: Any, codes_NF: Any, weight: float) -> dict[str, Any]:
    """Describe the invariants that follow the code; their sd is `weight` times that of the code."""
    added = expected_invariants(patches_NCZYX.shape[2:])
    module = invariants_of(added, patches_NCZYX.shape[2:])
    values_NI = _run(module, patches_NCZYX)
    spread = [float(np.sqrt(part.var(axis=0, dtype=np.float64).sum())) for part in (codes_NF, values_NI)]
    gain = weight * spread[0] / spread[1] if min(spread) > 0 else 1.0
    return {**added, "gain": gain}


def _codes(module: Any, patches_NCZYX: Any) -> Any:
    from cryoscale.inference.wrappers import EncoderOnly

    return _run(EncoderOnly(module), patches_NCZYX)


def _run(module: Any, patches_NCZYX: Any) -> Any:
    from cryoscale.inference.engine import open_engine

    with open_engine(
        module,
        input_shape=patches_NCZYX.shape[1:],
        batch=64,
        backend="torch",
        threads=worker_threads(),
    ) as engine:
        return engine.run(patches_NCZYX)
