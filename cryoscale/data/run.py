"""A run on storage: where each artifact lies, `run.toml`, and the lock of its driver."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import threading
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
SETTLE_SECONDS = 0.5  # on an object store: how long another driver may take to write its name over ours


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
        """Read and validate `run.toml`.

        Raises
        ------
        ConfigurationError
            It is not UTF-8, or `load_config` refuses it.
        SurroundingsError
            It cannot be read.
        """
        place = self.folder.path("run.toml")
        try:
            text = self.folder.read_bytes("run.toml").decode()
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{place} is not UTF-8 text: {error.reason} at byte {error.start}.",
                remedy="Save it as UTF-8.",
            ) from error
        except OSError as error:
            raise SurroundingsError(
                f"{place} cannot be read: {error.strerror or error}.", remedy="Check its permissions."
            ) from error
        return load_config(text, origin=place)

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
    def classes(self) -> Folder:
        """Folder of `<tomogram>.parquet`: what a network says each pick is."""
        return self.folder.child("classes")

    @property
    def clusters(self) -> ClusterFolder:
        """Centres, assignments, selection."""
        return ClusterFolder(self.folder.child("clusters"))

    @property
    def assignments(self) -> Folder:
        """Folder of `<tomogram>.parquet` with cluster ids."""
        return self.folder.child("clusters", "assignments")

    def source_path(self, path: str) -> str:
        """Return where an input file is: relative paths, of simulated ones, are within the run."""
        return path if "://" in path or os.path.isabs(path) else self.folder.path(path)

    @property
    def truth(self) -> Folder:
        """Folder of what is known of simulated tomograms: `<tomogram>.parquet`, `.toml`, `.star`."""
        return self.folder.child("truth")

    @property
    def densities(self) -> Folder:
        """Folder of the densities that simulated particles are made of."""
        return self.folder.child("densities")

    @property
    def simulated(self) -> Folder:
        """Folder of simulated files: `<tomogram>.mrc`, and tilt series."""
        return self.folder.child("simulated")

    def scene(self, name: str) -> Folder:
        """Return the noise-free scene of a simulated tomogram: `signal` and `labels`."""
        return self.folder.child("scenes", f"{name}.zarr")

    def tilts(self, name: str) -> Folder:
        """Return the imaged projections of a simulated tomogram: `signal` and `noise`."""
        return self.folder.child("tilts", f"{name}.zarr")

    def subtomograms(self, name: str) -> Folder:
        """Return the boxes cut from a simulated tomogram, with their truth."""
        return self.folder.child("subtomograms", f"{name}.zarr")

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


LOCK = "driver.json"


class DriverLock:
    """`ledger/driver.json`, renewed by a thread of its own, so that a task of hours is no silence."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._taken_by: dict[str, Any] | None = None

    def acquire(self) -> None:
        """Take the lock, or raise `ConfigurationError` when a living driver holds it.

        Of several drivers that start at one moment, one gets it. Object stores may let several write: there
        the last one has it, and each looks again after a moment who that is.
        """
        while not self.folder.create_bytes(LOCK, self._record()):
            try:
                found = self.folder.read_bytes(LOCK)
            except FileNotFoundError:
                continue
            self._refuse_if_alive(_as_holder(found))
            self.folder.take(LOCK, found)
        if not self.folder.is_local:
            self._ended.wait(SETTLE_SECONDS)
            holder = self._holder()
            if holder and not self._mine(holder):
                self._refuse_if_alive(holder)
        self._thread = threading.Thread(target=self._keep, name="cryoscale-lock", daemon=True)
        self._thread.start()

    def _refuse_if_alive(self, holder: dict[str, Any] | None) -> None:
        if holder and self._alive(holder):
            raise ConfigurationError(
                f"another driver works on this run: process {holder['pid']} on {holder['host']}.",
                remedy=f"Wait for it, or stop it; a lock silent for {STALE_LOCK_SECONDS:g} s is ignored.",
            )

    def heartbeat(self) -> None:
        """Raise `StateError` when another driver took the run over; cheap to call often."""
        if self._taken_by is not None:
            raise StateError(
                f"process {self._taken_by['pid']} on {self._taken_by['host']} took this run over, because "
                f"this driver was silent for more than {STALE_LOCK_SECONDS:g} s.",
                remedy="Leave the run to it; finished work is kept.",
            )

    def release(self) -> None:
        """Give the lock back, unless it is somebody else's by now."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        holder = self._holder()
        if holder and self._mine(holder):
            self.folder.delete(LOCK)

    def _keep(self) -> None:
        while not self._ended.wait(STALE_LOCK_SECONDS / 6):
            with contextlib.suppress(OSError):  # a full disk: the run itself will meet it and say so
                holder = self._holder()
                if holder and not self._mine(holder):
                    self._taken_by = holder
                    return
                self._beat()

    def _beat(self) -> None:
        self.folder.write_bytes(LOCK, self._record())

    @staticmethod
    def _record() -> bytes:
        return json.dumps({**_this_process(), "heartbeat": time.time()}, sort_keys=True).encode()

    def _holder(self) -> dict[str, Any] | None:
        try:
            return _as_holder(self.folder.read_bytes(LOCK))
        except FileNotFoundError:
            return None

    @staticmethod
    def _mine(holder: dict[str, Any]) -> bool:
        return {k: holder.get(k) for k in ("host", "pid", "begun")} == _this_process()

    @staticmethod
    def _alive(holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname() and Path("/proc").exists():
            begun = process_begun(int(holder["pid"]))
            return begun != "" and holder.get("begun", begun) == begun
        return bool(time.time() - float(holder["heartbeat"]) < STALE_LOCK_SECONDS)


def _as_holder(data: bytes) -> dict[str, Any] | None:
    """Parse a lock; None when it is torn."""
    try:
        holder = json.loads(data)
    except ValueError:
        return None
    whole = isinstance(holder, dict) and {"host", "pid", "heartbeat"} <= holder.keys()
    return holder if whole else None


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "begun": process_begun(os.getpid())}


def process_begun(pid: int) -> str:
    """Return when a process of this machine began, in the kernel's ticks; empty when there is none.

    A process id alone says little: it is given out again.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name, in brackets, may hold anything
    return "" if fields[0] == "Z" else fields[19]
