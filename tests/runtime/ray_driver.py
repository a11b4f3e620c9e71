"""Scenes on a Ray cluster of several nodes on this machine, each in a process of its own. Usage: SCENE FOLDER

`test_ray_elastic` starts them: Ray reads its settings when it is imported, once per process.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
os.environ.update(TOKEN)
warnings.simplefilter("ignore")

import pytest  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from cryoscale.errors import SurroundingsError  # noqa: E402
from cryoscale.runtime.executor import ExecutorSettings, open_executor  # noqa: E402
from cryoscale.runtime.probe import Guard, versions  # noqa: E402
from cryoscale.testing.executors import drain, one  # noqa: E402
from cryoscale.testing.works import task  # noqa: E402

PATIENCE_S = 60.0


def started(**settings):
    """Start a head without cores, and an executor that has nobody yet."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    executor = open_executor(
        "ray",
        ExecutorSettings(
            address=cluster.address, gpus=None, **{"start_timeout_s": 60, "idle_release_s": 600, **settings}
        ),
    )
    said = []
    executor.tell = lambda text, level: (said.append(text), print(text, flush=True))
    executor.begin()
    return cluster, executor, said


def until(executor, condition):
    """Let the executor look around until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        executor._take(0.1)
        executor._check_deadlines()


def look_after(executor, condition, patience_s=PATIENCE_S):
    """Do what the controller's loop does with an engine that has no work, until something is so."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        executor.tend()
        time.sleep(0.1)


def growth(folder):
    """Nobody; then a node; then a second one; then one leaves, and another is killed at work."""
    cluster, executor, said = started()
    executor.submit(task("square", 5))
    assert executor.window == 2
    until(executor, lambda: said)
    assert "waiting for a worker of ray" in said[0]
    assert "waiting for a worker of ray" in said[0], said
    first = cluster.add_node(num_cpus=2)
    assert [outcome.value for outcome in drain(executor)] == [25]
    drain(executor, [task("pause", (0.5, "", f"a{n}")) for n in range(6)])
    until(executor, lambda: executor.window == 4)
    second = cluster.add_node(num_cpus=2)
    outcomes = drain(executor, [task("pause", (0.5, "", f"n{n}"), identifier=f"n{n}") for n in range(40)])
    assert executor.window == 8, executor.window
    assert len({outcome.worker for outcome in outcomes}) == 4
    nodes = {actor.node for actor in executor._actors}
    assert len(nodes) == 2, "not spread"
    for n in range(8):
        executor.submit(task("pause", (1.0, "", f"m{n}"), identifier=f"m{n}"))
    cluster.remove_node(second, allow_graceful=False)
    outcomes = drain(executor)
    assert len(outcomes) == 8
    assert {outcome.status for outcome in outcomes} <= {"finished", "lost"}
    assert sum(outcome.status == "lost" for outcome in outcomes) <= 4
    until(executor, lambda: executor.window == 4)
    assert one(executor, task("square", 4)).value == 16
    executor.close()
    assert first


def release(folder):
    """Actors that were idle are given back, and come again when there is work."""
    cluster, executor, _ = started(idle_release_s=1.0)
    cluster.add_node(num_cpus=2)
    assert one(executor, task("square", 3)).value == 9
    look_after(executor, lambda: not executor._actors)
    later = time.monotonic() + 6
    look_after(executor, lambda: time.monotonic() > later)
    assert not executor._actors, "they came back without work"
    assert one(executor, task("square", 4)).value == 16
    executor.close()


def unfit(folder):
    """A node with another version of a package: told, not used, and no actor is started there again."""
    cluster, executor, said = started(workers=2)
    metadata = Path(folder) / "fake" / "numpy-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    path = os.environ["PYTHONPATH"]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(folder) / "fake"), path])
    cluster.add_node(num_cpus=2)
    os.environ["PYTHONPATH"] = path
    executor.submit(task("square", 5))
    until(executor, lambda: any("is not used" in line for line in said))
    assert any(f"numpy 0.0.1 instead of {versions()['numpy']}" in line for line in said), said
    bad = set(executor._unfit)
    assert len(bad) == 1
    cluster.add_node(num_cpus=2)
    assert [outcome.value for outcome in drain(executor)] == [25]
    outcomes = drain(executor, [task("pause", (0.1, "", f"n{n}")) for n in range(20)])
    assert {outcome.status for outcome in outcomes} == {"finished"}
    assert not bad & {actor.node for actor in executor._actors}
    assert sum("is not used" in line for line in said) == 1, said
    executor.close()


def nobody(folder):
    """Only unfit machines: a clear end within the limit."""
    cluster, executor, _ = started(
        start_timeout_s=15, guard=Guard("nobody", {**versions("ray"), "numpy": "0.0.1"})
    )
    cluster.add_node(num_cpus=1)
    executor.submit(task("square", 5))
    with pytest.raises(SurroundingsError, match=f"numpy {versions()['numpy']} instead of 0.0.1"):
        drain(executor)
    executor.close()


def headless(folder):
    """The head dies: a clear end before Ray ends this process."""
    cluster, executor, said = started()
    cluster.add_node(num_cpus=1)
    assert one(executor, task("square", 3)).value == 9
    executor.submit(task("pause", (300.0, "", "long"), identifier="long"))
    executor.wait(1.0)
    cluster.head_node.kill_gcs_server()
    with pytest.raises(SurroundingsError, match="the head of the Ray cluster"):
        drain(executor, patience_s=100)
    assert any("does not answer" in line for line in said)
    executor.close()
    print("ended in order", flush=True)
    os._exit(0)  # Ray's own clean-up would wait for its head


def headless_idle(folder):
    """The head dies without work in flight: the process outlives Ray's minute, and joins the next cluster."""
    cluster, executor, said = started()
    cluster.add_node(num_cpus=1)
    assert one(executor, task("square", 3)).value == 9
    cluster.head_node.kill_gcs_server()
    killed = time.monotonic()
    look_after(executor, lambda: any("is gone" in line for line in said))
    time.sleep(max(0.0, killed + 70 - time.monotonic()))  # the driver's thread is busy with something else
    executor.tend()
    second = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    executor._asked = replace(executor._asked, address=second.address)  # a head that came back where it was
    assert one(executor, task("square", 4)).value == 16
    executor.close()
    print("ended in order", flush=True)
    os._exit(0)


def headless_busy(folder):
    """The head dies while the driver's thread is busy: Ray must not end this process after its minute."""
    cluster, executor, _ = started()
    cluster.add_node(num_cpus=1)
    assert one(executor, task("square", 3)).value == 9
    cluster.head_node.kill_gcs_server()
    time.sleep(75)
    executor.tend()
    assert not executor._link.joined
    executor.close()
    print("ended in order", flush=True)
    os._exit(0)


SCENES = (growth, release, unfit, nobody, headless, headless_idle, headless_busy)

if __name__ == "__main__":
    {scene.__name__: scene for scene in SCENES}[sys.argv[1]](sys.argv[2])
    print("well", flush=True)
