"""`cryoscale simulate`: tomograms with known truth, as a run."""

from __future__ import annotations

from typing import Any

import click

from cryoscale.cli.run import execution_options

WORDS = ("structures", "recipes")
"""Words that are verbs of their own, and so no name for a run here."""


class _OrWord(click.Command):
    """`simulate OUT …` simulates; `simulate structures …` and `simulate recipes` are verbs below it."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Take the first word as a verb if it is one, and as the name of a run otherwise."""
        if args and args[0] in WORDS:
            word = args[0]
            return verb_below(word).make_context(f"{info_name} {word}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def verb_below(word: str) -> click.Command:
    """Import and return a verb below `simulate`."""
    if word == "recipes":
        return recipes_command
    from cryoscale.cli.simulate_structures import structures_command

    return structures_command


@click.command("simulate", cls=_OrWord)
@click.argument("out")
@click.option("--recipe", metavar="NAME", help="What to simulate; `cryoscale simulate recipes` lists them.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of all chance; 0 by default.", metavar="N")
@click.option("--tomograms", type=int, metavar="N", help="How many of each variant.")
@click.option("--snr", type=float, help="Signal-to-noise ratio, in place of the recipe's.")
@click.option("--densities", multiple=True, metavar="FOLDER", help="Where maps and structures are.")
@click.option("--structures", type=click.Choice(["stand-in", "paper"]), default="stand-in", show_default=True,
              help="Which densities play the parts of a paper's.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Write a parameter.")
@execution_options
def simulate_command(
    out: str,
    recipe: str | None,
    seed: int | None,
    tomograms: int | None,
    snr: float | None,
    densities: tuple[str, ...],
    structures: str,
    settings: tuple[str, ...],
    **words: Any,
) -> int:
    """Simulate tomograms with known truth into the run OUT; given again, it goes on where it was.

    Below it: `cryoscale simulate recipes` lists recipes, `cryoscale simulate structures 1KP8` downloads.
    """
    from cryoscale.cli.run import drive
    from cryoscale.pipeline.simulation import set_up_simulation

    config = set_up_simulation(
        out, recipe, seed=seed, tomograms=tomograms, snr=snr, densities=densities,
        structures=structures, settings=list(settings),
    )  # fmt: skip
    count, simulate = len(config.inputs), config.simulate
    assert simulate is not None
    click.echo(f"{out}: {count} simulated tomogram{'s' * (count > 1)}, seed {simulate.seed}")
    last = "subtomograms" if simulate.subtomograms else "truth_labels"
    code = drive(out, until=last, **words)
    if code == 0:
        click.echo(f"done. Next: cryoscale run {out}, then cryoscale evaluate {out}")
    return code


@click.command("recipes")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recipes_command(as_json: bool) -> int:
    """List the recipes, and which densities stand in for the papers' structures."""
    import json

    from cryoscale.simulate.recipes import STAND_INS, describe

    rows = describe()
    if as_json:
        click.echo(json.dumps({"recipes": rows, "stand_ins": STAND_INS}, indent=1))
        return 0
    for row in rows:
        z, y, x = row["shape"]
        click.echo(
            f"{row['name']:<12}{x} x {y} x {z} voxels of {row['voxel_size_angstrom']:g} Å, "
            f"{row['copies']} copies of {row['classes']} classes, SNR {row['snr']:g}"
        )
    click.echo("\nin place of the papers' structures stand, unless you give --structures paper:")
    for name, (stand_in, why) in STAND_INS.items():
        click.echo(f"  {name:<6}{stand_in:<6}{why}")
    return 0
