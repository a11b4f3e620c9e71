"""`cryoscale train`: the network that is due; or one of the supervised ones, from what is known."""

from __future__ import annotations

from typing import Any

import click

from cryoscale.cli import run as running
from cryoscale.cli.run import execution_options

NETWORKS = ("edss3d", "ssn3d-ed", "ssn3d-fcn", "dsrf3d-v2", "dsm-net", "unet2d", "cnn2d-chen", "unet3d")


@click.command("train")
@click.argument("run")
@click.option(
    "--model", type=click.Choice(NETWORKS), help="Train this network on what you, or a simulation, know."
)
@click.option(
    "--labels",
    metavar="PATTERN",
    help="Volumes that you drew, MRC or OME-Zarr, such as 'drawn/{tomogram}.mrc'; truth: of a simulation.",
)
@click.option(
    "--subtomograms",
    metavar="TABLE",
    help="CSV or STAR: file, class, mask, density, split; run: the boxes of a simulated run.",
)
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Write a parameter.")
@execution_options
def train_command(
    run: str,
    model: str | None,
    labels: str | None,
    subtomograms: str | None,
    settings: tuple[str, ...],
    **words: Any,
) -> int:
    """Train what is due in RUN: a network of yours with --model, else the encoder or the segmenter."""
    if model is not None or labels is not None or subtomograms is not None or settings:
        from cryoscale.pipeline.supervised import set_up_training

        _, lines = set_up_training(
            run, model=model, labels=labels, subtomograms=subtomograms, settings=settings
        )
        for line in lines:
            click.echo(line)
    stage = due(run)
    code = running.drive(run, until=stage, **words)
    if code == 0 and stage == "train_supervised":
        click.echo(_next(run))
    return code


def due(place: str) -> str:
    """Return the training that is due.

    With a supervised model its own; else the segmenter's where clusters are chosen, the encoder's before.
    """
    from cryoscale.data.run import Run
    from cryoscale.pipeline.order import steps_for

    run = Run.open(place)
    clusters, config = run.clusters, run.config
    if config.supervised.model is not None:
        return "train_supervised"
    if "train_segmenter" not in [step.name for step in steps_for(config)]:
        return "train_encoder"
    if config.segmenter.weights is not None:
        return "train_segmenter"
    return "train_encoder" if clusters.chosen() is None else "train_segmenter"


def _next(place: str) -> str:
    from cryoscale.data.run import Run
    from cryoscale.stages.supervised_scores import doubts_about

    run = Run.open(place)
    asked, card = run.config.supervised, run.model("segmenter").card
    lines = [
        f"{name}: IoU {of['iou']:.2f} on what was held back ({of['found']:.2%} found, {of['true']:.2%} true)"
        for name, of in card.get("held_back", {}).items()
    ]
    if doubts := doubts_about(card.get("held_back", {})):
        lines.append(f"Mind: {doubts}.")
    verb = "segment" if asked.segments else "run"
    what = "taken" if asked.weights is not None else "trained"
    return "\n".join([*lines, f"{what}: models/segmenter of {place}. Next: cryoscale {verb} {place}"])
