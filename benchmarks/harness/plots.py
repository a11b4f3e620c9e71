"""Pictures of a report: rates beside peers, and how cost grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import rate
from benchmarks.harness.slopes import slope

COLOURS = {"ours": "#1f6f8b", "peer": "#b0b0b0", "baseline": "#d8c48a", "ceiling": "#e9e2c8"}
WIDE = 20  # rates that differ by more are drawn on a logarithmic axis


def draw_all(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw a picture for each group of cases and one of all slopes; returns what was written."""
    good = [r for r in records if not r.get("failed")]
    written = []
    groups = list(dict.fromkeys(r["case"].split(".")[0] for r in good))
    for group in groups:
        mine = [r for r in good if r["case"].split(".")[0] == group]
        path = folder / f"{group}.png"
        if group == "growth":
            _draw_growth(mine, path)
        else:
            _draw_rates(mine, path)
        written.append(path)
    return written


def _draw_rates(records: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = [[row for row in r["rows"] if row["seconds"]] for r in records]
    heights = [0.34 * len(rows) + 0.9 for rows in shown]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplots(len(records), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, record, rows in zip(axes, records, shown, strict=True):
        rates = [rate(row) for row in rows]
        spread = [[row["work"] / s for s in row["seconds"]] for row in rows]
        errors = [
            [max(0.0, r - min(s)) for r, s in zip(rates, spread, strict=True)],
            [max(0.0, max(s) - r) for r, s in zip(rates, spread, strict=True)],
        ]
        axis.barh(
            range(len(rows)), rates, xerr=errors, color=[COLOURS[row["role"]] for row in rows],
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )  # fmt: skip
        if max(rates) > WIDE * min(rates):  # beside a baseline that does nothing the others would vanish
            axis.set_xscale("log")
            axis.set_xlim(left=min(rates) / 2)
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(record["case"], fontsize=9, loc="left")
        axis.set_xlabel(f"{record['unit']} per second", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        for number, value in enumerate(rates):
            axis.annotate(
                f" {value:.3g}", (rates[number] + errors[1][number], number), va="center", fontsize=8
            )
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _draw_growth(records: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    columns = min(4, len(records))
    lines = -(-len(records) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, record in zip(axes, records, strict=False):
        works = [row["work"] for row in record["rows"]]
        times = [statistics.median(row["seconds"]) for row in record["rows"]]
        for row in record["rows"]:
            axis.plot([row["work"]] * len(row["seconds"]), row["seconds"], ".", color="#9ab8c2", markersize=4)
        middle, low, high = slope(record)
        axis.plot(works, times, "o-", color=COLOURS["ours"], markersize=4)
        axis.plot(works, [times[0] * w / works[0] for w in works], "--", color="#888888", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        name = record["case"].removeprefix("growth.")
        axis.set_title(f"{name}\nslope {middle:.3f} ({low:.2f} to {high:.2f})", fontsize=8)
        axis.set_xlabel(record["unit"], fontsize=8)
        axis.set_ylabel("seconds", fontsize=8)
        axis.tick_params(labelsize=7, which="both")
    for axis in axes[len(records) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)
