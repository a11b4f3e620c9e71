"""Every overlay builds, is valid, and keeps its promises; a fault in it is seen."""

from __future__ import annotations

import pytest
import yaml

from tests.k8s.building import K8S, OVERLAYS, built, documents, pods
from tests.k8s.mutations import MUTATIONS
from tests.k8s.policies import CHECKS
from tests.k8s.schemas import VERSIONS, crd_complaints, crd_path, kubernetes_complaints

NEEDED = {"cpu", "gpu", "spot", "object-store"}


def needs_crds() -> None:
    if not crd_path().is_file():
        pytest.skip(
            f"KubeRay's definitions are not here ({crd_path()}); CRYOSCALE_TEST_CRDS names their folder"
        )


def test_overlays_are_there() -> None:
    assert set(OVERLAYS) >= NEEDED


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_builds_whole(overlay: str) -> None:
    components = {pod.component for pod in pods(documents(overlay))}
    assert components == {"dask-scheduler", "dask-worker", "ray-head", "ray-worker", "driver"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_it(overlay: str, version: str) -> None:
    assert kubernetes_complaints(documents(overlay), version) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_takes_it(overlay: str) -> None:
    needs_crds()
    assert crd_complaints(documents(overlay)) == []


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ("kubernetes", "kuberay")])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_promises_are_kept(overlay: str, check: str) -> None:
    assert CHECKS[check](documents(overlay)) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_fault_is_seen(name: str) -> None:
    overlay, check, change = MUTATIONS[name]
    if check == "kuberay":
        needs_crds()
    docs = documents(overlay)
    assert CHECKS[check](docs) == []
    change(docs)
    assert CHECKS[check](docs), f"{check} does not see {name}"


def test_every_check_sees_a_fault() -> None:
    assert {check for _, check, _ in MUTATIONS.values()} == set(CHECKS)


def test_overlays_differ_where_they_say() -> None:
    limits = {o: documents(o) for o in ("cpu", "gpu")}
    groups = {
        o: [
            g["maxReplicas"] for d in docs if d["kind"] == "RayCluster" for g in d["spec"]["workerGroupSpecs"]
        ]
        for o, docs in limits.items()
    }
    assert groups["cpu"][1] == 0 < groups["cpu"][0]
    assert groups["gpu"][0] == 0 < groups["gpu"][1]
    assert "cryoscale-data" not in built("object-store")
    assert "RUN: s3://" in built("object-store")


def test_every_component_is_in_an_overlay() -> None:
    files = [K8S / "overlays" / o / "kustomization.yaml" for o in OVERLAYS]
    used = {
        path.rpartition("/")[2] for file in files for path in yaml.safe_load(file.read_text())["components"]
    }
    assert used == {folder.name for folder in (K8S / "components").iterdir()}
