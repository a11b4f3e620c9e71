"""`cryoscale cluster`."""

from __future__ import annotations

import click


@click.command("cluster")
def cluster_command() -> int:
    """Not there yet."""
    return 2
