"""Overlays as kubectl builds them, and the pods that come of them, those of KubeRay included."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())

Document = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """One kind of pod, as it stands in the cluster."""

    owner: str  # kind/name, with the group of a RayCluster
    labels: dict[str, str]
    spec: Document
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def component(self) -> str:
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


@cache
def kustomize() -> str:
    """Return what `kubectl kustomize` is called as; skips where there is none."""
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not here, and builds the overlays")
    return found


@cache
def built(overlay: str) -> str:
    """Return what kubectl makes of an overlay."""
    command = [kustomize(), "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return done.stdout


@cache
def _parsed(overlay: str) -> list[Document]:
    return list(yaml.load_all(built(overlay), Loader=yaml.CSafeLoader))


def documents(overlay: str) -> list[Document]:
    """Return an overlay's documents, free to change."""
    return copy.deepcopy(_parsed(overlay))


def of_kind(docs: list[Document], kind: str) -> list[Document]:
    return [doc for doc in docs if doc["kind"] == kind]


def the(docs: list[Document], kind: str, name: str) -> Document:
    """Return the one document of this kind and name."""
    (found,) = [doc for doc in of_kind(docs, kind) if doc["metadata"]["name"] == name]
    return found


def pods(docs: list[Document]) -> list[Pod]:
    """Return every kind of pod that comes of these documents."""
    return list(_pods(docs))


def _pods(docs: list[Document]) -> Iterator[Pod]:
    for doc in docs:
        owner = f"{doc['kind']}/{doc['metadata']['name']}"
        if doc["kind"] in ("Deployment", "Job"):
            template = doc["spec"]["template"]
            yield Pod(owner, template["metadata"].get("labels", {}), template["spec"])
        elif doc["kind"] == "RayCluster":
            yield _ray_head(owner, doc)
            for group in doc["spec"]["workerGroupSpecs"]:
                yield _ray_worker(f"{owner}/{group['groupName']}", doc, group)


def _ray_labels(doc: Document, template: Document, node_type: str, group: str) -> dict[str, str]:
    """Those that the operator adds; a template's own count more, but for these three."""
    fixed = {
        "ray.io/cluster": doc["metadata"]["name"], "ray.io/node-type": node_type, "ray.io/group": group,
    }  # fmt: skip
    added = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/created-by": "kuberay-operator"}
    return {**added, **template["metadata"].get("labels", {}), **fixed}


def _ray_head(owner: str, doc: Document) -> Pod:
    """The template with the container of the autoscaler, which takes the head's image."""
    template = copy.deepcopy(doc["spec"]["headGroupSpec"]["template"])
    spec = template["spec"]
    if doc["spec"].get("enableInTreeAutoscaling"):
        options = doc["spec"].get("autoscalerOptions", {})
        taken = {k: options[k] for k in ("securityContext", "volumeMounts", "resources") if k in options}
        image = options.get("image", spec["containers"][0].get("image"))
        spec["containers"].append({"name": "autoscaler", "image": image, **taken})
        spec.setdefault("serviceAccountName", doc["metadata"]["name"])  # made by the operator
    labels = _ray_labels(doc, template, "head", "headgroup")
    return Pod(owner + "/head", labels, spec, template["metadata"].get("annotations", {}))


def _ray_worker(owner: str, doc: Document, group: Document) -> Pod:
    """The template with the container that waits for the head, a copy of the first one."""
    template = copy.deepcopy(group["template"])
    spec = template["spec"]
    first = spec["containers"][0]
    size = {"cpu": "200m", "memory": "256Mi", "ephemeral-storage": "1Mi"}
    waits = {
        "name": "wait-gcs-ready", "image": first.get("image"),
        "resources": {"requests": size, "limits": size},
        **{key: first[key] for key in ("securityContext", "volumeMounts") if key in first},
    }  # fmt: skip
    spec["initContainers"] = [*spec.get("initContainers", []), waits]
    return Pod(owner, _ray_labels(doc, template, "worker", group["groupName"]), spec)
