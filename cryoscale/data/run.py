"""A run on storage: where each artifact lies, `run.toml`, and the lock of its driver."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoscale.config import RunConfig, dump_config, load_config
from cryoscale.data.clusters import ClusterFolder
from cryoscale.data.folder import Folder
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError, StateError, SurroundingsError

STALE_LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Run:
    """The folder of a run; small and picklable."""

    folder: Folder

    @classmethod
    def at(cls, place: str | os.PathLike[str]) -> Run:
        """Return the run at a path or URL, whether or not it exists yet."""
        return cls(Folder.of(place))

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> Run:
        """Return an existing run; raises `StateError` when there is no `run.toml`."""
        run = cls.at(place)
        if not run.folder.exists("run.toml"):
            raise StateError(
                f"{run.folder.url} is not a run: it has no run.toml.",
                remedy=f"Make one with: cryoscale init {place} 'recon/*.mrc'",
            )
        return run

    @property
    def config(self) -> RunConfig:
        """Read and validate `run.toml`."""
        text = self.folder.read_bytes("run.toml").decode()
        return load_config(text, origin=self.folder.path("run.toml"))

    def save_config(self, config: RunConfig) -> None:
        """Write `run.toml`; raises `SurroundingsError` when the place cannot be written."""
        try:
            self.folder.write_bytes("run.toml", dump_config(config).encode())
        except OSError as error:
            raise SurroundingsError(
                f"cannot write {self.folder.path('run.toml')}: {error.strerror or error}.",
                remedy="Choose another place for the run, or mend its permissions or space.",
            ) from error

    # -- where things lie -------------------------------------------------------------------------------

    def tomogram(self, name: str) -> Folder:
        """Return the OME-Zarr group of a tomogram."""
        return self.folder.child("tomograms", f"{name}.ome.zarr")

    def encodings(self, name: str) -> Folder:
        """Return the array of a tomogram's encodings."""
        return self.folder.child("encodings", f"{name}.zarr")

    @property
    def picks(self) -> Folder:
        """Folder of `<tomogram>.parquet`."""
        return self.folder.child("picks")

    @property
    def instances(self) -> Folder:
        """Folder of `<tomogram>.parquet`, one row per object."""
        return self.folder.child("instances")

    @property
    def clusters(self) -> ClusterFolder:
        """Centres, assignments, selection."""
        return ClusterFolder(self.folder.child("clusters"))

    @property
    def assignments(self) -> Folder:
        """Folder of `<tomogram>.parquet` with cluster ids."""
        return self.folder.child("clusters", "assignments")

    def parts(self, stage: str, tomogram: str) -> Folder:
        """Folder of the parts that the blocks of a stage leave for its seal."""
        return self.folder.child("parts", stage, tomogram)

    def model(self, name: str) -> ModelFolder:
        """Folder of a trained model, `encoder` or `segmenter`."""
        return ModelFolder(self.folder.child("models", name))

    @property
    def ledger(self) -> Folder:
        """Folder of marks."""
        return self.folder.child("ledger", "units")

    # -- failures ---------------------------------------------------------------------------------------

    def write_failures(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write `failures.csv`: stage, tomogram, block, reason; removed when nothing failed."""
        if not rows:
            self.folder.delete("failures.csv")
            return
        stream = io.StringIO()
        writer = csv.DictWriter(stream, ["stage", "tomogram", "block", "reason"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.folder.write_bytes("failures.csv", stream.getvalue().encode())

    # -- one driver at a time ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[DriverLock]:
        """Hold the run's lock: two drivers would write the same shards.

        Raises
        ------
        ConfigurationError
            Another driver is alive.
        """
        lock = DriverLock(self.folder.child("ledger"))
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()


class DriverLock:
    """`ledger/driver.json`, with a heartbeat that drivers on other machines can judge."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._last = 0.0

    def acquire(self) -> None:
        """Take the lock, or raise `ConfigurationError` when a living driver holds it."""
        holder = self._holder()
        if holder and self._alive(holder):
            raise ConfigurationError(
                f"another driver works on this run: process {holder['pid']} on {holder['host']}.",
                remedy=f"Wait for it, or stop it; a lock silent for {STALE_LOCK_SECONDS:g} s is ignored.",
            )
        self._beat()

    def heartbeat(self) -> None:
        """Renew the lock now and then; cheap to call often."""
        if time.time() - self._last > STALE_LOCK_SECONDS / 6:
            self._beat()

    def release(self) -> None:
        """Give the lock back."""
        self.folder.delete("driver.json")

    def _beat(self) -> None:
        self._last = time.time()
        self.folder.write_json(
            "driver.json", {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": self._last}
        )

    def _holder(self) -> dict[str, Any] | None:
        if not self.folder.exists("driver.json"):
            return None
        try:
            holder = self.folder.read_json("driver.json")
        except (json.JSONDecodeError, FileNotFoundError):
            return None
        return holder if isinstance(holder, dict) else None

    @staticmethod
    def _alive(holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname():
            return Path(f"/proc/{holder['pid']}").exists() if Path("/proc").exists() else True
        return bool(time.time() - holder["heartbeat"] < STALE_LOCK_SECONDS)
