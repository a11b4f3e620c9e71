"""`cryoscale models`: the networks."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def models_command(as_json: bool) -> int:
    """List the networks: what they take and give, parameters, what they are for, and where they come from."""
    from cryoscale.models.registry import describe

    rows = describe()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        kind = f"{row['dimensions']}D, gives {', '.join(row['heads']) or 'codes'}"
        settings = ", ".join(
            f"{key} {_words(value)}" for key, value in row["example"].items() if key != "name"
        )
        click.echo(f"{row['name']}: {row['purpose']}")
        click.echo(f"  {kind}; {_box(row)}; {row['parameters']:,} parameters ({settings})")
        click.echo(f"  source: {row['source']}")
    return 0


def _box(row: dict[str, Any]) -> str:
    if row["box"]:
        return f"box {_words(row['box'])}"
    divisor = row["sides_divide_by"]
    box = "any box" if divisor == 1 else f"any box that divides by {divisor}"
    return (
        box if row["halo"] is None else f"{box}, tiles of {row['alignment']} n with a halo of {row['halo']}"
    )


def _words(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return (" x " if all(isinstance(item, int) for item in value) else "+").join(map(str, value))
