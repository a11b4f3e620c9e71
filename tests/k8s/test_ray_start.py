"""`ray start` as the KubeRay operator writes it from our parameters, parsed by the Ray that is installed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from tests.k8s.building import Document, documents, the


def words(params: dict[str, str], node: str, limits: dict[str, str]) -> list[str]:
    """Join parameters as the operator does: "true" is a bare option, but for two of them."""
    added = {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365", "block": "true"}
    if node == "head":
        added |= {"no-monitor": "true", "num-cpus": limits["cpu"]}
    else:
        added |= {
            "address": "cryoscale-ray-head-svc.cryoscale.svc.cluster.local:6379",
            "num-cpus": limits["cpu"],
        }
        added |= {"num-gpus": limits["nvidia.com/gpu"]} if "nvidia.com/gpu" in limits else {}
    made = ["--head"] if node == "head" else []
    for name, value in sorted({**added, **params}.items()):
        if value.lower() in ("true", "false") and name not in ("log-color", "include-dashboard"):
            made += [f"--{name}"] if value.lower() == "true" else []
        else:
            made.append(f"--{name}={value}")
    return made


def parse(arguments: list[str]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.scripts.scripts import start
    parsed: dict[str, Any] = start.make_context("start", arguments).params
    return parsed


@pytest.fixture(scope="module")
def cluster() -> Document:
    return the(documents("gpu"), "RayCluster", "cryoscale-ray")["spec"]


def limits_of(template: Document) -> dict[str, str]:
    limits: dict[str, str] = template["spec"]["containers"][0]["resources"]["limits"]
    return limits


def test_head_takes_no_work_and_shows_no_dashboard(cluster: Document) -> None:
    head = cluster["headGroupSpec"]
    parsed = parse(words(head["rayStartParams"], "head", limits_of(head["template"])))
    assert parsed["head"]
    assert parsed["block"]
    assert parsed["num_cpus"] == 0
    assert parsed["include_dashboard"] is False
    assert parsed["dashboard_host"] == "127.0.0.1"
    assert int(parsed["port"]) == 6379


@pytest.mark.parametrize("group", [0, 1])
def test_workers_have_fixed_ports_and_their_gpus(cluster: Document, group: int) -> None:
    spec = cluster["workerGroupSpecs"][group]
    parsed = parse(words(spec["rayStartParams"], "worker", limits_of(spec["template"])))
    assert (parsed["node_manager_port"], parsed["object_manager_port"]) == (6380, 6381)
    assert (parsed["min_worker_port"], parsed["max_worker_port"]) == (10002, 10999)
    assert parsed["num_gpus"] == (1 if spec["groupName"] == "gpu" else None)
    assert parsed["object_store_memory"] > 75_000_000  # Ray's least
