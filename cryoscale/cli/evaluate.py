"""`cryoscale evaluate`: score a run against what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cryoscale.data.run import Run
    from cryoscale.data.tomogram import Tomogram
    from cryoscale.evaluate.evidence import KnownOf
    from cryoscale.evaluate.known import Known


@click.command("evaluate")
@click.argument("run")
@click.option(
    "--truth",
    help="Positions: CSV, STAR or JSON; {tomogram} stands for the name. Default: what the run itself knows.",
)
@click.option(
    "--radius", "radius_angstrom", type=float, help="Largest distance of a match, Å; default: three voxels."
)
@click.option("--tomogram", "tomograms", multiple=True, help="Only these; default: all with picks.")
@click.option(
    "--structures", is_flag=True, help="Average found particles at true orientations: their resolution."
)
@click.option(
    "--most-particles",
    type=click.IntRange(min=8),
    default=500,
    show_default=True,
    metavar="N",
    help="Particles of a class that are averaged at most.",
)
@click.option(
    "--reach",
    "reach_angstrom",
    type=float,
    help="What is near a true membrane, Å; default: 1.5 times the picked radius.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of random clusters, places and particles.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--to", "folder", help="Write JSON, CSV, plots and a page into this folder.")
def evaluate_command(
    run: str,
    truth: str | None,
    radius_angstrom: float | None,
    tomograms: tuple[str, ...],
    structures: bool,
    most_particles: int,
    reach_angstrom: float | None,
    seed: int,
    as_json: bool,
    folder: str | None,
) -> int:
    """Score picks, clusters, labels, objects and structures, each beside what chance would reach."""
    import json

    from cryoscale.data.run import Run
    from cryoscale.evaluate.evidence import Settings
    from cryoscale.evaluate.run import evaluate_run
    from cryoscale.evaluate.tables import as_text

    opened = Run.open(run)
    settings = Settings(radius_angstrom, seed, structures, most_particles, reach_angstrom)
    names = _tomograms(opened, run, tomograms)
    known_of = _known_of(opened, run, truth, structures=structures)
    if folder:
        _try_to_write(folder)
    report = evaluate_run(opened, known_of, names, settings, read_density=_read_density)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        several = len(report["tomograms"]) > 1
        click.echo(
            "\n\n".join(map(as_text, [*report["tomograms"], *([report["pooled"]] if several else [])]))
        )
    for name, reason in report["failed"].items():
        click.echo(f"cryoscale: {name} was not scored: {reason}", err=True)
    if folder:
        from cryoscale.report.scores import write_scores

        click.echo(write_scores(report, folder), err=as_json)
    return 1 if report["failed"] else 0


def _try_to_write(place: str) -> None:
    """Write and remove a file before the work is done; raises `ConfigurationError` where that cannot be."""
    from cryoscale.data.folder import Folder
    from cryoscale.errors import ConfigurationError

    folder = Folder.of(place)
    try:
        folder.write_bytes(".scores-trial", b"")
        folder.delete(".scores-trial")
    except OSError as error:
        raise ConfigurationError(
            f"scores cannot be written to {place}: {error.strerror or error}.",
            remedy="Give another folder with --to, or mend its permissions or space.",
        ) from error


def _read_density(place: str) -> tuple[Any, float]:
    """Read the map of a density: array (Z, Y, X) and voxel size, Å."""
    from pathlib import Path

    from cryoscale.stages.densities import read_map

    return read_map(Path(place))


def _tomograms(opened: Run, place: str, wanted: tuple[str, ...]) -> list[str]:
    """Return the tomograms to score: those asked for, or all with picks."""
    from cryoscale.errors import ConfigurationError

    names = [n.removesuffix(".parquet") for n in opened.picks.names() if n.endswith(".parquet")]
    unknown = set(wanted) - set(names)
    if unknown or not names:
        raise ConfigurationError(
            f"no picks of {', '.join(sorted(unknown)) or 'any tomogram'} in {place}; there are: "
            f"{', '.join(names) or 'none'}.",
            remedy=f"Make them: cryoscale pick {place}",
        )
    return list(dict.fromkeys(wanted)) or names


def _known_of(opened: Run, place: str, truth: str | None, *, structures: bool) -> KnownOf | None:
    """Return how to learn what is known of a tomogram; None for the run's own truth."""
    from cryoscale.errors import ConfigurationError
    from cryoscale.evaluate.known import has_own_truth, known_from_positions
    from cryoscale.formats.points import read_positions

    if truth is None:
        if not has_own_truth(opened):
            raise ConfigurationError(
                f"{place} holds no truth of its own: its tomograms are not simulated.",
                remedy="Give true positions with --truth.",
            )
        return None
    if structures:
        raise ConfigurationError(
            "--structures needs the true orientations of a simulated run; --truth gives positions only.",
            remedy="Leave one of them out.",
        )

    def read(name: str, tomogram: Tomogram) -> Known:
        base = tomogram.facts.levels[0]
        found = read_positions(
            truth.replace("{tomogram}", name),
            shape=base.shape,
            voxel_size_angstrom=base.voxel_size_angstrom,
            tomogram=name,
        )
        return known_from_positions(found.positions_N3, found.class_N)

    return read
