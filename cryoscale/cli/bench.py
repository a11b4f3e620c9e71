"""`cryoscale bench`: how fast this machine takes your tomogram through every stage."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("bench")
@click.argument("tomogram", required=False, type=click.Path(path_type=Path))
@click.option("--piece", type=click.FloatRange(1, 2000), default=64.0, show_default=True,
              help="How much of the tomogram is tried, million voxels.")  # fmt: skip
@click.option("--voxel-size", type=float, help="Voxel size in ångström, instead of what the header says.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=None,
              help="Where runs would lie: its disk is measured. Default: the working folder.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="As for `init`.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def bench_command(
    tomogram: Path | None,
    piece: float,
    voxel_size: float | None,
    folder: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> int:
    """Time every stage on a piece of TOMOGRAM (an MRC file; a simulated cell without one).

    It says what bounds each stage and what to change. Nothing is left behind. A few minutes.
    """
    import json
    import tempfile

    from cryoscale.errors import ConfigurationError
    from cryoscale.pipeline.advice import as_record, as_text
    from cryoscale.pipeline.throughput import try_out
    from cryoscale.runtime.ceilings import measure_ceilings

    if tomogram is not None and not tomogram.is_file():
        raise ConfigurationError(f"there is no file {tomogram}.", remedy="Give an MRC file, or none.")
    where = folder or Path.cwd()
    click.echo("measuring disk, memory and processor …", err=True)
    ceilings = measure_ceilings(where)
    with tempfile.TemporaryDirectory(prefix="cryoscale-bench-", dir=where) as place:
        click.echo("one trial run through every stage …", err=True)
        trial = try_out(
            Path(place), tomogram, list(settings), voxels=round(piece * 1e6), voxel_size=voxel_size
        )
    click.echo(json.dumps(as_record(trial, ceilings), indent=1) if as_json else as_text(trial, ceilings))
    return 1 if trial.failures else 0
