"""A small process between a supervisor and one program: when the supervisor dies, all below it dies too.

::

    supervisor ==pipe==> keeper --> program --> whatever it starts
                                      '- what is orphaned comes back to the keeper (Linux: child subreaper)

The keeper hands SIGTERM on to the program alone. When the program ends, or the pipe closes because the
supervisor is gone (SIGKILL too), it kills all that is left below and ends with the program's exit code.

The file is run by path, without the package: it must start in milliseconds and import next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_PATIENCE_S = 10.0


class Kept:
    """A program with a keeper.

    Parameters
    ----------
    command : sequence of str
        The program and its words.
    environment : mapping
        Variables of the program; nothing is added.
    output : file, or a constant of `subprocess`
        Where its standard output and error go; None leaves them where ours go.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], output: int | IO[bytes] | None = None
    ) -> None:
        # A session of its own: Ctrl-C in the terminal is for the supervisor, which ends all in order.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env=dict(environment),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the keeper; the program is its child."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Of the program, negative for a signal as in `subprocess`; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code > 128 else code

    def terminate(self) -> None:
        """Ask the program to end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the program and of all below it; False if the time is up."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End the program and all below it at once. Safe to call again."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if not self.wait(_PATIENCE_S):
            self._process.kill()
            self._process.wait()


def descendants(root: int) -> list[int]:
    """List the processes below one, from /proc; empty where there is none (not Linux)."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            parents.setdefault(_parent(name), []).append(int(name))
    found, todo = [], [root]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def _parent(process: str) -> int:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            # The name, in parentheses, may hold anything: what counts comes after the last one.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _reap(child: int) -> int | None:
    """Collect all that ended; return the exit code of the program if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


def _kill_below(child: int) -> None:
    with contextlib.suppress(OSError):  # where there is no /proc: the group that the program leads
        os.killpg(child, signal.SIGKILL)
    while left := descendants(os.getpid()):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def main(command: list[str]) -> int:
    """Run a program until it ends or the supervisor does."""
    woken, waker = os.pipe()
    for end in (woken, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _nothing)
    _adopt_orphans()
    supervisor = sys.stdin.fileno()
    with open(os.devnull, "rb") as empty:
        child = subprocess.Popen(command, stdin=empty, start_new_session=True).pid
    code = None
    while code is None:
        ready, _, _ = select.select([supervisor, woken], [], [])
        signals = os.read(woken, 4096) if woken in ready else b""
        if supervisor in ready and not os.read(supervisor, 4096):
            break
        code = _reap(child)
        if signal.SIGTERM in signals and code is None:
            os.kill(child, signal.SIGTERM)
    _kill_below(child)
    # A shell's way, which exit() can carry: 128 plus the signal.
    return 128 + signal.SIGKILL if code is None else code if code >= 0 else 128 - code


def _nothing(*_: Any) -> None:
    """Let `set_wakeup_fd` see the signal; the default would end this process."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
