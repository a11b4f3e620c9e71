"""A driver that `test_processes` starts, looks at, and kills. Usage: driver.py KIND hold|close"""

from __future__ import annotations

import json
import sys

from cryoscale.runtime.executor import ExecutorSettings, open_executor
from cryoscale.testing.executors import check_close, drain
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


if __name__ == "__main__":
    main(*sys.argv[1:])
