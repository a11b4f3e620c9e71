"""All trainings that are asked for and not there yet, some at a time; each is written down as it ends.

On a processor one thread a training and as many trainings as cores take half the time of one training on all
cores: these boxes are small.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dsm_net import data as boxes
from benchmarks.dsm_net.rows import chosen
from benchmarks.dsm_net.sizes import SIZES
from benchmarks.harness import results
from benchmarks.harness.machine import describe
from cryoscale.errors import CryoscaleError


@dataclass(frozen=True)
class Asked:
    """What is to be trained, and where it goes.

    Attributes
    ----------
    size : str
    data : Path
        The file of data sets.
    out : Path
        `results.jsonl`, checkpoints and examples.
    device : str
        "cpu" or "cuda".
    threads : int
        Of each training.
    rows : sequence of str
        Patterns; none: all.
    seeds : sequence of int
        None: those of the size.
    jobs : int
        Trainings at a time.
    minutes : float
        Begin none after so many; 0: no end.
    """

    size: str
    data: Path
    out: Path
    device: str = "cpu"
    threads: int = 1
    rows: Sequence[str] = ()
    seeds: Sequence[int] = ()
    jobs: int = 1
    minutes: float = 0.0

    @property
    def results(self) -> Path:
        """The file that each finished training adds a line to."""
        return self.out / "results.jsonl"


def run(asked: Asked) -> int:
    """Train what is asked for and not there yet; returns how many failed."""
    facts = boxes.describe(asked.data)
    if facts["size"] != asked.size:
        raise SystemExit(f"{asked.data} holds data of size {facts['size']}, not {asked.size}")
    failures, waiting = 0, _waiting(asked, facts["data"])
    if asked.jobs == 1:
        return sum(_file(asked, training, _tried(asked, training)) for training in waiting)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
        busy: dict[Future[dict[str, Any]], Any] = {}
        for training in waiting:
            busy[pool.submit(_tried, asked, training)] = training
            if len(busy) == asked.jobs:
                failures += _ended(asked, busy)
        while busy:
            failures += _ended(asked, busy)
    return failures


def _waiting(asked: Asked, facts: dict[str, Any]) -> Iterator[Any]:
    """Yield the trainings that are not there yet, in their order, until the time is over."""
    from benchmarks.dsm_net.train import finish, training_of

    size, ends = SIZES[asked.size], time.monotonic() + 60 * asked.minutes
    there = {r["identity"] for r in results.read(asked.results) if not r.get("failed")}
    for seed in asked.seeds or size.seeds:
        for row in chosen(asked.rows):
            training = training_of(
                row, facts[row.data], asked.size, size, seed, device=asked.device, threads=asked.threads
            )
            if training.identity in there:
                finish(training, asked.out)  # left over if it was killed right there
                print(f"{row.key}, seed {seed}: trained before", flush=True)
                continue
            if asked.minutes and time.monotonic() > ends:
                print(f"{asked.minutes:g} minutes are over; the same command goes on", flush=True)
                return
            yield training


def _tried(asked: Asked, training: Any) -> dict[str, Any]:
    """Train, and return the record, or one that says why there is none."""
    import torch

    from benchmarks.dsm_net.train import train

    torch.set_num_threads(asked.threads)
    try:
        return train(training, _data(asked.data, training.row.data), asked.out, machine=_machine())
    except ModuleNotFoundError as error:
        return {"absent": str(error.name).split(".")[0]}
    except (CryoscaleError, RuntimeError) as error:
        row = training.row
        return {
            "size": training.size, "data": row.data, "name": row.name, "seed": training.seed,
            "identity": training.identity, "failed": str(error).splitlines()[0],
        }  # fmt: skip


def _ended(asked: Asked, busy: dict[Future[dict[str, Any]], Any]) -> int:
    """Wait for a training to end and write it down; returns how many failed."""
    done, _ = wait(busy, return_when=FIRST_COMPLETED)
    return sum(_file(asked, busy.pop(future), future.result()) for future in done)


def _file(asked: Asked, training: Any, record: dict[str, Any]) -> int:
    """Write down how a training ended; returns 1 if it failed."""
    from benchmarks.dsm_net.train import finish

    title = f"{training.row.key}, seed {training.seed}"
    if "absent" in record:
        print(f"{title}: left out, {record['absent']} is not installed", flush=True)
        return 0
    results.append(asked.results, record)
    if "failed" in record:
        print(f"{title}: FAILED, {record['failed']}", flush=True)
        return 1
    finish(training, asked.out)
    print(f"{title}: {_told(record)}", flush=True)
    return 0


def _told(record: dict[str, Any]) -> str:
    names = {"pixel": "pixel accuracy", "miou": "mIoU", "object": "object accuracy", "recovery": "recovery"}
    scores = [f"{word} {record['scores'][key]:.4f}" for key, word in names.items() if key in record["scores"]]
    return f"{', '.join(scores)}; {record['epochs']} epochs, {record['seconds']:.0f} s"


@functools.lru_cache(maxsize=1)
def _data(path: Path, name: str) -> boxes.DataSet:
    return boxes.load(path, name)


@functools.cache
def _machine() -> dict[str, Any]:
    return describe()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
