"""The Ray executor in simulated time, on a Ray that the test plays: who is asked for, replaced, released."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from cryoscale.errors import SurroundingsError
from cryoscale.runtime import ray as ray_executor
from cryoscale.runtime import ray_link, ray_start
from cryoscale.runtime.packing import run_packed
from cryoscale.runtime.probe import Finding
from cryoscale.runtime.ray_actors import Actor
from cryoscale.runtime.ray_nodes import Node
from cryoscale.runtime.settings import ExecutorSettings
from cryoscale.runtime.task import WorkCache
from cryoscale.testing.works import task

NO_SPACE = "it reads /run but cannot write there (No space left on device)."


class Reference:
    """What a task gave: nothing yet, a value, or an error."""

    def __init__(self):
        self.answer = None

    def end(self, answer):
        self.answer = answer


class FakeRay:
    """Actors and nodes that do what the test says, in a time of their own."""

    def __init__(self, monkeypatch):
        self.now, self.actors, self.questions, self.rows, self.said = 0.0, [], {}, {}, []
        self.silent_s, self.looks = 0.0, 1
        module, errors = ModuleType("ray"), ModuleType("ray.exceptions")
        errors.RayError = self.RayError = type("RayError", (Exception,), {})
        errors.RayTaskError = type("RayTaskError", (errors.RayError,), {})
        module.wait, module.get, module.exceptions = self.wait, self.get, errors
        module.is_initialized = lambda: False
        monkeypatch.setitem(sys.modules, "ray", module)
        monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
        monkeypatch.setattr(
            ray_executor, "time", SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        )
        monkeypatch.setattr(ray_executor, "start_actor", self.start_actor)
        monkeypatch.setattr(ray_executor, "end_actor", self.end_actor)
        monkeypatch.setattr(ray_executor, "ask", self.ask)
        monkeypatch.setattr(ray_link, "NodeWatch", lambda: self)
        monkeypatch.setattr(ray_link, "end_ray", lambda actors, owns: None)
        monkeypatch.setattr(ray_link, "unreachable", lambda address: "")
        monkeypatch.setattr(
            ray_link, "import_ray", lambda embedded: SimpleNamespace(is_initialized=lambda: True)
        )

    def nodes(self):
        return dict(self.rows)

    def close(self):
        pass

    def wait(self, references, num_returns, timeout):
        return [one for one in references if one.answer is not None], []

    def get(self, reference):
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def ask(self, node, guard):
        node.examination = self.questions[node.identifier] = Reference()

    def start_actor(self, settings, gpus, guard, elsewhere):
        handle = SimpleNamespace(run=SimpleNamespace(remote=lambda guard, payload: self.run(handle, payload)))
        handle.size, handle.elsewhere, handle.runs = (
            (gpus, settings.threads_per_worker),
            set(elsewhere or ()),
            [],
        )
        actor = Actor(handle, Reference(), self.now)
        self.actors.append(actor)
        return actor

    def run(self, handle, payload):
        reference = Reference()
        handle.runs.append((reference, payload))
        return reference

    def end_actor(self, actor):
        self.actors.remove(actor)

    def finish(self):
        """Let every actor do what it has."""
        for actor in self.actors:
            for reference, payload in actor.handle.runs:
                reference.end(run_packed(payload, WorkCache()))
            actor.handle.runs.clear()

    def greet(self, problem="", node="node-a"):
        """Let every actor that has not answered say that it is fit, or what is wrong."""
        for actor in self.actors:
            if actor.answer.answer is None:
                actor.answer.end((Finding(problem, "host", id(actor), self.now), node))


@pytest.fixture
def ray(monkeypatch):
    return FakeRay(monkeypatch)


def opened(ray, *, address="10.0.0.1:6379", **settings):
    executor = ray_executor.RayExecutor(
        ExecutorSettings(address=address, **{"idle_release_s": 300.0, "gpus": None, **settings})
    )
    executor.tell = lambda text, level: ray.said.append(text)
    if address is None:
        executor._link.start = lambda settings: setattr(executor._link, "joined", True)
    executor.begin()
    return executor


def go_on(ray, executor, seconds, step=2.5):
    """Let time pass, as the controller's loop does."""
    end = ray.now + seconds
    while ray.now < end:
        ray.now += step
        executor.tend()


def work(ray, executor):
    """Let actors come and work for a while; return what ended."""
    outcomes = []
    for _ in range(10):
        ray.now += 2.5
        ray.greet()
        outcomes += executor.wait(0.0)
        ray.finish()
    return outcomes


def test_a_head_that_goes_while_there_is_no_work_ends_nothing(ray):
    ray.rows = {"node-a": Node("node-a", "a", 2, 0)}
    executor = opened(ray)
    ray.greet()
    executor.tend()
    ray.silent_s = 20.0
    go_on(ray, executor, 5)
    assert "does not answer; waiting" in ray.said[-1]
    ray.silent_s = 45.0
    go_on(ray, executor, 100)
    assert sum("is looked for again when there is work" in line for line in ray.said) == 1
    assert not executor._link.joined
    ray.silent_s, ray.actors = 0.0, []
    executor.submit(task("square", 3))
    assert [outcome.value for outcome in work(ray, executor)] == [9]
    executor.close()


def test_a_head_that_goes_while_there_is_work_ends_the_run_in_order(ray):
    ray.rows = {"node-a": Node("node-a", "a", 2, 0)}
    executor = opened(ray)
    executor.submit(task("square", 3))
    ray.silent_s = 45.0
    with pytest.raises(
        SurroundingsError, match=r"the head of the Ray cluster at .* has not answered for 45 s"
    ):
        go_on(ray, executor, 5)
    executor.close()


def test_actors_are_given_back_when_all_are_idle(ray):
    ray.rows = {"node-a": Node("node-a", "a", 4, 0)}
    executor = opened(ray)
    ray.greet()
    go_on(ray, executor, 290)
    assert len(ray.actors) == 4
    go_on(ray, executor, 20)
    assert ray.actors == []
    go_on(ray, executor, 100)
    assert ray.actors == [], "they came back without work"
    executor.close()


def counts_of(ray, executor, looks=1000):
    """Say how many actors there were one after another."""
    counts = [len(ray.actors)]
    for _ in range(looks):
        go_on(ray, executor, 2.5)
        ray.greet()
        if counts[-1] != len(ray.actors):
            counts.append(len(ray.actors))
    return counts


@pytest.mark.parametrize("long", [1, 2])
def test_one_long_training_does_not_make_the_idle_ones_come_and_go(ray, long):
    ray.rows = {"node-a": Node("node-a", "a", 8, 0)}
    executor = opened(ray)
    ray.greet()
    go_on(ray, executor, 5)
    for n in range(long):
        executor.submit(task("square", n))
    assert counts_of(ray, executor) == [8, long]
    for n in range(2 * long):  # now the window is full, and more waits than those who are left can do
        executor.submit(task("square", 10 + n))
    go_on(ray, executor, 5)
    assert len(ray.actors) == 8
    executor.close()


def test_two_trainings_on_one_actor_do_not_make_the_others_come_and_go(ray):
    ray.rows = {"node-a": Node("node-a", "a", 8, 0)}
    executor = opened(ray)
    ray.actors[0].answer.end((Finding("", "a", 1, ray.now), "node-a"))
    go_on(ray, executor, 3)
    for n in range(2):
        executor.submit(task("square", n))
    ray.greet()
    assert counts_of(ray, executor) == [8, 1]
    executor.close()


def test_a_full_window_of_the_few_that_are_left_asks_for_more(ray):
    """The controller submits no more than the window, so nothing waits in the backlog."""
    ray.rows = {"node-a": Node("node-a", "a", 8, 0)}
    executor = opened(ray)
    ray.greet()
    go_on(ray, executor, 5)
    executor.submit(task("square", 1))
    go_on(ray, executor, 400)
    assert len(ray.actors) == 1
    executor.submit(task("square", 2))
    assert executor.in_flight == executor.window
    go_on(ray, executor, 5)
    assert len(ray.actors) == 8
    executor.close()


def test_the_size_of_a_worker_follows_machines_until_one_is_ready(ray):
    ray.rows = {"small": Node("small", "small", 2, 0)}
    executor = opened(ray, threads_per_worker=4, threads_at_most=True)
    assert {actor.handle.size for actor in ray.actors} == {(0.0, 2)}
    ray.rows["gpu"] = Node("gpu", "gpu", 16, 2)
    go_on(ray, executor, 3)
    assert [actor.handle.size for actor in ray.actors] == [(1.0, 4)] * 2
    ray.greet(node="gpu")
    go_on(ray, executor, 3)
    ray.rows["late"] = Node("late", "late", 3, 2)
    go_on(ray, executor, 3)
    assert {actor.handle.size for actor in ray.actors} == {(1.0, 4)}
    executor.close()


def test_a_hiccup_of_storage_does_not_condemn_a_machine_for_ever(ray):
    ray.rows = {"node-a": Node("node-a", "a", 1, 0)}
    executor = opened(ray, workers=1)
    ray.questions["node-a"].end(Finding(NO_SPACE, "a", 1, ray.now))
    go_on(ray, executor, 5)
    assert ray.actors[0].handle.elsewhere <= {"node-a"}
    assert executor._unfit == {"node-a"}
    asked = ray.questions["node-a"]
    go_on(ray, executor, 50)
    assert ray.questions["node-a"] is asked
    go_on(ray, executor, 15)
    assert ray.questions["node-a"] is not asked
    ray.questions["node-a"].end(Finding("", "a", 1, ray.now))
    go_on(ray, executor, 5)
    assert executor._unfit == set()
    ray.greet()
    go_on(ray, executor, 5)
    assert executor._live_workers() == 1
    assert sum("is not used" in line for line in ray.said) == 1
    executor.close()


def test_an_embedded_ray_does_not_start_unfit_actors_without_end(ray):
    executor = opened(ray, address=None, workers=2)
    executor.submit(task("square", 3))
    started = {id(actor): actor for actor in ray.actors}
    for _ in range(80):  # 20 s
        ray.greet(NO_SPACE, node="here")
        go_on(ray, executor, 0.25, step=0.25)
        executor._take(0.0)
        started |= {id(actor): actor for actor in ray.actors}
    assert len(started) <= 10
    go_on(ray, executor, 30)
    ray.greet(node="here")
    go_on(ray, executor, 5)
    assert executor._live_workers() == 2, "a storage that mends is not waited for"
    executor.close()


def test_a_fresh_task_on_an_actor_that_never_was_is_not_lost(ray):
    ray.rows = {"node-a": Node("node-a", "a", 1, 0)}
    executor = opened(ray, workers=1)
    ray.greet()
    go_on(ray, executor, 3)
    executor.submit(task("square", 4, fresh=True))
    (actor,) = ray.actors
    assert len(actor.handle.runs) == 1
    gone = ray.RayError("The actor died because its node has died.")
    actor.handle.runs[0][0].end(gone)
    actor.answer.end(gone)
    assert executor.wait(0.0) == []
    assert executor.in_flight == 1
    assert [(o.status, o.value) for o in work(ray, executor)] == [("finished", 16)]
    executor.close()


@pytest.mark.parametrize(
    ("error", "message", "hopeless"),
    [
        ("AuthenticationError", "wrong token", True),
        ("RpcError", "UNAUTHENTICATED: Invalid auth", True),
        ("RpcError", "failed to connect to all addresses", False),
    ],
)
def test_what_a_head_says_is_hopeless_or_not_yet(error, message, hopeless):
    said = ray_start._refusal("10.0.0.1:6379", {"error": error, "message": message})
    assert isinstance(said, ray_start.RefusedError) == hopeless


def test_a_head_that_is_starting_is_waited_for_and_a_refusal_is_not(ray, monkeypatch):
    monkeypatch.setattr(
        ray_link, "import_ray", lambda embedded: SimpleNamespace(is_initialized=lambda: False)
    )
    error = SurroundingsError("what listens there does not answer like the head of a Ray cluster.")

    def join(address, limit_s):
        raise error

    monkeypatch.setattr(ray_link, "join_cluster", join)
    monkeypatch.setattr(ray_link, "leave_cluster", lambda: None)
    executor = opened(ray)
    assert "does not answer like the head" in executor._waiting_for()
    executor.close()
    error = ray_start.RefusedError("the Ray cluster refuses our token.")
    with pytest.raises(SurroundingsError, match="refuses our token"):
        opened(ray)
