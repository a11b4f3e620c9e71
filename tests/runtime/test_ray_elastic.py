"""Ray clusters whose machines come and go; the scenes are in `ray_driver.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cryoscale.runtime.ray_nodes import Node, room, size_of_worker
from cryoscale.runtime.settings import ExecutorSettings

DRIVER = Path(__file__).with_name("ray_driver.py")
# A network of its own, with nothing but loopback: a Ray of several nodes listens on the machine's address.
ALONE = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "scene", ["growth", "release", "unfit", "nobody", "headless", "headless_idle", "headless_busy"]
)
def test_a_cluster_of_several_nodes(scene, tmp_path):
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("a network of its own for a process needs root")
    done = subprocess.run(
        [*ALONE, sys.executable, str(DRIVER), scene, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(DRIVER.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "workers"),
    [
        ((8, 0), 4, 0, 2),
        ((8, 1), 4, 1, 1),
        ((8, 4), 4, 1, 2),
        ((8, 1), 2, 0.3, 3),
        ((3, 2), 4, 1, 0),
        ((8, 0), 1, 1, 0),
    ],
)
def test_what_a_machine_holds(node, cpus, gpus, workers):
    assert room(Node("n", "host", *node), cpus, gpus) == workers


@pytest.mark.parametrize(
    ("at_most", "machines", "size"),
    [
        (True, [(1, 0), (2, 0)], (0.0, 2)),  # smaller machines than was hoped for
        (True, [(16, 0), (2, 1)], (1.0, 2)),  # the large one has no GPU
        (True, [(16, 1), (2, 1)], (1.0, 4)),
        (False, [(1, 0)], (0.0, 4)),  # asked for by name: waits, and says so
        (True, [], (0.0, 4)),  # an autoscaler may bring some
    ],
)
def test_a_worker_fits_the_machines_there_are(at_most, machines, size):
    settings = ExecutorSettings(threads_per_worker=4, threads_at_most=at_most)
    assert size_of_worker(settings, [Node("n", "host", *one) for one in machines]) == size
