"""`cryoscale review`: look at the clusters and choose."""

from __future__ import annotations

import shlex

import click


@click.command("review")
@click.argument("run")
@click.option("--accept-suggestions", is_flag=True, help="Take the suggested selection of clusters.")
def review_command(run: str, accept_suggestions: bool) -> int:
    """Make the page of RUN's clusters and a selection to edit, or take the suggested one."""
    from cryoscale.cli.report import make_report
    from cryoscale.data.clusters import SELECTION
    from cryoscale.data.run import Run
    from cryoscale.report import selection
    from cryoscale.report.collect import read_choice

    opened = Run.open(run)
    choice = read_choice(opened)
    place = opened.clusters.folder.path(SELECTION)
    if accept_suggestions:
        changed = selection.accept_suggestion(opened, choice)
        click.echo(
            f"{place}: " + ("holds the suggestion now." if changed else "held the suggestion already.")
        )
    else:
        fresh = selection.write_template(opened, choice)
    make_report(run, clusters_only=True)
    click.echo(f"look at   {opened.folder.path('reports/clusters.html')}")
    if not accept_suggestions:
        click.echo(f"edit      {place}" + (" (new; it explains itself)" if fresh else _standing(choice)))
    click.echo(f"then      cryoscale run {shlex.quote(run)}")
    return 0


def _standing(choice: object) -> str:
    """Say in brackets what stands in a selection that was there already."""
    from cryoscale.report.collect import Choice

    assert isinstance(choice, Choice)
    if choice.problem:
        return f"\n          it cannot be read: {choice.problem}"
    if choice.selection is None:
        return " (it chooses nothing yet)"
    if not choice.valid:
        return " (made for another clustering: choose again; clusters/suggestion.toml has its hash)"
    return f" (it chooses {', '.join(choice.selection.class_names)})"
