"""`cryoscale report`: the static HTML of a run."""

from __future__ import annotations

import click


@click.command("report")
@click.argument("run")
@click.option(
    "--most-tomograms",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    metavar="N",
    help="Tomograms that get a page with pictures, the first by name.",
)
@click.option("--tomogram", "tomograms", multiple=True, metavar="NAME", help="Give this one a page, too.")
def report_command(run: str, most_tomograms: int, tomograms: tuple[str, ...]) -> int:
    """Write RUN/reports, a folder of pages that open from a file share, and print its first page."""
    click.echo(make_report(run, most_tomograms=most_tomograms, tomograms=tomograms))
    return 0


def make_report(
    place: str, *, most_tomograms: int = 50, tomograms: tuple[str, ...] = (), clusters_only: bool = False
) -> str:
    """Write the report of a run and return the path of its first page."""
    from cryoscale.data.run import Run
    from cryoscale.pipeline.order import steps_for
    from cryoscale.report.build import ReportOptions, write_report
    from cryoscale.report.collect import StageName

    run = Run.open(place)
    stages = [StageName(step.name, step.scope == "all") for step in steps_for(run.config)]
    return write_report(run, stages, ReportOptions(most_tomograms, tomograms, clusters_only))
