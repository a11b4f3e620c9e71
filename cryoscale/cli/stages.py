"""The verbs of single stages: `run`, up to the one that is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cryoscale.cli.run import drive, execution_options


def _verb(
    name: str, until: str | Callable[[str], str], text: str, *, suggestions: bool = False
) -> click.Command:
    """Make a verb that runs everything up to a stage."""

    def command(run: str, **words: Any) -> int:
        stage = until if isinstance(until, str) else until(run)
        return drive(run, until=stage, **words)

    command.__doc__ = text
    options = execution_options(command)
    if suggestions:
        accept = click.option("--accept-suggestions", is_flag=True, help="Take the suggested selection.")
        options = accept(options)
    return click.command(name)(click.argument("run")(options))


ingest_command = _verb("ingest", "ingest", "Turn the files of RUN into OME-Zarr pyramids.")
pick_command = _verb("pick", "pick", "Find particles in every tomogram of RUN (ingests first what is due).")
encode_command = _verb("encode", "encode", "Encode every pick of RUN (trains first where that is due).")
cluster_command = _verb(
    "cluster", "review", "Cluster the encodings of RUN and make the contact sheets to choose from."
)
segment_command = _verb(
    "segment",
    "instances",
    "Make label volumes of RUN, by clusters or a supervised network, and one row per object.",
    suggestions=True,
)
