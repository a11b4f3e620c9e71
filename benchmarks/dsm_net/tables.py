"""The trainings as tables, next to the published numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.dsm_net.published import AIMS, PUBLISHED, Published
from benchmarks.dsm_net.rows import GROUPS, OWN, Row, all_rows
from benchmarks.dsm_net.sizes import SIZES

Record = dict[str, Any]
ByRow = dict[tuple[str, str], list[Record]]
COLUMNS = ("pixel", "miou", "object")
HEADER = ["method", "pixel accuracy", "mIoU", "object accuracy", "mIoU, pooled", "recovery"]
PAPERS_ORDER = ("DSRF3D-v2", "Cls", "SSN3D-ED", "Seg", "Cls+Rec 1:10", "Cls+Seg 1:10", "DSM-Net")
AT_CHANCE = 2.0  # standard deviations of a share of so many boxes
AT_CHANCE_MIOU = 0.01
CLASSES = 22  # of the papers' A and B
SEEDS = 3  # fewer tell nothing about the spread


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def by_row(records: Sequence[Record]) -> ByRow:
    """Put the seeds of each row together."""
    found: ByRow = {}
    for record in records:
        found.setdefault((record["data"], record["name"]), []).append(record)
    return found


def spread(records: Sequence[Record], key: str) -> str:
    """Return mean and standard deviation over seeds in percent, "-" where there is no such score."""
    values = [100 * r["scores"][key] for r in records if key in r["scores"]]
    if not values:
        return "-"
    sd = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{sd}"


def at_chance(record: Record) -> bool:
    """Tell whether a training learnt nothing that its test boxes show: the papers' "does not converge"."""
    scores, chance = record["scores"], record["chance"]
    verdicts = []
    if "miou" in scores:
        verdicts.append(scores["miou"] <= chance["miou"] + AT_CHANCE_MIOU)
    if "object" in scores:
        p = chance["object"]
        verdicts.append(scores["object"] <= p + AT_CHANCE * (p * (1 - p) / chance["boxes"]) ** 0.5)
    return all(verdicts)


def _published(data: str, name: str) -> list[str]:
    found = PUBLISHED.get((data, name), Published())
    if not found.converged:
        return ["-", "-", "does not converge"]
    return ["-" if v is None else f"{v:.2f}" for v in (found.pixel, found.miou, found.object_)]


def _ours(name: str, records: Sequence[Record]) -> list[str]:
    """Return a row's name and scores."""
    if records and all(at_chance(record) for record in records):
        name += " (no better than chance)"
    return [name, *(spread(records, key) for key in (*COLUMNS, "miou_pooled", "recovery"))]


def _rows(group: str) -> list[Row]:
    return [row for row in all_rows() if group in row.groups]


def papers(found: ByRow) -> str:
    """Return one table for each of A, B and C."""
    words = []
    header = [
        "method", *(f"{h}, published" for h in HEADER[1:4]), *(f"{h}, ours" for h in HEADER[1:4]), *HEADER[4:]
    ]  # fmt: skip
    for data in "ABC":
        mine = {row.name for row in _rows("paper") if row.data == data}
        lines = []
        for name in (name for name in PAPERS_ORDER if name in mine):
            title, *scores = _ours(name, found.get((data, name), []))
            lines.append([title, *_published(data, name), *scores])
        words += [f"## {data}: the papers' rows, published and ours", "", table(header, lines)]
    words.append("Recovery is the mean correlation of a test box's recovered density with its truth.\n")
    return "\n".join(words)


def densities(record: Record) -> str:
    """Return "maps" or "built-in shapes": what played the parts."""
    facts = record["facts"]
    return str(facts.get("densities") or "not recorded")


def shortfalls(records: Sequence[Record]) -> list[str]:
    """Say why numbers cannot be held against the published ones; empty: they can."""
    sizes = sorted({r["size"] for r in records if SIZES[r["size"]].reduced})
    kinds = {densities(r) for r in records} - {"maps"}
    counts = {len(r["facts"]["classes"]) for r in records if r["data"] != "C"} - {CLASSES}
    return [
        *(f"size {size}" for size in sizes), *(f"{kind} instead of maps" for kind in sorted(kinds)),
        *(f"{count} classes instead of {CLASSES}" for count in sorted(counts)),
    ]  # fmt: skip


def aims(found: ByRow) -> str:
    """Say how one network per data set, chosen by validation, stands to the published DSM-Net."""
    words = ["## The aim", ""]
    for data, aim in AIMS.items():
        # A network is judged on both numbers, so it needs both heads.
        rows = {
            name: its
            for (of, name), its in found.items()
            if of == data and not its[0]["left_out"] and {"miou", "object"} <= its[0]["scores"].keys()
        }
        if rows:
            words += _aim(data, rows, dict(zip(("miou", "object"), aim, strict=True)))
    return "\n".join([*words, ""])


def _aim(data: str, rows: dict[str, list[Record]], aim: dict[str, float]) -> list[str]:
    """Return the lines of one data set."""
    by_validation = all(aim.keys() <= r.get("validation", {}).keys() for its in rows.values() for r in its)
    source = "validation" if by_validation else "scores"

    def merit(name: str) -> float:
        return statistics.mean(r[source][key] for r in rows[name] for key in aim)

    name = max(rows, key=merit)
    its = rows[name]
    how = (
        f"the best of {len(rows)} rows by the mean of mIoU and object accuracy of the boxes validated on"
        if by_validation
        else f"best of {len(rows)} rows on the test split, which flatters"
    )
    short = shortfalls(its)
    lines = [f"- {data}: {name}, {how}; both numbers are of this one network's test boxes."]
    for key, told in (("miou", "mIoU"), ("object", "object accuracy")):
        said = f"no verdict: {', '.join(short)}" if short else _verdict(its, key, aim[key])
        lines.append(f"    - {told}: published {aim[key]:.2f}; here {spread(its, key)}; {said}.")
    return lines


def _verdict(records: Sequence[Record], key: str, aim: float) -> str:
    """Compare a row with a published number; "reached" wants the spread of several seeds above it."""
    values = [100 * r["scores"][key] for r in records]
    mean, n = statistics.mean(values), len(values)
    if n >= SEEDS and mean - statistics.stdev(values) > aim:
        return f"**reached**: mean less standard deviation is above it, {n} seeds"
    seeds = "one seed" if n == 1 else f"{n} seeds"
    return f"{'above' if mean > aim else 'not above'} the published number, {seeds}"


def _ratios(found: ByRow) -> str:
    lines = []
    for row in sorted(_rows("ratios"), key=lambda row: row.name):
        title, *scores = _ours(row.name, found.get((row.data, row.name), []))
        lines.append([title, *_published(row.data, row.name), *scores[:3]])
    header = ["A", *(f"{h}, published" for h in HEADER[1:4]), *(f"{h}, ours" for h in HEADER[1:4])]
    return table(header, lines)


def _fcn(found: ByRow) -> str:
    lines = []
    for data, snr in (("D", "0.5"), ("A", "0.06"), ("B", "0.01")):
        scores = [
            spread(found.get((data, name), []), key)
            for name in (OWN, "SSN3D-FCN") for key in ("miou", "pixel")
        ]  # fmt: skip
        lines.append([snr, *scores])
    told = "The paper on SSN3D-ED claims that it is better than the baseline, at these ratios among others."
    return table(["SNR", "ED: mIoU", "ED: pixel", "FCN: mIoU", "FCN: pixel"], lines) + f"\n{told}\n"


def _left_out(found: ByRow) -> str:
    lines: list[list[str]] = []
    left: list[str] = []
    for row in _rows("left-out"):
        name = row.name.removesuffix(", left out")
        name = OWN if name == "SSN3D-ED" else name  # by the same recipe
        unseen = found.get((row.data, row.name), [])
        left = unseen[0]["left_out"] if unseen else left
        seen = []
        for record in found.get((row.data, name), []):
            values = [v for k, v in record["scores"]["miou_by_class"].items() if k in left]
            seen += [{"scores": {"miou": statistics.mean(values)}}] if values else []
        lines.append([name, spread(unseen, "miou"), spread(unseen, "pixel"), spread(seen, "miou")])
    header = ["A", "unseen classes: mIoU", "pixel accuracy", "the same classes when trained on: mIoU"]
    told = f"\nLeft out of training and validation, all their boxes tested on: {', '.join(left)}.\n"
    return table(header, lines) + (told if left else "")


def _improved(found: ByRow) -> str:
    from cryoscale.learn.recipes import IMPROVEMENTS

    words = [_beside(found, "improved", ("DSM-Net", "SSN3D-ED"))]
    words += [f"- {name}: {told}." for name, told in IMPROVEMENTS.items()]
    rises = {
        f"{r['settings']['warmup_epochs']} of {r['settings']['epochs']}"
        for its in found.values() for r in its if r["settings"]["schedule"] == "cosine"
    }  # fmt: skip
    words += [f"- The learning rate rose over {' or '.join(sorted(rises))} epochs here."] if rises else []
    return "\n".join([*words, "- all: all of these. Rows without a mark are the papers' recipes.", ""])


def _plain(found: ByRow) -> str:
    return _beside(found, "plain", ("SSN3D-ED", "Seg", "DSM-Net"))


def _beside(found: ByRow, group: str, others: Sequence[str]) -> str:
    """Return the rows of a group below others of the same data, with what they cost."""
    lines = []
    for data in "AB":
        for name in (*others, *(row.name for row in _rows(group) if row.data == data)):
            mine = found.get((data, name), [])
            seconds = f"{statistics.mean(r['seconds'] for r in mine):.0f}" if mine else "-"
            parameters = f"{mine[0]['parameters']:,}" if mine else "-"
            lines.append([data, *_ours(name, mine), parameters, seconds])
    return table(["data", *HEADER, "parameters", "seconds"], lines)


OF_GROUP = {"ratios": _ratios, "fcn": _fcn, "left-out": _left_out, "improved": _improved, "plain": _plain}


def groups(found: ByRow) -> str:
    """Return what is measured besides the papers' rows."""
    words = []
    for group, function in OF_GROUP.items():
        words += [f"## {GROUPS[group]}", "", function(found)]
    return "\n".join(words)


def trainings(records: Sequence[Record]) -> str:
    """Return a line for each training."""
    lines = []
    for r in records:
        s = r["settings"]
        weights = " : ".join(f"{head} {weight:g}" for head, weight in r["weights"].items())
        how = [s["optimiser"], f"{s['learning_rate']:g}", str(s["batch_size"]), weights]
        ended = [str(r["epochs"]), str(r["best_epoch"]), r["stopped"], f"{r['seconds']:.0f}"]
        lines.append([r["data"], r["name"], str(r["seed"]), f"{r['parameters']:,}", *ended, *how])
    header = [
        "data", "method", "seed", "parameters", "epochs", "best", "ended by", "seconds", "optimiser", "rate",
        "batch", "loss weights",
    ]  # fmt: skip
    return table(header, lines)


def missing(found: ByRow) -> str:
    """Name the rows that were not trained yet."""
    lacking = [row.key for row in all_rows() if (row.data, row.name) not in found]
    return f"Not trained yet: {'; '.join(lacking)}.\n" if lacking else "All rows were trained.\n"
