from __future__ import annotations

import errno
import pickle
from contextlib import contextmanager
from dataclasses import replace

import pytest

from cryoscale.errors import (
    ConfigurationError,
    DataError,
    FormatError,
    LayoutError,
    StateError,
    SurroundingsError,
    UndeclaredAccessError,
)
from cryoscale.runtime.packing import _unpack, pack, run_packed, unpack_outcome
from cryoscale.runtime.task import Failure, Outcome, Task, WorkCache, classify, failed, run_task
from cryoscale.testing.works import Behaviour, task


def chained(outer, inner):
    outer.__cause__ = inner
    return outer


class OutOfMemoryError(RuntimeError):
    """As torch.cuda raises it."""


class KilledWorker(Exception):
    """As distributed raises it."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *(
            (OSError(number, "x"), "surroundings")
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
        ),
        *((OSError(number, "x"), "surroundings") for number in (errno.EPERM, errno.EIO, errno.ESTALE)),
        (ConnectionResetError(), "surroundings"),
        (TimeoutError(), "surroundings"),
        (SurroundingsError("no workers"), "surroundings"),
        (KilledWorker(), "surroundings"),
        (chained(RuntimeError("codec"), OSError(errno.ENOSPC, "x")), "surroundings"),
        (ExceptionGroup("many", [OSError(errno.EIO, "x")]), "surroundings"),
        (ExceptionGroup("many", [OSError(errno.EIO, "x"), ValueError()]), "bug"),
        (DataError("x"), "data"),
        (FormatError("x"), "data"),
        (StateError("x"), "data"),
        (ConfigurationError("x"), "data"),
        (chained(DataError("truncated"), OSError(errno.EIO, "x")), "data"),
        (MemoryError(), "data"),
        (OutOfMemoryError("CUDA out of memory"), "data"),
        (LayoutError("x"), "bug"),
        (UndeclaredAccessError("x"), "bug"),
        (FileNotFoundError(errno.ENOENT, "x"), "bug"),
        (ZeroDivisionError(), "bug"),
        (SystemExit(1), "bug"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_who_is_to_blame(error, kind):
    assert classify(error) == kind


def test_lack_of_memory_says_what_to_do():
    failure = Failure.of(MemoryError())
    assert failure.kind == "data"
    assert "out of memory" in failure.message
    assert "fewer workers" in failure.message


def test_an_exception_that_cannot_be_printed_is_still_described():
    class Mute(Exception):
        def __str__(self):
            raise ValueError("no text")

    assert "no printable text" in Failure.of(Mute()).message
    assert Failure.of(KeyError()).message == "KeyError"  # never empty


class Recorder:
    """A work that lives in this process and tells what happened to it."""

    def __init__(self, key, log, error=None):
        self.key, self.log, self.error = key, log, error

    @contextmanager
    def open(self):
        self.log.append(f"open {self.key}")
        try:
            yield self.call
        finally:
            self.log.append(f"close {self.key}")

    def call(self, argument):
        if self.error is not None:
            raise self.error
        return argument


def use(cache, work, **options):
    return run_task(Task("t", work, 1, **options), cache)


def test_the_cache_keeps_the_last_used_and_closes_the_rest():
    log, cache = [], WorkCache(limit=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert use(cache, Recorder(key, log)).value == 1
    assert log == ["open a", "open b", "open c", "close b", "open b", "close c"]
    cache.close()
    cache.close()
    assert sorted(log[6:]) == ["close a", "close b"]


def test_alone_opens_afresh_with_nothing_else_open():
    log, cache = [], WorkCache()
    use(cache, Recorder("a", log))
    use(cache, Recorder("a", log), alone=True)
    assert log == ["open a", "close a", "open a", "close a"]


@pytest.mark.parametrize(
    ("error", "kept"), [(DataError("x"), True), (OSError(errno.ESTALE, "x"), False), (MemoryError(), False)]
)
def test_after_a_failure_only_blameless_works_stay_open(error, kept):
    log, cache = [], WorkCache()
    assert use(cache, Recorder("a", log, error)).status == "failed"
    assert (log == ["open a"]) is kept


def test_two_tasks_at_once_do_not_share_what_is_open():
    log, cache = [], WorkCache()
    work = Recorder("a", log)
    with cache.borrow(work), cache.borrow(work):
        assert log == ["open a", "open a"]
    assert use(cache, work).value == 1
    assert log == ["open a", "open a"]


def test_a_failing_close_does_not_condemn_the_next_task():
    class Sour(Recorder):
        @contextmanager
        def open(self):
            yield self.call
            raise OSError(errno.EIO, "the store went away")

    cache = WorkCache(limit=0)
    assert use(cache, Sour("a", [])).status == "finished"


def test_keyboard_interrupt_passes():
    with pytest.raises(KeyboardInterrupt):
        use(WorkCache(), Recorder("a", [], KeyboardInterrupt()))


def test_peak_memory_is_the_tasks_own():
    def grow(size):
        return len(bytearray(size))

    class Grow(Recorder):
        def call(self, argument):
            return grow(argument)

    cache = WorkCache()
    big = run_task(Task("big", Grow("g", []), 400_000_000), cache)
    small = run_task(Task("small", Grow("g", []), 1000), cache)
    assert big.peak_bytes - small.peak_bytes > 300_000_000
    assert big.seconds > 0
    assert big.started > 1e9


def test_what_returns_is_joined_with_the_task_that_was_sent():
    sent = task("square", 7)
    packed = run_packed(pack(sent), WorkCache())
    assert len(packed) < 1000  # the task does not travel back
    outcome = unpack_outcome(sent, packed)
    assert outcome.task is sent
    assert outcome.value == 49
    assert unpack_outcome(sent, b"garbage").status == "failed"


def test_outcomes_and_failures_survive_pickling():
    outcome = failed(Task("t", Behaviour(), 1), DataError("broken.mrc"))
    assert isinstance(outcome, Outcome)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_a_work_is_packed_once_for_all_its_tasks() -> None:
    """Tasks of one unit share their work: it is most of what travels, and costs most to pack."""
    opened: list[str] = []

    class Counting:
        key = "counting"

        def __reduce__(self) -> tuple[object, ...]:
            opened.append("packed")
            return Behaviour, ("counting",)

    work = Counting()
    sent = [Task(f"t{n}", work, ("square", n), n + 1, fresh=n == 1) for n in range(3)]  # type: ignore[arg-type]
    received = [_unpack(pack(one)) for one in sent]
    assert opened == ["packed"]
    assert len({id(one.work) for one in received}) == 1
    for one, other in zip(sent, received, strict=True):
        assert replace(one, work=other.work) == other
