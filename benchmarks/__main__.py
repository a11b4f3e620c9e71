"""Run, report and compare benchmarks: `python -m benchmarks run --size small`, `… report`, `… compare`."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import children, results
from benchmarks.harness.case import Case, all_cases
from benchmarks.harness.machine import describe

ROOT = Path(__file__).parents[1]


def chosen(patterns: list[str], device: str) -> list[Case]:
    """Return the cases whose names fit, for a device; an unknown name is an error."""
    cases = list(all_cases())
    for pattern in patterns:
        if not any(fnmatch.fnmatch(case.name, pattern) for case in cases):
            raise SystemExit(f"no case is called {pattern!r}; `python -m benchmarks list` names them all")
    wanted = [c for c in cases if not patterns or any(fnmatch.fnmatch(c.name, p) for p in patterns)]
    return [case for case in wanted if device in ("all", case.device)]


def run(words: argparse.Namespace) -> int:
    """Measure what is not measured yet, one case after the other; returns the number of failures."""
    machine, failures = describe(), 0
    path = words.out / "results.jsonl"
    for case in chosen(words.case, words.device):
        if not words.again and results.is_done(results.read(path), case.name, words.size, machine):
            print(f"{case.name}: measured before", flush=True)
            continue
        started = time.perf_counter()
        record = children.run_case(case.name, words.size, case.threads, ROOT, words.scratch)
        record["machine"] = machine
        record["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        results.append(path, record)
        failures += bool(record.get("failed"))
        told = f"FAILED: {record['failed']}" if record.get("failed") else "done"
        print(f"{case.name}: {told} ({time.perf_counter() - started:.0f} s)", flush=True)
        if record.get("words"):
            print(record["words"], file=sys.stderr, flush=True)
    return failures


def one(words: argparse.Namespace) -> int:
    """Measure one case in this process; what `run` starts as a child."""
    children.pin(words.threads)
    from benchmarks.harness.measure import measure

    (case,) = (c for c in all_cases() if c.name == words.name)
    words.record.write_text(json.dumps(measure(case, words.size, words.scratch)))
    return 0


def report(words: argparse.Namespace) -> int:
    """Write tables and pictures of what was measured."""
    from benchmarks.harness.report import write_report

    print(write_report(words.out / "results.jsonl", words.to, words.title))
    return 0


def compare(words: argparse.Namespace) -> int:
    """Measure two commits in turns, in checkouts of their own."""
    from benchmarks.harness.compare import compare_commits

    cases = [case for case in chosen(words.case, words.device) if case.name.split(".")[0] != "ceilings"]
    print(compare_commits(ROOT, words.old, words.new, cases, words.size, words.rounds))
    return 0


def list_cases(words: argparse.Namespace) -> int:
    """List the cases and their questions."""
    for case in chosen(words.case, "all"):
        print(f"{case.name:<28} {case.device:<5} {case.question}")
    return 0


def main() -> int:
    """Read the words and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("compare", compare), ("list", list_cases)):
        verb = verbs.add_parser(name, help=function.__doc__)
        verb.set_defaults(function=function)
        verb.add_argument("--case", action="append", default=[], help="a name or a pattern; all if not given")
        if name != "list":
            verb.add_argument("--size", choices=("tiny", "small", "full"), default="small")
            verb.add_argument("--device", choices=("cpu", "cuda", "all"), default="cpu")
        if name == "run":
            verb.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
            verb.add_argument("--scratch", type=Path, help="where files go while a case runs")
            verb.add_argument("--again", action="store_true", help="also what was measured before")
        if name == "compare":
            verb.add_argument("old", help="a commit")
            verb.add_argument("new", help="another")
            verb.add_argument("--rounds", type=int, default=3)
    verb = verbs.add_parser("report", help=report.__doc__)
    verb.set_defaults(function=report)
    verb.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="where the results are")
    verb.add_argument("--to", type=Path, required=True, help="a folder; the report is written beside it")
    verb.add_argument("--title", default="Kernels, store and stages beside peers")
    verb = verbs.add_parser("one")
    verb.set_defaults(function=one)
    verb.add_argument("name")
    verb.add_argument("--size", required=True)
    verb.add_argument("--threads", type=int, required=True)
    verb.add_argument("--record", type=Path, required=True)
    verb.add_argument("--scratch", type=Path, required=True)
    words = parser.parse_args()
    try:
        return int(bool(words.function(words)))
    except (ValueError, subprocess.CalledProcessError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
