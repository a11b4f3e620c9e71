"""`cryoscale engine`."""

from __future__ import annotations

import click


@click.command("engine")
def engine_command() -> int:
    """Not there yet."""
    return 2
