"""`cryoscale evaluate`: score a run against known positions."""

from __future__ import annotations

from typing import Any

import click


@click.command("evaluate")
@click.argument("run")
@click.option("--truth", required=True, help="Positions: CSV, STAR or JSON; {tomogram} stands for the name.")
@click.option("--radius", "radius_angstrom", type=float, help="Largest distance of a match, Å.")
@click.option("--tomogram", "tomograms", multiple=True, help="Only these; default: all with picks.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random clusters.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_command(
    run: str,
    truth: str,
    radius_angstrom: float | None,
    tomograms: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> int:
    """Match picks one to one with true positions within a radius, and score what clusters add."""
    import json

    from cryoscale.data.run import Run
    from cryoscale.data.tomogram import Tomogram
    from cryoscale.errors import ConfigurationError
    from cryoscale.evaluate.run import evaluate_tomogram
    from cryoscale.formats.points import read_positions

    opened = Run.open(run)
    names = [n.removesuffix(".parquet") for n in opened.picks.names() if n.endswith(".parquet")]
    unknown = set(tomograms) - set(names)
    if unknown or not names:
        raise ConfigurationError(
            f"no picks of {', '.join(sorted(unknown)) or 'any tomogram'} in {run}; there are: {names}.",
            remedy=f"Make them: cryoscale pick {run}",
        )
    results = []
    for name in tomograms or names:
        facts = Tomogram(opened.tomogram(name)).facts
        base = facts.levels[0]
        positions = read_positions(
            truth.replace("{tomogram}", name),
            shape=base.shape,
            voxel_size_angstrom=base.voxel_size_angstrom,
            tomogram=name,
        )
        radius = radius_angstrom or 3 * base.voxel_size_angstrom
        results.append(evaluate_tomogram(opened, name, positions.positions_N3, radius, seed=seed))
    click.echo(json.dumps(results, indent=1) if as_json else "\n\n".join(map(_as_text, results)))
    return 0


def _as_text(scores: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in scores.items():
        label = key.replace("_", " ")
        if isinstance(value, dict):
            lines.append(f"{indent}{label}")
            lines.append(_as_text(value, indent + "  "))
        elif isinstance(value, float):
            lines.append(f"{indent}{label:<28} {value:.3f}")
        else:
            lines.append(f"{indent}{label:<28} {value}")
    return "\n".join(lines)
