"""`cryoscale discover`: leave a class out of a training, and look for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cryoscale.config.sections import SupervisedConfig
    from cryoscale.data.run import Run
    from cryoscale.learn.settings import EpochRecord


@click.command("discover")
@click.argument("run")
@click.option("--leave-out", required=True, metavar="CLASS", help="The class that the network never sees.")
@click.option("--clusters", "n_clusters", type=click.IntRange(min=2), default=22, show_default=True,
              metavar="K", help="Clusters of features; more than there are classes.")  # fmt: skip
@click.option("--tomogram", "tomograms", multiple=True, metavar="NAME", help="Only subtomograms of these.")
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE",
              help="How to train: a key of [supervised]; unset ones are the paper's.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Of clusters, chance and picture; supervised.seed is the training's.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--to", "place", metavar="FOLDER", help="Where to write; default: RUN/discovery/CLASS.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="Nothing on the way.")
def discover_command(
    run: str,
    leave_out: str,
    n_clusters: int,
    tomograms: tuple[str, ...],
    settings: tuple[str, ...],
    seed: int,
    device: str,
    place: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train DSM-Net without a class of RUN's subtomograms, and look for it among clusters of its features.

    RUN is simulated, with subtomograms (recipes dsm-net-a, -b, -c). Given again, a training that was killed
    goes on, and one that is finished is not done again.
    """
    import json

    from cryoscale.cli.evaluate import _read_density, _try_to_write
    from cryoscale.data.run import Run
    from cryoscale.data.weights import ModelFolder
    from cryoscale.evaluate.boxes import read_boxes
    from cryoscale.evaluate.discovery import Novelty, check, discover
    from cryoscale.report.discovery import as_text, local, write_discovery

    opened = Run.open(run)
    supervised = _training(opened, settings)
    asked = Novelty(leave_out, n_clusters, seed)
    boxes = read_boxes(opened, tomograms)
    supervised = check(boxes, asked, supervised)
    folder = local(place or opened.folder.child("discovery", _file_name(leave_out)).url)
    _try_to_write(folder.url)

    def say(words: str) -> None:
        if not quiet:
            click.echo(words, err=True)

    def on_epoch(record: EpochRecord) -> None:
        parts = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}"
            for name, value in record.validation_parts.items()
            if name in ("cls_accuracy", "seg_iou", "rec_error")
        )
        say(
            f"epoch {record.epoch}: validation loss {record.validation_loss:.4g}; {parts}; "
            f"{record.seconds:.1f} s"
        )

    found = discover(
        opened, boxes, asked, supervised, ModelFolder(folder.child("model")),
        device=device, read_density=_read_density, on_epoch=on_epoch, tell=say,
    )  # fmt: skip
    if found.trained.again:
        say("the network stood already: nothing was trained")
    page = write_discovery(found, folder.url)
    click.echo(json.dumps(found.scores, indent=1) if as_json else as_text(found.scores))
    click.echo(page, err=as_json)
    return 0


def _training(run: Run, settings: tuple[str, ...]) -> SupervisedConfig:
    """Return how to train: what the run says, and what is said besides; nothing is written."""
    from cryoscale.config import apply_settings
    from cryoscale.errors import ConfigurationError

    other = [word for word in settings if not word.strip().startswith("supervised.")]
    if other:
        raise ConfigurationError(
            f"--set {other[0]} is not of the training.", remedy="discover takes keys of [supervised] alone."
        )
    return apply_settings(run.config, list(settings)).supervised


def _file_name(class_name: str) -> str:
    """Return a name for the folder of a class that any file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", class_name).strip(".") or "class"
