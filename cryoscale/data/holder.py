"""Who holds a run: what `ledger/driver.json` says of a process, and whether it is seen here."""

from __future__ import annotations

import functools
import json
import os
import socket
from pathlib import Path
from typing import Any

Holder = dict[str, Any]


def as_holder(data: bytes) -> Holder | None:
    """Parse a lock; None when it is torn."""
    try:
        holder = json.loads(data)
    except ValueError:
        return None
    whole = isinstance(holder, dict) and {"host", "pid", "heartbeat"} <= holder.keys()
    return holder if whole else None


def this_process() -> dict[str, Any]:
    """Say who this process is, on this machine and among others: host, pid, begun, boot, namespace."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "begun": process_begun(pid), **this_kernel()}


def this_kernel() -> dict[str, str]:
    """Name this boot of this machine, and the namespace that its process ids are of; empty where unknown."""
    return {"boot": _boot(), "namespace": _namespace()}


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def seen_here(holder: Holder) -> bool | None:
    """Look for a driver in the process table; None where that says nothing about it.

    A process id of another container, another machine, or of this machine before it was started again, is
    somebody else's here. And some machines hide the processes of other people.
    """
    kernel = this_kernel()
    if "" in kernel.values() or any(holder.get(key) != value for key, value in kernel.items()):
        return None
    pid = int(holder["pid"])
    try:
        return bool(_begun(Path(f"/proc/{pid}/stat").read_text()) == holder.get("begun"))
    except FileNotFoundError:
        pass
    except OSError:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None
    return None


def process_begun(pid: int) -> str:
    """Return when a process of this machine began, in the kernel's ticks; empty when there is none.

    A process id alone says little: it is given out again.
    """
    try:
        return _begun(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return ""


def _begun(stat: str) -> str:
    fields = stat.rpartition(")")[2].split()  # the name, in brackets, may hold anything
    return "" if fields[0] == "Z" else fields[19]  # Z: it has ended, and nobody has taken note yet
