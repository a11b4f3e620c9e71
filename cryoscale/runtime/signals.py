"""SIGTERM, SIGINT and SIGHUP as one exception, raised once: what is held is given back on its way out.

A batch system or Kubernetes asks with SIGTERM and kills some seconds later. So the first signal raises in the
main thread at once, wherever it is, and marks, locks and engines are kept or ended by the same `finally` as
for any other error. A second one ends the process where it stands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

NUMBERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    It is a `KeyboardInterrupt`, since code that lets that one through, ours and others', has to let this
    through as well.

    Parameters
    ----------
    number : int
        The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells say it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number


_came: list[int] = []  # the signal that was obeyed, as long as `obeyed` is open


def obeyed_signal() -> Interrupted | None:
    """Return the signal that ends this process, or None when none came.

    Libraries (click, Ray) catch a `KeyboardInterrupt` and raise one of their own in its place, so what
    arrives in the end need not be the `Interrupted` that was raised.
    """
    return Interrupted(_came[0]) if _came else None


def raise_again() -> None:
    """Raise `Interrupted` once more when a signal was obeyed and what it raised did not arrive.

    Python drops what is raised inside a `__del__`, and the main thread may be in one (a future of Dask that
    is collected) when the signal comes. Called where a `KeyboardInterrupt` is being handled, this does
    nothing: that one is on its way.
    """
    if not _came or threading.current_thread() is not threading.main_thread():
        return
    error = sys.exception()
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return
        error = error.__context__  # of a library that raised its own in its place
    raise Interrupted(_came[0])


@contextlib.contextmanager
def obeyed() -> Iterator[None]:
    """Turn the first signal into `Interrupted` in here; the second one ends the process at once.

    A signal that is ignored when this begins (`nohup`, a job in the background) stays ignored. Does nothing
    in a thread other than the main one: Python gives signals to that one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _came.clear()

    def obey(number: int, frame: FrameType | None) -> None:
        if _came:
            _end(number)
        _came.append(number)
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in NUMBERS}
    mine = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in mine:
        signal.signal(number, obey)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
        _came.clear()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep the handlers of this process while a library starts that would put its own in their place.

    `ray.init` takes SIGTERM for itself, twice. By `signal.signal`, with exit code 15: such calls for our
    signals are passed over in here. And below Python, where its handler lets the process be killed three
    seconds later: that one is replaced afterwards.
    """
    plain: Any = signal.signal

    def pass_over(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in NUMBERS else plain(number, handler)

    signal.signal = pass_over  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = plain
        take_back()


def take_back() -> None:
    """Set the handlers of our signals once more, in place of those that a library set below Python."""
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            handler = signal.getsignal(number)
            if handler is not None:
                signal.signal(number, handler)


def end_at_once() -> None:
    """Let any further signal end the process where it stands: all is kept, what is left is only tidying."""
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: _end(number))


def _end(number: int) -> NoReturn:
    # Not the default action: the kernel ignores that for the first process of a container.
    os._exit(128 + number)
