"""`cryoscale export`: volumes and positions for other programs."""

from __future__ import annotations

import click


@click.command("export")
@click.argument("run")
@click.option("--labels", is_flag=True, help="Label volumes as MRC, value n is class n.")
@click.option("--picks", is_flag=True, help="Picks as STAR (RELION-5) and CSV.")
@click.option("--instances", is_flag=True, help="Objects of the label volumes as STAR and CSV.")
@click.option("--classes", is_flag=True, help="Picks with what a network says they are, as STAR and CSV.")
@click.option("--probabilities", is_flag=True, help="Probabilities of the classes as MRC, one per class.")
@click.option("--densities", is_flag=True, help="Recovered densities as MRC.")
@click.option("--tomogram", "tomograms", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@click.option("--to", "target", metavar="FOLDER", help="Where to; RUN/exports by default.")
def export_command(run: str, tomograms: tuple[str, ...], target: str | None, **wanted: bool) -> int:
    """Write artifacts of RUN as files of other programs; without a kind, all that are there."""
    from cryoscale.data.run import Run
    from cryoscale.pipeline.export import KINDS, export_run, nothing_exported, usual_kinds

    opened = Run.open(run)
    asked = [kind for kind in KINDS if wanted[kind]]
    exported = export_run(opened, kinds=asked or usual_kinds(opened), tomograms=tomograms, target=target)
    for sentence in exported.missing:
        click.echo(sentence, err=True)
    if not exported.files:
        raise nothing_exported(exported)
    for path in exported.files:
        click.echo(path)
    return 1 if asked and exported.missing else 0
