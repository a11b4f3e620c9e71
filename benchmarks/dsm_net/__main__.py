"""Train the rows of the papers' tables one by one and report them beside the published numbers.

python -m benchmarks.dsm_net all --size reduced --out build/dsm-net
python -m benchmarks.dsm_net data --size full --densities maps/ --to build/dsm-net/full.npz
python -m benchmarks.dsm_net run --size full --device cuda --data build/dsm-net/full.npz --out build/dsm-net
python -m benchmarks.dsm_net report --size full --out build/dsm-net

`data` and `report` need all of cryoscale, `run` numpy, scipy and torch alone.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.dsm_net.data import make
from benchmarks.dsm_net.rows import all_rows
from benchmarks.dsm_net.sizes import SIZES


def run(words: argparse.Namespace, data: Path) -> int:
    """Train what is not trained yet; returns the number of trainings that failed."""
    from benchmarks.dsm_net.runs import Asked
    from benchmarks.dsm_net.runs import run as train_all
    from cryoscale.learn.hardware import device_of

    device = str(device_of(words.device))
    jobs = words.jobs or (_cores() // words.threads if device == "cpu" else 1)
    return train_all(
        Asked(
            words.size, data, words.out, device, words.threads, words.rows, words.seeds, max(jobs, 1),
            words.minutes,
        )
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return what is understood on the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.dsm_net",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True)
    for verb, told in (
        ("all", "data, run, report"), ("data", "simulate the data sets into one file"),
        ("run", "train what is not trained yet"), ("report", "write report and pictures"),
        ("list", "name the rows, in their order"),
    ):  # fmt: skip
        its = verbs.add_parser(verb, help=told)
        its.add_argument("--size", choices=SIZES, default="reduced")
        its.add_argument(
            "--out", type=Path, default=Path("build/dsm-net"), help="results, examples, checkpoints"
        )
        if verb in ("all", "data"):
            its.add_argument("--densities", default=None, help="folder of maps; without: built-in shapes")
            its.add_argument("--data-seed", type=int, default=1)
        if verb == "data":
            its.add_argument("--to", type=Path, required=True, metavar="FILE.npz")
        if verb == "run":
            its.add_argument("--data", type=Path, required=True, metavar="FILE.npz")
        if verb in ("all", "run"):
            its.add_argument("--device", default="auto")
            its.add_argument("--threads", type=int, default=1, help="of each training, on a processor")
            its.add_argument(
                "--jobs", type=int, default=0, help="trainings at a time; 0: one per core, or one on a GPU"
            )
            its.add_argument("--rows", nargs="*", default=[], metavar="PATTERN", help="such as 'A/*'")
            its.add_argument("--seeds", nargs="*", type=int, default=[])
            its.add_argument("--minutes", type=float, default=0, help="begin no training after so many")
        if verb in ("all", "report"):
            its.add_argument("--to", type=Path, default=None, dest="report", help="the report, FOLDER.md")
    return made


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked for."""
    words = parser().parse_args(arguments)
    if words.verb == "list":
        print(*(row.key for row in all_rows()), sep="\n")
        return 0
    if SIZES[words.size].reduced:
        print(f"REDUCED ({words.size}): these numbers are not those of the papers' setting.", flush=True)
    failures = 0
    if words.verb == "data":
        make(words.to, words.size, densities=words.densities, seed=words.data_seed)
    if words.verb == "run":
        failures = run(words, words.data)
    if words.verb == "all":
        kind = "maps" if words.densities else "shapes"
        data = make(
            words.out / f"{words.size}-{kind}-{words.data_seed}.npz", words.size,
            densities=words.densities, seed=words.data_seed,
        )  # fmt: skip
        failures = run(words, data)
    if words.verb in ("all", "report"):
        from benchmarks.dsm_net.report import write_report

        print(write_report(words.out, words.size, words.report))
    return min(failures, 1)


if __name__ == "__main__":
    raise SystemExit(main())
