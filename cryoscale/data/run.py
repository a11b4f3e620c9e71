"""A run on storage: where each artifact lies, `run.toml`, and who may write."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cryoscale.config import RunConfig, dump_config, load_config
from cryoscale.data.clusters import ClusterFolder
from cryoscale.data.folder import Folder
from cryoscale.data.lock import DriverLock
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError, StateError, SurroundingsError

PROBE_BYTES = 1 << 16  # more than a file system keeps beside a file's name


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
    def locked(
        self, wait_s: float = 0.0, tell: Callable[[str], None] = lambda _: None
    ) -> Iterator[DriverLock]:
        """Hold the run's lock: two drivers would write the same shards.

        Parameters
        ----------
        wait_s, tell
            How long to wait for another driver, and who is told whom this waits for.

        Raises
        ------
        ConfigurationError
            Another driver is alive.
        SurroundingsError
            It was still alive after `wait_s`.
        """
        lock = DriverLock(self.folder.child("ledger"))
        try:  # before it is taken: a signal may come as soon as it is
            lock.acquire(wait_s, tell)
            yield lock
        finally:
            lock.release()

    def require_writable(self) -> None:
        """Write one object into the run and remove it, before anything else is begun.

        Raises
        ------
        SurroundingsError
            The storage refuses: read-only, full, over a quota, no permission; it says which.
        """
        name = f"ledger/.writable-{secrets.token_hex(8)}"
        try:
            try:
                self.folder.write_bytes(name, bytes(PROBE_BYTES))
            finally:
                self.folder.delete(name)
        except OSError as error:
            raise SurroundingsError(
                f"cannot write into {self.folder.url}: {error.strerror or error}.",
                remedy="Nothing was begun; mend its permissions or space, then give the same command again.",
            ) from error
