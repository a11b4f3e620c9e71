"""Train each network on drawn labels, score it where nothing was drawn, and write a report.

python -m benchmarks.annotation_2d build/annotation-2d --size small --masks FOLDER
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.annotation_2d import cells, crops
from benchmarks.annotation_2d.pictures import draw
from benchmarks.annotation_2d.sizes import SIZES, Size
from benchmarks.annotation_2d.tables import write_report
from benchmarks.harness.machine import describe

Row = Callable[[], dict[str, Any]]


def rows_of(place: Path, size: Size, masks: Path | None, seed: int) -> list[tuple[dict[str, Any], Row]]:
    """List all rows with what identifies each, in the order in which they are measured."""
    scene = cells.scene_of(size, seed)
    drawn = [
        (_key("cells", name, settings=[*scene, *words]), partial(_supervised, place, name, size, seed))
        for name, words in size.cells.items()
    ]
    weak = [
        (_key("cells", name, settings=scene), partial(_weak, place, name, size, seed)) for name in cells.WEAK
    ]
    hashed = crops.hash_of(masks) if masks is not None else ""
    real = [
        (
            _key("crops", name, fitted, settings=[size.box, seed, *size.crops[name]], masks=hashed),
            partial(_crop, place, masks, hashed, name, fitted, size, seed),
        )
        for name in (size.crops if masks is not None else ())
        for fitted in crops.DIRECTIONS
        if masks is not None
    ]
    return [*drawn, *weak, *real]


def _key(part: str, row: str, direction: str = "", *, settings: Any, masks: str = "") -> dict[str, Any]:
    hashed = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return {"part": part, "row": row, "direction": direction, "settings": hashed, "masks": masks}


def _supervised(place: Path, name: str, size: Size, seed: int) -> dict[str, Any]:
    return cells.supervised_row(cells.open_cells(place / "cells", size, seed=seed), place, name, size)


def _weak(place: Path, name: str, size: Size, seed: int) -> dict[str, Any]:
    return cells.weak_row(cells.open_cells(place / "weak-cells", size, seed=seed), name)


def _crop(
    place: Path, masks: Path, hashed: str, name: str, fitted: str, size: Size, seed: int
) -> dict[str, Any]:
    run = crops.open_crops(place / "crops", masks, size, seed=seed, hashed=hashed)
    return crops.crop_row(run, place / "crops", name, fitted, size)


def measure(place: Path, size: str, masks: Path | None, seed: int) -> dict[str, Any]:
    """Measure the rows that are not there yet, one after the other; each is kept as soon as it is done.

    A row that stands there with other settings, or on other masks, is measured again and replaced. Each keeps
    the machine, the commit and the day of its own.
    """
    place.mkdir(parents=True, exist_ok=True)
    results = place / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {"rows": []}
    if found["rows"] and (found["size"], found["seed"]) != (size, seed):
        raise SystemExit(
            f"{results} is of size {found['size']} and seed {found['seed']}: choose another folder."
        )
    if not all("settings" in row for row in found["rows"]):
        raise SystemExit(f"{results} does not say how its rows were measured: choose another folder.")
    found = {"size": size, "seed": seed, "rows": found["rows"]}
    machine = describe()
    for key, row in rows_of(place, SIZES[size], masks, seed):
        if any(key.items() <= other.items() for other in found["rows"]):
            continue
        started = time.perf_counter()
        where = {"machine": machine, "date": str(datetime.date.today()), "size": size, "seed": seed}
        measured = {**key, **where, **row()}
        same = ("part", "row", "direction")
        kept = [other for other in found["rows"] if any(other[word] != key[word] for word in same)]
        found["rows"] = [*kept, measured]
        results.write_text(json.dumps(found, indent=1) + "\n")
        last = found["rows"][-1]
        told = " ".join(key[word] for word in same if key[word])
        print(f"{told}: mean F1 {last['mean_f1']:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    return found


def report(found: dict[str, Any], place: Path, to: Path) -> Path:
    """Write the report, its pictures and results."""
    beside = to.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    if (place / "notes.md").exists():
        shutil.copy(place / "notes.md", beside / "notes.md")
    notes = beside / "notes.md"
    pictures = draw(found["rows"], place, beside)
    write_report(found, to, pictures, notes.read_text() if notes.exists() else "")
    return to


def main(words: list[str] | None = None) -> None:
    """Measure what is not measured yet, then write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.annotation_2d", description=__doc__)
    parser.add_argument("out", type=Path, help="a folder for runs and results")
    parser.add_argument("--size", choices=SIZES, default="small", help="full: needs a GPU and hours")
    parser.add_argument("--masks", type=Path, help="a folder with two <name>.tif and <name>_mask.tif")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to", type=Path, help="the report, a .md file; its pictures go beside it")
    parser.add_argument("--report-only", action="store_true", help="from results.json as it is")
    asked = parser.parse_args(words)
    place = asked.out.absolute()
    if asked.report_only:
        found = json.loads((place / "results.json").read_text())
    else:
        found = measure(place, asked.size, asked.masks and asked.masks.absolute(), asked.seed)
    print(report(found, place, asked.to or place / "report.md"))


if __name__ == "__main__":
    main()
