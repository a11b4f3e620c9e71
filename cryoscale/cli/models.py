"""`cryoscale models`: the networks."""

from __future__ import annotations

import json

import click


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def models_command(as_json: bool) -> int:
    """List the networks: box, number of parameters, what they are for, and where they come from."""
    from cryoscale.models.registry import describe

    rows = describe()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        box = " x ".join(map(str, row["box"])) if row["box"] else "any that divides by 4"
        settings = ", ".join(f"{key} {value}" for key, value in row["example"].items() if key != "name")
        click.echo(f"{row['name']}: {row['purpose']}")
        click.echo(f"  box {box}; {row['parameters']:,} parameters ({settings})")
        click.echo(f"  source: {row['source']}")
    return 0
