"""One driver at a time: on one machine, on several, in containers, with clocks that are wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryoscale.data import folder as folder_module
from cryoscale.data import lock as lock_module
from cryoscale.data.folder import Folder
from cryoscale.data.holder import process_begun, seen_here, this_kernel, this_process
from cryoscale.data.lock import (
    LOCK,
    STALE_LOCK_SECONDS,
    Clock,
    DriverLock,
    beat_seconds,
    sight,
    watch_seconds,
)
from cryoscale.errors import ConfigurationError, OvertakenError, SurroundingsError

ELSEWHERE = {
    "host": "elsewhere",
    "pid": 7,
    "begun": "1",
    "boot": "another",
    "namespace": "pid:[1]",
    "token": "x",
}


class FakeClock(Clock):
    """Time that passes only while somebody waits; `at` says what happens when."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.begun = time.time()
        self.at: list[tuple[float, Callable[[], None]]] = []

    def wall(self) -> float:
        return self.begun + self.passed

    def steady(self) -> float:
        return self.passed

    def wait(self, seconds: float) -> None:
        self.passed += seconds
        while self.at and self.at[0][0] <= self.passed:
            self.at.pop(0)[1]()


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    remote = request.param == "memory"
    return Folder.of(f"memory://{uuid.uuid4().hex}" if remote else tmp_path)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def other_process() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def hold(folder: Folder, clock: Clock, *, age: float = 0.0, **words: Any) -> None:
    folder.write_json(LOCK, {**ELSEWHERE, "heartbeat": clock.wall() - age, **words})


def here(**words: Any) -> dict[str, Any]:
    return {"host": socket.gethostname(), **this_kernel(), **words}


def take(folder: Folder, clock: FakeClock, wait_s: float = 0.0) -> tuple[float, list[str]]:
    """Take the lock and give it back; return how long that took, and whom it waited for."""
    lock, said = DriverLock(folder, clock), list[str]()
    lock.acquire(wait_s, said.append)
    passed = clock.passed
    assert folder.read_json(LOCK)["pid"] == os.getpid()
    lock.release()
    assert not folder.exists(LOCK)
    return passed, said


def test_it_is_held_and_given_back(folder: Folder) -> None:
    first, second = DriverLock(folder, FakeClock()), DriverLock(folder, FakeClock())
    first.acquire()
    first.heartbeat()
    with pytest.raises(ConfigurationError, match=rf"process {os.getpid()} .*--wait-for-driver"):
        second.acquire()
    second.release()
    assert folder.exists(LOCK), "a refused driver took the lock of the other away"
    first.release()
    assert not folder.exists(LOCK)


# -- on one machine -----------------------------------------------------------------------------------------


def test_a_living_process_here_holds_it_however_silent(
    folder: Folder, clock: FakeClock, other_process: int
) -> None:
    hold(folder, clock, age=1e6, **here(pid=other_process, begun=process_begun(other_process)))
    with pytest.raises(ConfigurationError, match=f"process {other_process}"):
        take(folder, clock)
    assert clock.passed == 0.0


@pytest.mark.parametrize("words", [{"pid": 2**22 + 5}, {"pid": os.getpid(), "begun": "1"}])
def test_a_dead_process_here_is_followed_at_once(
    folder: Folder, clock: FakeClock, words: dict[str, object]
) -> None:
    hold(folder, clock, **here(**words))
    assert take(folder, clock)[0] <= 1.0


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = here(pid=process.pid, begun=process_begun(process.pid))
    assert seen_here(holder) is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended; nobody has taken note
    assert seen_here(holder) is False
    process.communicate()
    assert seen_here(holder) is False


@pytest.mark.parametrize("key", ["boot", "namespace"])
def test_the_process_table_of_another_kernel_or_container_says_nothing(
    folder: Folder, clock: FakeClock, key: str, other_process: int
) -> None:
    """Hosts that are all "localhost"; two containers of one pod, in each of which the driver is process 1."""
    mine = {**this_process(), "heartbeat": clock.wall()}
    assert seen_here(mine) is True
    assert seen_here({**mine, key: "another"}) is None
    assert seen_here({**mine, "pid": 2**22 + 5, key: "another"}) is None
    assert seen_here({k: v for k, v in mine.items() if k != key}) is None
    hold(folder, clock, **{**here(pid=2**22 + 5), key: "another"})  # not to be seen here, and fresh
    with pytest.raises(ConfigurationError, match="another driver"):
        take(folder, clock)
    hold(folder, clock, age=1e6, **{**this_process(), key: "another"})  # our own id, and long gone
    assert take(folder, clock)[0] >= watch_seconds()


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_a_driver_in_a_container_of_the_same_host_name(tmp_path: Path) -> None:
    """Really another namespace: it is process 1 there, and this machine has a process 1 as well."""
    code = (
        "import sys; from cryoscale.data.lock import *; from cryoscale.data.folder import Folder\n"
        "lock = DriverLock(Folder.of(sys.argv[1])); lock.acquire(); print('mine', flush=True); input()"
    )
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", code]
    process = subprocess.Popen(
        [*words, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"mine\n":
        pytest.skip(f"no process namespace here: {process.communicate()[1].decode()[-200:]}")
    holder = Folder.of(tmp_path).read_json(LOCK)
    assert (holder["pid"], holder["host"]) == (1, socket.gethostname())
    assert seen_here(holder) is None
    clock = FakeClock()
    with pytest.raises(ConfigurationError, match="process 1 "):
        take(Folder.of(tmp_path), clock)
    process.kill()
    process.communicate()
    passed, _ = take(Folder.of(tmp_path), clock, wait_s=1e4)
    assert passed >= STALE_LOCK_SECONDS, "it was renewed a moment ago: only its silence says that it is dead"


def test_processes_that_are_hidden_are_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted with hidepid, /proc does not show what belongs to others."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "not yours")

    monkeypatch.setattr(os, "kill", refuse)
    assert seen_here(here(pid=2**22 + 5, begun="1")) is None
    monkeypatch.setattr(Path, "read_text", refuse)
    assert seen_here(here(pid=os.getpid(), begun="1")) is None


# -- on several machines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [0.0, STALE_LOCK_SECONDS - 1, -beat_seconds() + 1])
def test_a_fresh_lock_of_another_machine_is_respected_at_once(
    folder: Folder, clock: FakeClock, age: float
) -> None:
    hold(folder, clock, age=age)
    with pytest.raises(ConfigurationError, match="process 7 on elsewhere"):
        take(folder, clock)
    assert clock.passed == 0.0


def test_a_silent_lock_is_watched_and_then_taken_over(folder: Folder, clock: FakeClock) -> None:
    hold(folder, clock, age=STALE_LOCK_SECONDS + 1)
    passed, said = take(folder, clock)
    assert watch_seconds() <= passed < watch_seconds() + 10
    assert said == [
        "looking whether the driver of this run is alive: process 7 on elsewhere, whose last sign looks old "
        "or misdated"
    ]


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_living_driver_whose_clock_is_wrong_is_not_taken_over(
    folder: Folder, clock: FakeClock, skew: float
) -> None:
    hold(folder, clock, age=skew)
    clock.at = [(beat_seconds(), lambda: hold(folder, clock, age=skew))]
    with pytest.raises(ConfigurationError, match="another driver works"):
        take(folder, clock)
    assert clock.passed <= beat_seconds() + 2


def test_a_dead_driver_whose_clock_ran_ahead_is_not_waited_for_until_then(
    folder: Folder, clock: FakeClock
) -> None:
    hold(folder, clock, age=-1e6)
    passed, _ = take(folder, clock)
    assert STALE_LOCK_SECONDS <= passed < STALE_LOCK_SECONDS + 10


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"pid": 1}'])
def test_a_torn_lock_is_no_lock(folder: Folder, clock: FakeClock, data: bytes) -> None:
    folder.write_bytes(LOCK, data)
    assert take(folder, clock)[0] <= 5


def test_a_lock_that_is_just_being_written_is_respected(folder: Folder, clock: FakeClock) -> None:
    """Where there are no hard links a lock can be seen half written."""
    folder.write_bytes(LOCK, b"{")
    clock.at = [(0.1, lambda: hold(folder, clock))]
    with pytest.raises(ConfigurationError, match="elsewhere"):
        take(folder, clock)


# -- waiting ------------------------------------------------------------------------------------------------


def test_who_waits_says_for_whom_and_goes_on_when_the_other_ends(folder: Folder, clock: FakeClock) -> None:
    hold(folder, clock)
    beats = [(10.0 * n, lambda: hold(folder, clock)) for n in range(1, 20)]
    clock.at = [*beats, (200.0, lambda: folder.delete(LOCK))]
    passed, said = take(folder, clock, wait_s=300)
    assert 200 <= passed < 205
    assert said == ["waiting up to 300 s for another driver of this run: process 7 on elsewhere"]


def test_who_waits_takes_over_from_one_that_dies(folder: Folder, clock: FakeClock) -> None:
    hold(folder, clock)
    passed, _ = take(folder, clock, wait_s=300)
    assert STALE_LOCK_SECONDS <= passed < STALE_LOCK_SECONDS + 5


def test_who_waited_in_vain_may_try_again_later(folder: Folder, clock: FakeClock) -> None:
    hold(folder, clock)
    clock.at = [(5.0 * n, lambda: hold(folder, clock)) for n in range(1, 30)]
    with pytest.raises(SurroundingsError, match="still after 100 s"):
        take(folder, clock, wait_s=100)
    assert 100 <= clock.passed < 110


# -- while it is held ---------------------------------------------------------------------------------------


def test_it_is_renewed_while_the_driver_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines see a driver alive whose one task takes longer than their patience."""
    monkeypatch.setattr(lock_module, "STALE_LOCK_SECONDS", 0.06)
    folder, beats = Folder.of(tmp_path), threading.Semaphore(0)
    lock = DriverLock(folder)
    lock.beside(beats.release)
    lock.acquire()
    first = folder.read_json(LOCK)["heartbeat"]
    assert beats.acquire(timeout=30)
    assert folder.read_json(LOCK)["heartbeat"] > first
    lock.release()


def test_storage_that_fails_for_a_while_does_not_end_the_renewing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "STALE_LOCK_SECONDS", 0.06)
    folder, beats, plain, left = Folder.of(tmp_path), threading.Semaphore(0), Folder.write_bytes, [2]

    def write(where: Folder, name: str, data: bytes) -> None:
        if left[0] and threading.current_thread().name == "cryoscale-lock":
            left[0] -= 1
            raise (OSError(28, "full") if left[0] else SurroundingsError("the store refuses."))
        plain(where, name, data)

    monkeypatch.setattr(Folder, "write_bytes", write)
    lock = DriverLock(folder)
    lock.beside(beats.release)
    lock.acquire()
    first = folder.read_json(LOCK)["heartbeat"]
    for _ in range(4):
        assert beats.acquire(timeout=30)
    assert folder.read_json(LOCK)["heartbeat"] > first
    lock.release()


def test_a_driver_that_was_taken_over_stops_and_leaves_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "STALE_LOCK_SECONDS", 0.06)
    folder = Folder.of(tmp_path)
    until = time.monotonic() + 30
    lock = DriverLock(folder)
    lock.acquire()
    hold(folder, lock.clock)
    with pytest.raises(OvertakenError, match="process 7 on elsewhere took this run over"):  # noqa: PT012 - a thread sees it
        while time.monotonic() < until:
            lock.heartbeat()
            hold(folder, lock.clock)
    lock.release()
    assert folder.read_json(LOCK)["host"] == "elsewhere"


def test_a_driver_that_wakes_from_a_long_sleep_looks_before_it_goes_on(
    folder: Folder, clock: FakeClock
) -> None:
    """Its own thread may not have had its turn yet."""
    lock = DriverLock(folder, clock)
    lock.acquire()
    clock.passed += STALE_LOCK_SECONDS + 1
    lock.heartbeat()  # nobody came meanwhile
    clock.passed += STALE_LOCK_SECONDS + 1
    hold(folder, clock)
    with pytest.raises(OvertakenError):
        lock.heartbeat()
    lock.release()


@pytest.mark.parametrize("error", [OSError(116, "stale"), SurroundingsError("the store refuses.")])
def test_a_driver_that_cannot_look_after_a_long_silence_may_write_nothing(
    folder: Folder, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    lock = DriverLock(folder, clock)
    lock.acquire()
    clock.passed += STALE_LOCK_SECONDS / 2 + 1
    hold(folder, clock)

    def fail(*_: object) -> bytes:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_bytes", fail)
        for _ in range(2):  # the second look is not put off
            with pytest.raises(
                SurroundingsError, match=r"driver\.json cannot be read .* silent for more than 60 s"
            ):
                lock.heartbeat()
    with pytest.raises(OvertakenError):
        lock.heartbeat()
    lock.release()


def test_a_driver_that_others_may_take_for_dead_looks_each_time(
    folder: Folder, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock can be read and not written: two minutes later each moment may be the one."""
    lock = DriverLock(folder, clock)
    lock.acquire()
    clock.passed += STALE_LOCK_SECONDS + 1

    def full(*_: object) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_bytes", full)
        lock.heartbeat()
    hold(folder, clock)
    with pytest.raises(OvertakenError):
        lock.heartbeat()
    lock.release()


def test_of_three_at_one_dead_lock_one_drives(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C, late, moves the new lock of B aside; D comes in that moment and makes its own."""
    folder, link = Folder.of(tmp_path), os.link
    hold(folder, clock, **here(pid=2**22 + 5))
    dead = folder.read_bytes(LOCK)
    first, third = DriverLock(folder, clock), DriverLock(folder, FakeClock())

    def late() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "Path", compared(dead))
            patch.setattr(os, "link", before_the_link)
            assert not folder.take(LOCK, dead)

    def before_the_link(*names: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        third.acquire()
        link(*names)

    clock.at = [(0.1, late)]
    with pytest.raises(ConfigurationError, match="another driver works"):
        first.acquire()
    third.heartbeat()
    assert folder.read_json(LOCK)["token"] == third._identity["token"]
    third.release()


def compared(data: bytes) -> type[Path]:
    """Paths whose first reading gives what stood there when somebody looked, before he was suspended."""
    left = [data]

    class Earlier(type(Path())):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            return left.pop() if left else super().read_bytes()

    return Earlier


def test_a_renewal_that_hangs_does_not_bring_a_lock_back_that_was_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "STALE_LOCK_SECONDS", 0.06)
    folder, plain, hangs, goes_on = (
        Folder.of(tmp_path),
        Folder.write_bytes,
        threading.Event(),
        threading.Event(),
    )

    def write(where: Folder, name: str, data: bytes) -> None:
        if threading.current_thread().name == "cryoscale-lock":
            hangs.set()
            assert goes_on.wait(30)
        plain(where, name, data)

    monkeypatch.setattr(Folder, "write_bytes", write)
    lock = DriverLock(folder)
    lock.acquire()
    assert hangs.wait(30)
    lock.release()  # nobody knows what becomes of that write, so the lock goes stale
    assert folder.exists(LOCK)
    goes_on.set()
    assert lock._thread is not None
    lock._thread.join(30)
    assert lock._renew() is False, "what is given back is not renewed"
    lock.release()
    assert not folder.exists(LOCK)


def test_giving_back_on_storage_that_fails_hides_no_other_error(
    folder: Folder, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = DriverLock(folder, clock)
    lock.acquire()

    def fail(*_: object) -> bytes:
        raise OSError(116, "stale")

    monkeypatch.setattr(Folder, "read_bytes", fail)
    lock.release()


# -- from outside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-7200.0, 0.0, 7200.0])
def test_seen_from_outside_by_the_clock_of_the_storage(folder: Folder, clock: FakeClock, skew: float) -> None:
    assert sight(folder, time.time()) is None
    hold(folder, clock, age=skew)
    seen = sight(folder, time.time() + 30)
    assert seen is not None
    assert seen.alive
    assert 29 <= seen.silent_seconds < 60
    assert not sight(folder, time.time() + STALE_LOCK_SECONDS + 1).alive  # type: ignore[union-attr]
    assert sight(folder, time.time() - 1e4).silent_seconds == 0.0  # type: ignore[union-attr]
    folder.write_bytes(LOCK, b"{")
    assert sight(folder, time.time()) is None


def test_the_lock_says_who_where_and_when(folder: Folder, clock: FakeClock) -> None:
    lock = DriverLock(folder, clock)
    lock.acquire()
    record = json.loads(folder.read_bytes(LOCK))
    lock.release()
    assert set(record) == {"host", "pid", "begun", "boot", "namespace", "token", "heartbeat"}
    assert all(record.values())


def test_one_whose_clock_is_behind_the_storage_watches_before_it_calls_a_driver_dead(
    folder: Folder, clock: FakeClock
) -> None:
    hold(folder, clock)
    ahead = time.time() + 5 * STALE_LOCK_SECONDS
    assert not sight(folder, ahead).alive  # type: ignore[union-attr]
    clock.at = [(beat_seconds(), lambda: hold(folder, clock))]
    seen = sight(folder, ahead, clock.wait)
    assert seen is not None
    assert seen.alive
    assert seen.silent_seconds <= beat_seconds()
    begun = clock.passed
    assert begun < 1.5 * beat_seconds()
    assert not sight(folder, ahead, clock.wait).alive  # type: ignore[union-attr]
    assert 1.5 * beat_seconds() <= clock.passed - begun <= 2 * beat_seconds()
    begun = clock.passed
    assert not sight(folder, time.time() + 30 * 3600, clock.wait).alive  # type: ignore[union-attr]
    assert clock.passed == begun, "a day is no error of a clock"
    clock.at = [(0.0, lambda: folder.delete(LOCK))]
    assert sight(folder, ahead, clock.wait) is None
