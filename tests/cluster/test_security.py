"""Who has no secrets gets nothing: every port of every host, knocked at from another one during work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cryoscale.runtime.secrets import Secrets
from cryoscale.testing.listeners import listening
from tests.cluster.machines import ON_RAY, PROJECT, RAY_PORT, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

INTRUDER = Path(__file__).with_name("intruder.py")
UNAUTHENTICATED, UNIMPLEMENTED = 16, 12  # gRPC: not without a token; the port has no such service
RAY_JOB = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
ray.get(ray.remote(open).remote(sys.argv[2], "w"), timeout=20)
"""


def knock(machines, intruder, host, flag, folder=""):
    """Knock at every port of a host that is not loopback's; return its owners and what answered."""
    there = {one.port: one for one in listening(host) if not one.loopback}
    words = [sys.executable, str(INTRUDER), host.ip, ",".join(map(str, there)), str(flag), str(folder)]
    done = intruder.run(words, timeout=240, env={"PROJECT": PROJECT, "PYTHONPATH": PROJECT}, stderr=None)
    answers = json.loads(done.stdout.splitlines()[-1])
    return {port: (there[port], answers[str(port)]) for port in there}


def served(answer):
    """List what was answered to somebody without secrets."""
    found = [f"HTTP {what} {status}" for what, status in answer["http"].items() if status and status < 400]
    refused = (UNAUTHENTICATED, UNIMPLEMENTED)
    for way in ("grpc", "grpc-wrong"):
        found += [f"{way} {call} {code}" for call, code in answer[way].items() if code not in refused]
    return found + [f"dask {way}" for way, said in answer.get("dask", {}).items() if said == "served"]


def test_no_port_serves_who_has_no_secrets(make_machines, new_run, shared, tmp_path):
    machines = make_machines(4)
    first, second, desk, intruder = machines.hosts
    machines.lead(first)
    machines.join(second, first)
    machines.ready(first, dask=2, ray=2)
    run = new_run()
    driver = machines.drive(desk, run, first)
    journal = machines.journal(run)
    until(lambda: journal.done_by(ON_RAY), f"workers of both engines are there\n{machines.tail()}")

    foreign = Secrets.create(tmp_path / "foreign").folder
    flag = tmp_path / "flag"
    found, seen, asked = {}, 0, 0
    for host in (first, second, desk):
        for port, (owner, answer) in knock(machines, intruder, host, flag, foreign).items():
            seen += 1
            asked += UNAUTHENTICATED in answer["grpc"].values()
            if what := served(answer):
                found[f"{host.name}:{port} {owner.command[:80]}"] = what
    assert seen >= 8, "hardly anything listens: the test looks at the wrong hosts"
    assert asked >= 5, "Ray's ports asked for no token: the knocking is wrong"
    assert not found, json.dumps(found, indent=1)
    assert not flag.exists()
    assert "all done" in machines.finish(driver)  # and the knocking did no harm


@pytest.mark.parametrize("token", ["", "0" * 64], ids=["no-token", "wrong-token"])
def test_ray_runs_no_job_without_its_token(make_machines, tmp_path, token):
    machines = make_machines(2)
    first, intruder = machines.hosts
    machines.lead(first)
    machines.ready(first, dask=1, ray=1)
    flag = tmp_path / "flag"
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    job = [sys.executable, "-c", RAY_JOB, f"{first.ip}:{RAY_PORT}", str(flag)]
    assert intruder.run(["timeout", "60", *job], timeout=90, env=env).returncode
    node = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={first.ip}:{RAY_PORT}"]
    joined = intruder.run(["timeout", "60", *node, f"--node-ip-address={intruder.ip}"], timeout=90, env=env)
    assert joined.returncode, joined.stdout
    machines.ready(first, ray=1)  # still one machine
    assert not flag.exists()


def test_dask_is_not_served_beyond_loopback_without_secrets(make_machines):
    machines = make_machines(1)
    (first,) = machines.hosts
    done = first.run([sys.executable, "-m", "cryoscale", "engine", "scheduler", "--host", first.ip])
    assert done.returncode == 2, done.stdout
    assert "--secrets" in done.stdout
    assert not listening(first)
