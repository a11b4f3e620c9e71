"""Grants for stages of a run that went through them already, as the controller would make them."""

from __future__ import annotations

from typing import Any

from cryoscale.data.access import Access
from cryoscale.data.run import Run
from cryoscale.pipeline.order import steps_for


def grant(run: Run, step: str, tomogram: str = "", **changes: Any) -> tuple[Any, Access]:
    """Return a stage and an access to what it reads and writes; fits get what their card says they saw."""
    config = run.config
    stage = next(s.stage for s in steps_for(config) if s.name == step)
    names = tuple(source.name for source in config.inputs)
    fields: dict[str, Any] = {"key": "k", "upstream": {}}
    if step == "cluster":
        card = run.clusters.card
        fields = {"key": card["key"], "upstream": card["upstream"]}
    elif step.startswith("train_"):
        card = run.model(step.removeprefix("train_")).card
        fields = {"key": card["key"], "upstream": card["training"]["upstream"]}
    fields |= {"config": config, "chosen": run.clusters.selection(int(run.clusters.card["n_clusters"]))}
    fields |= changes
    return stage, Access(
        run=run, tomogram=tomogram, tomograms=() if tomogram else names, reads=stage.reads,
        writes=stage.writes, **fields,
    )  # fmt: skip
