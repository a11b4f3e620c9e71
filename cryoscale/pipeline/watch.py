"""`run --watch`: tomograms are taken as they arrive in a folder, until somebody stops it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, CryoscaleError, StateError, SurroundingsError
from cryoscale.formats.inputs import SUFFIXES, source_stamp
from cryoscale.pipeline.setup import add_inputs, write_run
from cryoscale.runtime.signals import obeyed_signal

STOP_FILE = "stop-watching"  # in the run's folder; removed when it was obeyed
SECONDS_BETWEEN_LOOKS = 10.0

Stamp = tuple[int, int]


def watch_folder(
    place: str,
    folder: str,
    drive: Callable[[], int],
    once: bool = False,
    *,
    wait: Callable[[], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> int:
    """Add files to a run as they arrive, and drive it each time there is something new.

    A file is taken when its size and modification time were the same at two looks, and again when it was
    replaced by another. The run is driven as well when a person changed `run.toml` or the selection. A file
    that cannot be used is named once and does not stop the others; neither does a drive that fails.

    Parameters
    ----------
    place : str
        The run; it must exist.
    folder : str
        Where `*.mrc`, `*.rec`, `*.map` and `*.st` arrive; files in its subfolders are not looked at.
    drive : callable
        Does what is due and returns an exit code.
    once : bool
        Whether to end as soon as nothing is due.
    wait : callable, optional
        Passes the time between two looks; ten seconds by default.
    tell : callable, optional
        Takes sentences for the person who watches; standard error by default.

    Returns
    -------
    code : int
        Of the last drive: 0 done, 1 some work failed or a file could not be taken, 2 misuse, 75 the
        surroundings failed; 0 when there was none. A file `stop-watching` in the run's folder ends the watch;
        so does a signal, then it is 128 and its number (130 for Ctrl-C).

    Raises
    ------
    StateError
        There is no run at this place.
    ConfigurationError
        The folder does not exist.
    """
    run = Run.open(place)
    if not Path(folder).is_dir():
        raise ConfigurationError(f"{folder} is not a folder.", remedy="Name the folder where files arrive.")
    watch = _Watch(run, place, Path(folder), drive, tell or _tell)
    pause = wait or _wait
    watch.tell(f"watching {folder}; end with Ctrl-C, or with a file {run.folder.path(STOP_FILE)}")
    try:
        while not watch.asked_to_stop():
            settled = watch.look()
            if once and settled:
                break
            pause()
    except KeyboardInterrupt:
        watch.tell("interrupted; finished work is kept.")
        came = obeyed_signal()
        return watch.exit_code if came is None else came.exit_code
    return watch.exit_code


@dataclass
class _Watch:
    """What was seen at the last look, and what was handed to the pipeline."""

    run: Run
    place: str
    folder: Path
    drive: Callable[[], int]
    tell: Callable[[str], None]
    code: int = 0
    seen: dict[Path, Stamp] = field(default_factory=dict)
    taken: dict[Path, Stamp] = field(default_factory=dict)
    refused: set[Path] = field(default_factory=set)
    driven: tuple[bytes, ...] = ()

    @property
    def exit_code(self) -> int:
        """Of the last drive; not 0 while there is a file that could not be taken."""
        return self.code or int(bool(self.refused))

    def look(self) -> bool:
        """Look once, drive if there is something new, and say whether nothing is left to wait for."""
        now = _stamps(self.folder)
        still = {path for path, stamp in now.items() if self.seen.get(path) == stamp}
        new = sorted(path for path in still if self.taken.get(path) != now[path])
        self.seen = now
        for path in new:
            self.taken[path] = now[path]
            self._add(path)
        wishes = self._wishes()
        if new or wishes != self.driven:
            self.driven = wishes
            self._drive()
        return still == set(now) and not (set(_stamps(self.folder)) - set(now))

    def asked_to_stop(self) -> bool:
        """Obey the stop file."""
        if not self.run.folder.exists(STOP_FILE):
            return False
        self.run.folder.delete(STOP_FILE)
        self.tell(f"found {STOP_FILE}: the watch ends.")
        return True

    def _add(self, path: Path) -> None:
        """Add one file to `run.toml`, read afresh: a person may have edited it meanwhile."""
        self.refused.discard(path)
        try:
            config, added = add_inputs(self.run.config, [str(path)])
            if added:
                write_run(self.place, config)
                self.tell(f"new: {path}")
        except CryoscaleError as error:
            self.refused.add(path)
            self.tell(f"not taken: {error}")

    def _drive(self) -> None:
        try:
            if self.run.config.inputs:
                self.code = self.drive()
        except CryoscaleError as error:  # the next file, or the next edit, may find things mended
            self.code = _code_of(error)
            self.tell(f"stopped: {error} Watching goes on.")

    def _wishes(self) -> tuple[bytes, ...]:
        """Return what a person may edit while we watch: parameters and selection."""
        files = ((self.run.folder, "run.toml"), (self.run.clusters.folder, "selection.toml"))
        return tuple(folder.read_bytes(name) if folder.exists(name) else b"" for folder, name in files)


def _code_of(error: CryoscaleError) -> int:
    """Return the exit code that the error would have ended `run` with."""
    if isinstance(error, SurroundingsError):
        return 75
    return 2 if isinstance(error, (ConfigurationError, StateError)) else 1


def _stamps(folder: Path) -> dict[Path, Stamp]:
    """Return size and modification time of each file that may be a tomogram."""
    stamps = {}
    for path in folder.iterdir():
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        try:
            stamps[path.absolute()] = source_stamp(path)
        except OSError:  # moved away between two system calls
            continue
    return stamps


def _wait() -> None:
    threading.Event().wait(SECONDS_BETWEEN_LOOKS)


def _tell(text: str) -> None:
    print(f"cryoscale: {text}", file=sys.stderr, flush=True)
