"""Measure the weak pipeline on simulated cells and write results, pictures and a report.

python -m benchmarks.weak_pipeline OUT --size small
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.weak_pipeline import scores
from benchmarks.weak_pipeline.pictures import draw
from benchmarks.weak_pipeline.runs import SIZES, Size, choose_by_truth, drive, simulated
from benchmarks.weak_pipeline.supervised import train_on_truth
from benchmarks.weak_pipeline.tables import write_tables
from cryoscale.data.run import Run

SNRS = (0.5, 0.1, 0.05, 0.01)
CODES = {
    "paper": ["encoder.code=relu", "encoder.l1=1e-4", "encoder.batch_size=8", "encoder.invariant_weight=0",
              "encoder.augment=false"],
    "code": ["encoder.code=linear", "encoder.l1=0", "encoder.batch_size=16", "encoder.invariant_weight=0",
             "encoder.augment=true"],
    "default": ["encoder.invariant_weight=2"],
}  # fmt: skip
"""Ways to encode; each changes what the one before it left. The last is the default of this version."""


def measure(place: Path, snr: float, size: Size, *, seed: int, settings: list[str]) -> dict[str, Any]:
    """Measure everything at one signal-to-noise ratio."""
    run = simulated(place, snr, size, seed=seed, settings=settings)
    drive(run, until="pick")
    found: dict[str, Any] = {"snr": snr, "seed": seed, "picks": scores.pick_scores(run), "codes": {}}
    for name, changes in CODES.items():
        started = time.perf_counter()
        drive(run, until="assign", settings=changes)
        found["codes"][name] = {
            **scores.cluster_scores(run, seed=seed), "probe": scores.probe_scores(run),
            "dead_units": run.model("encoder").card["metrics"]["dead_code_share"],
            "seconds": time.perf_counter() - started,
        }  # fmt: skip
    found["random"] = scores.random_scores(run, seed=seed)
    found["k"] = scores.k_scores(run, seed=seed)
    found["contacts"] = scores.contact_report(run, seed=seed)
    found["chosen"] = choose_by_truth(run)
    found["labels"] = labels_of(run, place)
    return found


def labels_of(run: Run, place: Path) -> dict[str, Any]:
    """Make label volumes in every way and score them on the other cell."""
    found = {}
    ways = {
        "weak, dense": ["segment.mode=dense", "segment.labels=weak"],
        "weak, picks": ["segment.mode=picks", "segment.labels=weak-picks"],
        "decoded patches": ["segment.mode=decoded", "segment.labels=decoded"],
    }
    for name, settings in ways.items():
        drive(run, until="segment", settings=settings)
        found[name] = scores.label_scores(run, run.config.segment.labels)
    weights = train_on_truth(run, place / "on_truth")
    drive(
        run, until="segment",
        settings=["segment.mode=dense", "segment.labels=supervised", f"segmenter.weights={weights}"],
    )  # fmt: skip
    found["full truth, dense"] = scores.label_scores(run, "supervised")
    return found


def main() -> None:
    """Measure, or only draw what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weak_pipeline", description=__doc__)
    parser.add_argument("out", type=Path, help="a folder for runs and results")
    parser.add_argument("--size", choices=SIZES, default="small", help="full: needs a GPU and hours")
    parser.add_argument("--snr", type=float, nargs="*", default=list(SNRS))
    parser.add_argument("--seed", type=int, nargs="*", default=[1])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--draw-only", action="store_true", help="from results.json as it is")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    results = words.out / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    for snr in [] if words.draw_only else words.snr:
        for seed in words.seed:
            if any((row["snr"], row["seed"]) == (snr, seed) for row in rows):
                continue
            started = time.perf_counter()
            place = words.out / f"snr{snr:g}-seed{seed}"
            row = measure(place, snr, SIZES[words.size], seed=seed, settings=words.settings)
            rows.append({**row, "size": words.size, "seconds": time.perf_counter() - started})
            results.write_text(json.dumps(rows, indent=1))
            print(f"SNR {snr:g}, seed {seed}: {rows[-1]['seconds']:.0f} s", flush=True)
    write_tables(rows, words.out / "tables.md")
    draw(rows, words.out)
    print(f"{words.out / 'tables.md'} and pictures beside it")


if __name__ == "__main__":
    main()
