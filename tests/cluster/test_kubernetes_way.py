"""Engines as Kubernetes has them: scheduler and workers apart, Ray started by its own command."""

from __future__ import annotations

import shutil

import pytest

from tests.cluster.machines import ON_DASK, ON_RAY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_apart_and_with_a_token_from_the_environment(make_machines, new_run, same, tmp_path):
    machines = make_machines(3)
    first, second, desk = machines.hosts
    machines.engine(first, "scheduler", "--host", first.ip)
    machines.engine(second, "worker", f"tls://{first.ip}:8786", "--host", second.ip, "--workers", 1)
    machines.ray_head(first)
    machines.ready(first, dask=1, ray=1)
    machines.ray_node(second, first)
    machines.ready(first, dask=1, ray=2)

    token = machines.environment()["RAY_AUTH_TOKEN_PATH"]
    certificates = shutil.copytree(machines.secrets, tmp_path / "certificates")
    (certificates / "ray-token").unlink()
    machines.secrets = certificates
    run = new_run()
    driver = machines.drive(desk, run, first, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token)
    assert "all done" in machines.finish(driver)
    same(run)
    journal = machines.journal(run)
    assert set(journal.done_by(ON_DASK)) == {second.name}
    assert set(journal.done_by(ON_RAY)) == {first.name, second.name}
    assert not [
        pid for pid in desk.processes() if pid != desk.pid
    ]  # the Ray node of the driver ended with it
