"""A driver that tests start, look at, and kill. Usage: driver.py KIND hold|close|guards [FOLDER]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cryoscale.runtime.executor import ExecutorSettings, open_executor
from cryoscale.testing.executors import GUARD_CHECKS, check_close, drain
from cryoscale.testing.works import task


def main(kind: str, mode: str) -> None:
    executor = open_executor(kind, ExecutorSettings(workers=2, start_timeout_s=60))
    executor.start()
    workers = {outcome.worker for outcome in drain(executor, [task("square", n) for n in range(6)])}
    if mode == "hold":  # work in flight when the end comes
        for n in range(3):
            executor.submit(task("pause", (600.0, "", f"n{n}")))
    print(json.dumps(sorted(workers)), flush=True)
    sys.stdin.readline()
    if mode == "close":
        check_close(executor)
        print(json.dumps("closed"), flush=True)
        sys.stdin.readline()


def guards(kind: str, folder: str) -> None:
    """Run the checks of guards, each in a folder of its own."""
    for check in GUARD_CHECKS:
        journal = Path(folder) / check.__name__
        journal.mkdir()
        check(
            lambda guard: open_executor(kind, ExecutorSettings(workers=1, start_timeout_s=15, guard=guard)),
            journal,
        )


if __name__ == "__main__":
    if sys.argv[2] == "guards":
        guards(sys.argv[1], sys.argv[3])
    else:
        main(*sys.argv[1:])
