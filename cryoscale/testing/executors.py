"""What every executor must do, as functions that a test calls with one started executor.

Whoever writes an executor runs `CHECKS` and `FOLDER_CHECKS` over it; each check leaves
the executor empty and usable::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, executor):
        check(executor)
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryoscale.errors import SurroundingsError
from cryoscale.runtime.executor import Executor
from cryoscale.runtime.probe import Guard, versions
from cryoscale.runtime.task import Outcome, Task
from cryoscale.testing.works import Behaviour, BrokenOpen, LocalWork, Look, Untransportable, notes, task

#: Longest that a check waits for outcomes, seconds.
PATIENCE_S = 90.0


class ContractBroken(AssertionError):
    """An executor does not do what its contract promises."""


def require(condition: bool, message: str) -> None:
    """Raise `ContractBroken` unless the condition holds; unlike `assert` it survives `python -O`."""
    if not condition:
        raise ContractBroken(message)


# -- driving ----------------------------------------------------------------------------------------------


def drain(executor: Executor, tasks: Sequence[Task] = (), *, patience_s: float = PATIENCE_S) -> list[Outcome]:
    """Submit tasks within the window and wait until nothing is in flight.

    Returns
    -------
    outcomes : list of Outcome
        In the order in which they came.

    Raises
    ------
    ContractBroken
        If not all came within `patience_s`.
    """
    left, outcomes = list(tasks), []
    deadline = time.monotonic() + patience_s
    while left or executor.in_flight:
        while left and executor.in_flight < executor.window:
            executor.submit(left.pop(0))
        outcomes.extend(executor.wait(1.0))
        require(
            time.monotonic() < deadline, f"{executor.in_flight} tasks were not reported in {patience_s} s"
        )
    return outcomes


def one(executor: Executor, single: Task) -> Outcome:
    """Run one task and return its outcome."""
    outcomes = drain(executor, [single])
    require(len(outcomes) == 1, f"one task gave {len(outcomes)} outcomes")
    return outcomes[0]


# -- checks -----------------------------------------------------------------------------------------------


def check_results(executor: Executor) -> None:
    """Check that every task comes back exactly once, with its own result and sane measurements."""
    before = time.time()
    outcomes = drain(executor, [task("square", n) for n in range(12)])
    require(
        sorted(o.value for o in outcomes) == [n * n for n in range(12)],
        f"wrong results: {[(o.task.identifier, o.value, o.failure) for o in outcomes]}",
    )
    for outcome in outcomes:
        require(outcome.status == "finished" and outcome.failure is None, f"not finished: {outcome}")
        require(outcome.value == outcome.task.argument[1] ** 2, f"result of another task: {outcome}")
        require(outcome.worker != "" and outcome.peak_bytes > 1e6, f"no measurements: {outcome}")
        require(0 <= outcome.seconds < PATIENCE_S, f"seconds: {outcome}")
        require(before - 5 < outcome.started < time.time() + 5, f"started: {outcome}")
    require(executor.wait(0.0) == [], "an outcome was reported twice")


def check_failures(executor: Executor) -> None:
    """Check that failures come back with kind, class, message and traceback, and that work goes on."""
    expected = {
        "data-error": ("data", "DataError", "a.mrc holds no finite voxel. Check the reconstruction."),
        "no-space": ("surroundings", "OSError", os.strerror(errno.ENOSPC)),
        "bug": ("bug", "ZeroDivisionError", "division"),
        "system-exit": ("bug", "SystemExit", "a.mrc"),
        "unpicklable": ("bug", "", "result"),
    }
    values = {"bug": 3, "unpicklable": 3}
    tasks = [task(action, values.get(action, "a.mrc")) for action in expected]
    outcomes = drain(executor, tasks)
    require(len(outcomes) == len(tasks), f"{len(tasks)} tasks gave {len(outcomes)} outcomes")
    for outcome in outcomes:
        kind, error, message = expected[outcome.task.argument[0]]
        failure = outcome.failure
        require(outcome.status == "failed" and failure is not None, f"should have failed: {outcome}")
        if failure is not None:
            require(failure.kind == kind, f"kind {failure.kind}, not {kind}: {failure}")
            require(failure.type == error or not error, f"class {failure.type}, not {error}")
            require(message in failure.message, f"{message!r} is not in {failure.message!r}")
            require("Traceback" in failure.traceback, f"no traceback: {failure}")
    require(one(executor, task("square", 3)).value == 9, "not usable after failures")


def check_broken_open(executor: Executor) -> None:
    """Check that a work that does not open fails its tasks, nothing else."""
    outcome = one(executor, task("square", 2, work=BrokenOpen()))
    require(outcome.status == "failed" and outcome.failure is not None, f"should have failed: {outcome}")
    require(
        outcome.failure is not None and "weights.safetensors" in outcome.failure.message, f"{outcome.failure}"
    )
    require(one(executor, task("square", 3)).value == 9, "not usable after a broken open")


def check_transport(executor: Executor) -> None:
    """Check that a work that cannot be packed, or not unpacked by the worker, is a clear failure."""
    for work, word in ((LocalWork.make(), "Hidden"), (Untransportable(), "only_on_the_driver")):
        outcome = one(executor, task("square", 2, work=work))
        failure = outcome.failure
        require(outcome.status == "failed" and failure is not None, f"should have failed: {outcome}")
        require(failure is not None and failure.kind == "bug" and word in failure.message, f"{failure}")
    require(one(executor, task("square", 3)).value == 9, "not usable after a task that cannot travel")


def check_open_once(executor: Executor, journal: Path) -> None:
    """Check that a worker opens a key once, keeps it open, and closes the one used least recently."""
    works = [Behaviour(key=f"key-{n}", journal=str(journal)) for n in range(3)]
    drain(executor, [task("process-id", n, work=works[0]) for n in range(12)])
    opened = [process for _, process, words in notes(journal) if words[0] == "open"]
    require(len(opened) == len(set(opened)) >= 1, f"opened more than once by one worker: {opened}")
    require(
        not any(words[0] == "close" for _, _, words in notes(journal)), "closed although it was the last used"
    )
    for work in works:
        drain(executor, [task("process-id", n, work=work) for n in range(8)])
    require(
        any(words == ["close", "key-0"] for _, _, words in notes(journal)),
        "nothing was closed although three keys were opened by workers that keep two",
    )


def check_alone(executor: Executor, journal: Path) -> None:
    """Check that a task that runs alone overlaps no other, opens afresh and closes."""
    work = Behaviour(key="alone", journal=str(journal))
    tasks = [
        task("pause", (0.05, str(journal), f"n{n}"), identifier=f"n{n}", work=work, alone=n in (2, 3))
        for n in range(6)
    ]
    for single in tasks:
        executor.submit(single)
    outcomes = drain(executor)
    require(sorted(o.value or "" for o in outcomes) == [f"n{n}" for n in range(6)], f"{outcomes}")
    journal_lines = notes(journal)
    spans: dict[str, dict[str, int]] = {}
    for at, _, words in journal_lines:
        if words[0] in ("begin", "end"):
            spans.setdefault(words[1], {})[words[0]] = at
    for name in ("n2", "n3"):
        overlapping = [
            other
            for other, span in spans.items()
            if other != name and span["begin"] < spans[name]["end"] and span["end"] > spans[name]["begin"]
        ]
        require(not overlapping, f"{name} was to run alone but overlapped {overlapping}")
        process = next(p for _, p, words in journal_lines if words == ["begin", name])
        around = [words[0] for at, p, words in journal_lines if p == process and at <= spans[name]["begin"]]
        require(around[-2:] == ["open", "begin"], f"{name} did not open afresh: {around}")
        after = [words[0] for at, p, words in journal_lines if p == process and at >= spans[name]["end"]]
        require(after[:2] == ["end", "close"], f"{name} did not close: {after}")


def check_window(executor: Executor, journal: Path) -> None:
    """Check that at most `window` tasks are with the engine, however many are submitted."""
    count = executor.window + 3
    for n in range(count):
        executor.submit(task("pause", (0.03, str(journal), f"n{n}"), identifier=f"n{n}"))
        handed = len(executor._running)
        require(handed <= executor.window, f"{handed} handed to the engine, window {executor.window}")
    require(executor.in_flight == count, f"in_flight is {executor.in_flight}, {count} were submitted")
    require(len(drain(executor)) == count, "not all came back")
    running = most = 0
    for _, _, words in notes(journal):
        running += {"begin": 1, "end": -1}[words[0]]
        most = max(most, running)
    require(1 <= most <= executor.window, f"{most} ran at once, window {executor.window}")


def check_needs_client(executor: Executor) -> None:
    """Check that a task may compute with dask, also on a cluster of one worker."""
    outcomes = drain(
        executor, [task("dask", 6, needs_client=True), task("square", 2), task("dask", 4, needs_client=True)]
    )
    require(
        sorted(str(o.value) for o in outcomes) == ["14", "4", "55"],
        f"{[(o.value, o.failure) for o in outcomes]}",
    )


def check_lost(executor: Executor, folder: Path) -> None:
    """Check that a killed worker is reported as lost, that all others come back, and that work goes on."""
    tasks = [task("kill", 9)] + [task("square", n) for n in range(6)]
    outcomes = drain(executor, tasks)
    require(len(outcomes) == 7, f"7 tasks gave {len(outcomes)} outcomes")
    by_name = {outcome.task.identifier: outcome for outcome in outcomes}
    killed = by_name["kill-9"]
    require(killed.status == "lost" and killed.failure is not None, f"should be lost: {killed}")
    require(
        killed.failure is not None and "died" in killed.failure.message, f"says nothing: {killed.failure}"
    )
    innocents = [outcome for outcome in outcomes if outcome is not killed]
    require({o.status for o in innocents} <= {"finished", "lost"}, f"{[o.status for o in innocents]}")
    again = drain(executor, [task("square", n) for n in range(6)])
    require(sorted(o.value for o in again) == [n * n for n in range(6)], "not usable after a worker died")
    flag = task("kill-if-first", str(folder / "flag"), identifier="flag")
    require(
        one(executor, flag).status == "lost", "the executor retried by itself: retries are the controller's"
    )
    require(one(executor, flag).value == "survived", "the second attempt did not run")


def check_guard(make: Callable[[Guard], Executor], journal: Path) -> None:
    """Check that each worker process examines itself before its first task, once, and never again."""
    with make(Guard("contract", versions("dask"), Look(str(journal)))) as executor:
        works = [task("process-id", n, work=Behaviour(journal=str(journal))) for n in range(12)]
        processes = {str(outcome.value) for outcome in drain(executor, works)}
    looked = [process for _, process, words in notes(journal) if words == ["look"]]
    require(len(looked) == len(set(looked)), f"a process examined itself twice: {looked}")
    require(processes <= set(looked), f"{processes - set(looked)} worked unexamined")
    for process in processes:
        first = next(words[0] for _, p, words in notes(journal) if p == process)
        require(first == "look", f"{process} worked before it was examined")


def check_unfit(make: Callable[[Guard], Executor], journal: Path) -> None:
    """Check that workers of another version are refused before any work, with both versions named."""
    said: list[str] = []
    executor = make(Guard("contract-unfit", {**versions(), "numpy": "0.0.1"}, Look(str(journal))))
    executor.tell = lambda text, level: said.append(text)
    try:
        executor.begin()
        executor.submit(task("square", 3, work=Behaviour(journal=str(journal))))
        drain(executor)
    except SurroundingsError as error:
        text = str(error)
    else:
        raise ContractBroken("a worker of another version took a task")
    finally:
        executor.close()
    for words in (f"numpy {versions()['numpy']} instead of 0.0.1", socket.gethostname()):
        require(words in text, f"{words!r} is not in {text!r}")
        require(any(words in line for line in said), f"nobody told {words!r}: {said}")
    require(sum("is not used" in line for line in said) == 1, f"one host was told more than once: {said}")
    require(not notes(journal), f"something happened on an unfit worker: {notes(journal)}")


def check_threads(executor: Executor) -> None:
    """Check that the libraries in a worker process are told to use few threads, this process is not."""
    before = dict(os.environ)
    for name, value in executor.settings.thread_environment.items():
        got = one(executor, task("environment", name)).value
        require(got == value, f"{name} is {got} in the worker, should be {value}")
    require(dict(os.environ) == before, "the environment of this process changed")


#: Checks that need a function from a guard to an executor that is not started, and an empty folder.
GUARD_CHECKS: tuple[Callable[[Callable[[Guard], Executor], Path], None], ...] = (check_guard, check_unfit)

#: Checks that need an executor only.
CHECKS: tuple[Callable[[Executor], None], ...] = (
    check_results,
    check_failures,
    check_broken_open,
    check_transport,
    check_needs_client,
)

#: Checks that need an executor and an empty folder.
FOLDER_CHECKS: tuple[Callable[[Executor, Path], None], ...] = (
    check_open_once,
    check_alone,
    check_window,
    check_lost,
)


def check_close(executor: Executor) -> None:
    """Check that `close` may be called at any time, also with tasks in flight, and again."""
    executor.submit(task("square", 2))
    executor.close()
    require(executor.in_flight == 0, "tasks in flight after close")
    executor.close()
