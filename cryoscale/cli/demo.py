"""`cryoscale demo`: simulated cells through every stage, scored against their truth."""

from __future__ import annotations

from typing import Any

import click

from cryoscale.cli.run import execution_options


@click.command("demo")
@click.option("--out", default="demo", show_default=True, help="Folder to make.")
@click.option("--cells", "n_cells", type=click.IntRange(2, 20), default=3, show_default=True,
              help="How many cells to simulate; clusters are chosen on the first.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the simulation.")
@execution_options
def demo_command(out: str, n_cells: int, seed: int, **words: Any) -> int:
    """Make small simulated cells, take them through every stage, and score the result against the truth."""
    import json
    import time
    from pathlib import Path

    from cryoscale.cli.run import drive
    from cryoscale.data.run import Run
    from cryoscale.pipeline import demo
    from cryoscale.pipeline.setup import add_inputs, initial_config, write_run

    started = time.monotonic()
    folder = Path(out)
    place = str(folder / "run")
    click.echo(f"simulating {n_cells} cells …")
    cells = demo.write_cells(folder / "tomograms", n_cells, seed)
    config, _ = add_inputs(initial_config(place, demo.SETTINGS), [str(folder / "tomograms" / "*.mrc")])
    write_run(place, config)
    code = drive(place, until="review", **words)
    if code == 0:
        selection = demo.choose_by_truth(Run.open(place), "cell1", cells["cell1"])
        click.echo(f"chose {sum(len(c) for _, c in selection.classes)} clusters by the truth of cell1")
        code = drive(place, **words)
    if code != 0:
        return code
    scores = demo.score_cells(Run.open(place), cells, "cell1")
    (folder / "scores.json").write_text(json.dumps(scores, indent=1))
    click.echo(demo.as_text(scores))
    click.echo(_what_was_made(folder, place, time.monotonic() - started))
    return 0


def _what_was_made(folder: Any, place: str, seconds: float) -> str:
    from cryoscale.cli.report import make_report

    index = make_report(place)
    return (
        f"\nin {seconds:.0f} s. Tomograms: {folder}/tomograms/*.mrc\nLabel volumes: "
        f"{place}/tomograms/<name>.ome.zarr/labels/classes\nPicks of single objects: {place}/instances/\n"
        f"Scores: {folder}/scores.json\nReport: {index}"
    )
