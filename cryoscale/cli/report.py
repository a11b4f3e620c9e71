"""`cryoscale report`: the static HTML of a run."""

from __future__ import annotations

import errno

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
@click.option("--to", metavar="FOLDER", help="Write here, for example where RUN itself cannot be written.")
def report_command(run: str, most_tomograms: int, tomograms: tuple[str, ...], to: str | None) -> int:
    """Write RUN/reports, a folder of pages that open from a file share, and print its first page."""
    click.echo(make_report(run, most_tomograms=most_tomograms, tomograms=tomograms, to=to))
    return 0


def make_report(
    place: str,
    *,
    most_tomograms: int = 50,
    tomograms: tuple[str, ...] = (),
    clusters_only: bool = False,
    to: str | None = None,
) -> str:
    """Write the report of a run and return the path of its first page.

    Raises
    ------
    SurroundingsError
        The place cannot be written.
    """
    from cryoscale.data.folder import Folder
    from cryoscale.data.run import Run
    from cryoscale.errors import SurroundingsError
    from cryoscale.pipeline.order import steps_for
    from cryoscale.report.build import ReportOptions, write_report
    from cryoscale.report.collect import StageName

    run = Run.open(place)
    stages = [StageName(step.name, step.scope == "all") for step in steps_for(run.config)]
    options = ReportOptions(most_tomograms, tomograms, clusters_only)
    try:
        return write_report(run, stages, options, None if to is None else Folder.of(to))
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
            raise
        raise SurroundingsError(
            f"the report cannot be written to {to or run.folder.path('reports')}: {error.strerror}.",
            remedy="Give another place: --to FOLDER.",
        ) from error
