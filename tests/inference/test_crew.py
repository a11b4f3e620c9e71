"""A crew does every job once, and a job that fails ends the others."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest

from cryoscale.inference.crew import Crew


@pytest.mark.parametrize("threads", [1, 3])
def test_every_job_is_done_once(threads: int) -> None:
    crew, done, lock = Crew(range(threads)), [], threading.Lock()

    def note(tool: int, job: int) -> None:
        with lock:
            done.append((tool, job))

    crew.work(range(50), note)
    crew.close()
    assert sorted(job for _, job in done) == list(range(50))
    assert {tool for tool, _ in done} <= set(range(threads))


def test_tools_work_at_the_same_time() -> None:
    crew, meeting = Crew(range(2)), threading.Barrier(2, timeout=30)
    crew.work(range(2), lambda tool, job: meeting.wait() and None)  # alone each would wait for ever
    crew.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_is_raised_and_ends_the_rest(threads: int) -> None:
    crew, begun = Crew(range(threads)), []

    def fail(_: int, job: int) -> None:
        begun.append(job)
        raise RuntimeError(f"job {job}")

    with pytest.raises(RuntimeError, match="job"):
        crew.work(range(50), fail)
    assert len(begun) <= threads
    crew.close()


def test_an_interrupted_caller_stops_the_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go = threading.Event(), threading.Event()
    done: list[int] = []

    def work(tool: str, job: int) -> None:
        started.set()
        go.wait(30)
        done.append(job)

    def interrupted(future: concurrent.futures.Future[None], timeout: float | None = None) -> None:
        started.wait(30)
        go.set()
        raise KeyboardInterrupt

    crew = Crew(["a", "b"])
    monkeypatch.setattr(concurrent.futures.Future, "exception", interrupted)
    with pytest.raises(KeyboardInterrupt):
        crew.work(range(10_000), work)
    count = len(done)
    monkeypatch.undo()
    crew.close()
    assert len(done) == count < 10_000
