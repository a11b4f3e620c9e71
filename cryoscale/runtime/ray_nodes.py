"""Which machines a running Ray cluster has, asked beside the work, and whether its head still answers.

A question to a head that is gone blocks for a minute or longer. So a thread asks every few seconds and leaves
what it heard; the executor reads that, and stops in order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cryoscale.runtime.probe import examine
from cryoscale.runtime.settings import ExecutorSettings

LOOK_S = 2.0
SILENT_S = 15.0  # silence of a head until it is told


@dataclass
class Node:
    """A machine of a Ray cluster.

    Parameters
    ----------
    identifier, host : str
        Ray's name of it, and the machine's.
    cpus, gpus : float
        What it offers in all, used or not.
    again : float
        When to examine an unfit one again, by the monotonic clock.
    """

    identifier: str
    host: str
    cpus: float
    gpus: float
    examination: Any = field(default=None, repr=False)  # a reference while it is asked
    asked: float = 0.0
    proved: bool = False
    again: float = 0.0


def room(node: Node, cpus: float, gpus: float) -> int:
    """How many workers of this size a machine could hold."""
    most = int(node.cpus / cpus) if cpus else 0
    return min(most, int(node.gpus / gpus + 1e-6)) if gpus else most


def size_of_worker(settings: ExecutorSettings, nodes: Iterable[Node]) -> tuple[float, int]:
    """Choose GPUs and cores of one worker when the machines of a cluster are known."""
    there = list(nodes)
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = float(any(node.gpus >= 1 for node in there))
    threads = settings.threads_per_worker
    cores = [node.cpus for node in there if node.gpus >= gpus]  # of those that could hold one at all
    return gpus, max(1, min(threads, int(max(cores)))) if settings.threads_at_most and cores else threads


def demand(actors: int, cpus: float, gpus: float, nodes: Iterable[Node]) -> str:
    """Say what is asked for and what there is, for a message of who waits."""
    size = f"{cpus:g} cores" + (f" and {gpus:g} GPU" if gpus else "")
    offers = [f"{node.host}: {node.cpus:g} cores, {node.gpus:g} GPU" for node in nodes]
    return (
        f"{actors} actors of {size} each are asked for; "
        f"the cluster has {'; '.join(offers[:5]) or 'no machine with cores'}."
    )


def ask(node: Node, guard: bytes) -> None:
    """Have a machine examined by a task without cores: one that lacks the package has no actor to ask."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node.identifier, soft=False)
    node.asked = time.time()
    question = ray.remote(examine).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    node.examination = question.remote(guard)


class NodeWatch:
    """A thread that asks Ray for its machines; it ends with `close` or with the process."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._heard_at = time.monotonic()
        self.looks = 0
        threading.Thread(target=self._watch, name="cryoscale-ray-nodes", daemon=True).start()

    def _watch(self) -> None:
        import ray

        while not self._ended.is_set():
            try:
                rows = ray.nodes()
            except Exception:  # silence is what counts, whatever its reason
                rows = None
            if rows is not None:
                with self._lock:
                    self._rows, self._heard_at, self.looks = rows, time.monotonic(), self.looks + 1
            self._ended.wait(LOOK_S)

    @property
    def silent_s(self) -> float:
        """For how long the head has not answered, seconds."""
        with self._lock:
            return time.monotonic() - self._heard_at

    def nodes(self) -> dict[str, Node]:
        """Return the living machines that offer cores, by identifier."""
        with self._lock:
            rows = list(self._rows)
        found = {}
        for row in rows:
            offers = row.get("Resources", {})
            if row.get("Alive") and offers.get("CPU", 0) > 0:
                found[row["NodeID"]] = Node(
                    row["NodeID"],
                    str(row.get("NodeManagerHostname") or row.get("NodeManagerAddress")),
                    float(offers["CPU"]),
                    float(offers.get("GPU", 0)),
                )
        return found

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
