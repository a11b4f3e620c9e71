"""Requests that a whole small run makes to an object store, counted on a storage in memory.

::

    python -m benchmarks.requests --shards 3 --tomograms 2

Tomograms are small, and so are their shards, so that requests per shard are those of large ones. The run is
serial: retries, and the looks of a second machine, come on top.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
from cryoscale.data.run import Run
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.runtime.events import Event, StageStarted, TaskEnded
from cryoscale.testing.counted_store import KINDS, CountedStore
from cryoscale.testing.phantoms import SMALL_SETTINGS, write_phantom

SHARD, CHUNK = 32, 8  # 64 chunks in a shard, as by default


class _Stages:
    """A listener that says which stage is at work: a serial run does one thing at a time."""

    def __init__(self) -> None:
        self.now = "driver"
        self.blocks: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self.now = event.stage
        if isinstance(event, TaskEnded) and event.block >= 0:
            self.blocks[event.stage] = self.blocks.get(event.stage, 0) + 1


def count_requests(shards: int, tomograms: int, *settings: str) -> dict[str, Any]:
    """Drive a run and count.

    Parameters
    ----------
    shards : int
        Of a tomogram along y and x at level 0; two along z.
    tomograms : int
        How many.
    *settings : str
        More parameters, as `--set` takes them.

    Returns
    -------
    counts : dict
        `requests`: by stage, then by what is asked for, then by kind; `blocks` by stage; `tomograms`;
        `shards` of level 0; `shards_all_levels`.
    """
    stages = _Stages()
    shape = (2 * SHARD, shards * SHARD, shards * SHARD)
    name = uuid.uuid4().hex

    def label(path: str) -> str:
        parts = path.split("/")
        kind = parts[1] if len(parts) > 1 else "run"
        labels = kind == "tomograms" and "labels" in parts
        return f"{stages.now}:{'labels' if labels else kind}"

    with tempfile.TemporaryDirectory() as folder:
        places = [
            write_phantom(Path(folder) / f"t{n}.mrc", shape, seed=n, count=shards * shards * 10)
            for n in range(tomograms)
        ]
        run = Run.at(f"counted://{name}")
        config = apply_settings(
            RunConfig(),
            [*SMALL_SETTINGS, f"ingest.shard={SHARD}", f"ingest.chunk={CHUNK}",
             f"execution.block_voxels={SHARD}", *settings],
        )  # fmt: skip
        inputs = tuple(SourceConfig(name=place.stem, path=str(place)) for place in places)
        run.save_config(config.model_copy(update={"inputs": inputs}))
        CountedStore.reset(label)
        result = run_pipeline(
            run, Options(executor="serial", accept_suggestions=True), listeners=(stages,)
        )  # fmt: skip
    objects = [name for name in run.folder.files() if name.startswith("tomograms/") and "/c/" in name]
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for (kind, text), number in sorted(CountedStore.counts.items()):
        stage, what = text.split(":")
        counts.setdefault(stage, {}).setdefault(what, {})[kind] = number
    CountedStore.trees.pop(name, None)
    return {
        "tomograms": tomograms,
        "shards": 2 * shards * shards,
        "shards_all_levels": sum("/labels/" not in name for name in objects) / tomograms,
        "blocks": stages.blocks,
        "failures": len(result.failures),
        "requests": counts,
    }


def table(counts: dict[str, Any]) -> str:
    """Lay the counts out per tomogram."""
    lines = [f"| stage | blocks | what | {' | '.join(KINDS)} |", f"|---|---|---|{'---|' * len(KINDS)}"]
    for stage, parts in counts["requests"].items():
        for what, kinds in parts.items():
            numbers = " | ".join(f"{kinds.get(kind, 0) / counts['tomograms']:g}" for kind in KINDS)
            blocks = counts["blocks"].get(stage, 0) / counts["tomograms"]
            lines.append(f"| {stage} | {blocks:g} | {what} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print a table per tomogram."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=__doc__)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--tomograms", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    counts = count_requests(options.shards, options.tomograms)
    if options.json:
        print(json.dumps(counts))
        return
    print(f"{counts['tomograms']} tomograms of {counts['shards']} shards at level 0, "
          f"{counts['shards_all_levels']:g} over all levels; {counts['failures']} failures.\n")  # fmt: skip
    print(table(counts))


if __name__ == "__main__":
    main()
