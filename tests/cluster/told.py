"""`cryoscale …` that also writes every event of its run to a file: `python -m tests.cluster.told FILE …`

The log of a run sums blocks up, and its trace is written now and then; a test that cuts a host off needs to
know of each block, on which host, while it happens.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import cryoscale.data.lock
from cryoscale.cli import main
from cryoscale.runtime.events import EventBus


def tell(file: str) -> None:
    """Let every event bus of this process write what it emits."""
    stream, emit = open(file, "a", buffering=1), EventBus.emit  # noqa: SIM115 as long as the process

    def emit_and_tell(self, event):
        stream.write(json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)}) + "\n")
        emit(self, event)

    EventBus.emit = emit_and_tell


if __name__ == "__main__":
    if stale := os.environ.get("TOLD_STALE_LOCK_S"):
        cryoscale.data.lock.STALE_LOCK_SECONDS = float(stale)
    tell(sys.argv[1])
    main(sys.argv[2:])
