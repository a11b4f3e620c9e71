"""A small process that outlives a killed driver just long enough to end what the driver's Ray leaves behind.

Ray's own processes end with the driver, but two agents try for a minute to report to a head node that is
gone. Ours are known for certain by the files they hold open under the private folder of this run.

The file is run by path, without the package: it must start in milliseconds and import next to nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

_DONE = b"done"
_PATIENCE_S = 30.0
_PAUSE_S = 0.2


class Reaper:
    """Watches this process from another one.

    Parameters
    ----------
    folder : path
        Private folder of the run. If this process dies without `dismiss`, every process that has a file open
        in there is killed and the folder is removed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        # A session of its own: Ctrl-C in the terminal is for the driver. Isolated, without site: fast, and no
        # surprise from the environment.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, os.path.realpath(folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the watching; nothing is killed. Safe to call again."""
        if self._process.poll() is None:
            try:
                self._process.communicate(_DONE, timeout=_PATIENCE_S)
            except (OSError, ValueError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()


def holders(folder: str, spare: set[int]) -> list[int]:
    """List processes with a file open under `folder`, except those in `spare`. Looks at /proc: Linux only."""
    processes = {int(name) for name in os.listdir("/proc") if name.isdigit()} - spare
    return [process for process in processes if _holds(f"/proc/{process}/fd", folder + os.sep)]


def _holds(descriptors: str, prefix: str) -> bool:
    try:
        return any(os.readlink(f"{descriptors}/{fd}").startswith(prefix) for fd in os.listdir(descriptors))
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return False


def main(folder: str, driver: int) -> None:
    """Wait for the driver's end; clean up if it came without a word."""
    if sys.stdin.buffer.read() == _DONE:
        return
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and (left := holders(folder, {os.getpid(), driver})):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
