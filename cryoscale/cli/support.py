"""`cryoscale support`: what the drives of a run logged; everything for somebody who helps, in one file."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import click


@click.command("support")
@click.argument("run")
@click.option("--to", "target", metavar="FILE", help="Collect a bundle without secrets into this ZIP file.")
@click.option("--last", type=click.IntRange(0), default=5, show_default=True, help="Logs of how many drives.")
@click.option(
    "--secrets",
    metavar="FOLDER",
    envvar="CRYOSCALE_SECRETS",
    help="Secrets of the clusters: looked for, to be sure that none is in the bundle.",
)
@click.option("--stage", default="", metavar="STAGE", help="Only what was logged of this stage.")
@click.option("--tomogram", metavar="NAME", help="Only what was logged of this tomogram.")
@click.option(
    "--level",
    type=click.Choice(["info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Only lines of this level or above.",
)
@click.option("--follow", is_flag=True, help="Go on with what is logged from now on, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Lines as they are stored: one JSON object each.")
def support_command(
    run: str,
    target: str | None,
    last: int,
    secrets: str | None,
    stage: str,
    tomogram: str | None,
    level: str,
    follow: bool,
    as_json: bool,
) -> int:
    """Show what the drives of RUN logged or, with --to, collect what somebody needs who helps."""
    if target is None:
        from cryoscale.data.run import Run
        from cryoscale.pipeline import logs

        question = logs.Question(stage, tomogram, level)
        opened = Run.open(run)
        ask = logs.follow if follow else logs.log_lines
        return _show(ask(opened, question, last=last), as_json=as_json)
    if stage or tomogram is not None or level != "info" or follow or as_json:
        raise click.UsageError(
            "--stage, --tomogram, --level, --follow and --json choose lines; --to takes all."
        )
    from cryoscale.pipeline.support import ALWAYS_LEFT_OUT, make_bundle

    bundle = make_bundle(run, target, last=last, secrets=secrets)
    click.echo(f"{target}, for you alone to read (mode 0600). Look into it before you send it. In it:")
    for name, size in bundle.parts.items():
        click.echo(f"  {name} ({size} bytes)")
    for text in bundle.left_out:
        click.echo(f"left out: {text}")
    for text in ALWAYS_LEFT_OUT:
        click.echo(f"never in it: {text}")
    return 0


def _show(lines: Iterable[dict[str, Any]], *, as_json: bool) -> int:
    from cryoscale.pipeline.logs import in_words

    found = iter(lines)
    first = next(found, None)
    if first is None:
        click.echo("nothing of that is in the logs.", err=True)
        return 0
    try:
        for line in itertools.chain([first], found):
            click.echo(json.dumps(line) if as_json else in_words(line))
    except BrokenPipeError:  # `| head` has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
