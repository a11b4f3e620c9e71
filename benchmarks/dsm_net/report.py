"""From trainings to a dated report: tables beside the published numbers, pictures, what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.dsm_net import tables
from benchmarks.dsm_net.published import ABOUT_THE_PAPER
from benchmarks.dsm_net.rows import all_rows
from benchmarks.dsm_net.sizes import SIZES, Size
from benchmarks.harness import results

Record = dict[str, Any]
KEPT = "trainings.jsonl"


def write_report(out: Path, size: str, to: Path | None = None) -> Path:
    """Write `<to>.md`, and into the folder `to` pictures and the records it was made of, without curves.

    Parameters
    ----------
    out : Path
        Where `results.jsonl` and `examples` are.
    size : str
        Other sizes in the same file are left out.
    to : Path, optional
        `out/report-<size>` without it. `notes.md` in it stands before the tables: what the numbers mean.
    """
    from benchmarks.dsm_net.pictures import draw
    from benchmarks.dsm_net.train import validated

    folder = to or out / f"report-{size}"
    known = results.read(out / "results.jsonl")
    records = [{**record, "validation": validated(record)} for record in latest(known, size)]
    if not records:
        raise SystemExit(f"{out / 'results.jsonl'} has no training of size {size} yet")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEPT).unlink(missing_ok=True)
    for record in records:
        results.append(folder / KEPT, {key: value for key, value in record.items() if key != "history"})
    for old in folder.glob("*.png"):
        old.unlink()
    notes = folder / "notes.md"
    words = [title(records), "", *([notes.read_text().strip(), ""] if notes.exists() else []), body(records)]
    words += [*failures(known, records, size), "## Pictures", ""]
    for path, told in draw(records, out / "examples", folder):
        words += [told, "", f"![{path.stem}]({folder.name}/{path.name})", ""]
    report = folder.with_name(f"{folder.name}.md")
    report.write_text("\n".join(words).rstrip() + "\n")
    return report


def latest(records: Sequence[Record], size: str) -> list[Record]:
    """Return the last training of each row and seed that ended well, in the order of the rows.

    Where boxes were made anew, those on earlier ones are left out.
    """
    ended = [r for r in records if r["size"] == size and not r.get("failed")]
    boxes = {r["data"]: r["facts"]["id"] for r in ended}
    last = {(r["data"], r["name"], r["seed"]): r for r in ended if r["facts"]["id"] == boxes[r["data"]]}
    order = {(row.data, row.name): place for place, row in enumerate(all_rows())}
    known = [key for key in last if key[:2] in order]
    return [last[key] for key in sorted(known, key=lambda key: (order[key[:2]], key[2]))]


def failures(known: Sequence[Record], records: Sequence[Record], size: str) -> list[str]:
    """Name the trainings that failed and did not end well later."""
    well = {(r["data"], r["name"], r["seed"]) for r in records}
    failed = {
        (r["data"], r["name"], r["seed"]): r["failed"] for r in known if r["size"] == size and r.get("failed")
    }
    return [
        f"- Failed: {d}/{n}, seed {s}: {why}\n" for (d, n, s), why in failed.items() if (d, n, s) not in well
    ]


def title(records: Sequence[Record]) -> str:
    """Return the first line: it says whether size, densities and classes are those of the papers."""
    size, short = records[0]["size"], tables.shortfalls(records)
    more = [words for words in short if words != f"size {size}"]
    what = f"REDUCED ({', '.join([size, *more])}), not comparable with the papers" if short else "full size"
    return f"# The tables of SSN3D-ED and DSM-Net: {what}"


def body(records: Sequence[Record]) -> str:
    """Return all that the numbers alone say, as Markdown."""
    size, found = SIZES[records[0]["size"]], tables.by_row(records)
    return "\n".join([
        _measured(records), "## Data", "", _data(records), "## What differs from the papers", "",
        _differences(size, records), tables.papers(found), tables.aims(found),
        tables.groups(found), "## Every training", "", tables.trainings(records), tables.missing(found),
    ])  # fmt: skip


def _measured(records: Sequence[Record]) -> str:
    dates = sorted({record["date"][:10] for record in records})
    seeds = sorted({record["seed"] for record in records})
    minutes = sum(record["seconds"] for record in records) / 60
    lines = [
        f"{len(records)} trainings, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {minutes:.0f} minutes of training. "
        "Scores are of boxes that no training saw, in percent; with several seeds mean ± standard "
        "deviation. mIoU is the papers': of each label in each box, averaged over boxes, then over labels; "
        "pooled is over all voxels at once.",
        "",
    ]
    machines = {json.dumps([r["machine"], r["device"], r["precision"]], sort_keys=True): r for r in records}
    for record in machines.values():
        m, threads = record["machine"], record["settings"]["threads"]
        cpu = record["device"] == "cpu"
        hardware = f"{m['processor']}, {threads} thread{'s' * (threads > 1)}" if cpu else m["gpu"]
        versions = [f"{p} {m['versions'][p]}" for p in ("torch", "numpy", "monai") if p in m["versions"]]
        lines.append(
            f"- {hardware}, {record['precision']}; {m['system']}, Python {m['python']}, "
            f"{', '.join(versions)}; commit {m['commit'] or 'unknown'}."
        )
    size = records[0]["size"]
    return "\n".join([*lines, "", f"`make bench-dsm-net SIZE={size}` makes it, and goes on if stopped.", ""])


def _data(records: Sequence[Record]) -> str:
    lines = []
    for name in "ABCD":
        mine = [r for r in records if r["data"] == name and not r["left_out"]]
        if not mine:
            continue
        facts, chance, boxes = mine[0]["facts"], mine[0]["chance"], mine[0]["boxes"]
        counts = " + ".join(str(boxes[part]) for part in ("train", "validation", "test"))
        lines.append([
            name, facts["recipe"], str(len(facts["classes"])), f"{counts} of {facts['side']}³ voxels",
            f"{facts['voxel_size_angstrom'] / 10:g} nm", f"{facts['snr']:g}, {facts['realised_snr']:.4f}",
            f"{100 * facts['object_share']:.1f} %",
            ", ".join(f"{100 * chance[key]:.2f}" for key in tables.COLUMNS),
        ])  # fmt: skip
    header = [
        "data", "recipe", "classes", "boxes", "voxel", "SNR asked, realised", "of a box in the object",
        "chance: pixel, mIoU, object",
    ]  # fmt: skip
    words = [
        tables.table(header, lines),
        "Boxes are those to train on, to validate on and to test on. Chance is background everywhere, and "
        "the class most frequent in training.", "",
    ]  # fmt: skip
    told: dict[str, list[str]] = {}
    for name, classes in sorted({r["data"]: ", ".join(r["facts"]["classes"]) for r in records}.items()):
        told.setdefault(classes, []).append(name)
    words += [f"- Classes of {', '.join(names)}: {classes}." for classes, names in told.items()]
    return "\n".join([*words, ""])


def _differences(size: Size, records: Sequence[Record]) -> str:
    lines = [f"- {words}" for words in ABOUT_THE_PAPER]
    facts = next((r["facts"] for r in records if r["data"] != "C"), records[0]["facts"])
    shapes = tables.densities({"facts": facts}) != "maps"
    parts = "built-in shapes" if shapes else "maps, of the same families as far as there are such"
    lines.append(f"- The parts of the papers' 22 structures are played by {len(facts['classes'])} {parts}.")
    if size.reduced:
        settings = records[0]["settings"]
        lines.append(
            f"- **Reduced:** {facts['boxes']} boxes of {facts['side']}³ voxels of "
            f"{facts['voxel_size_angstrom'] / 10:g} nm, binned by {facts['binning']} (the SNR is that before "
            f"it); networks {size.channels} channels wide instead of 32 (our U-Net half of that), "
            f"{size.features} features instead of 1024; at most {settings['epochs']} epochs, patience "
            f"{settings['patience']}, batches of {settings['batch_size']}, for all rows alike. Few trainings "
            "have converged by then: the rows say what learns fast, not what is best in the end."
        )
    return "\n".join([*lines, ""])
