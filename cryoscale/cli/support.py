"""`cryoscale support`."""

from __future__ import annotations

import click


@click.command("support")
def support_command() -> int:
    """Not there yet."""
    return 2
