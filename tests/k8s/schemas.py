"""Validation against schemas, where an unknown field is an error, as for `kubectl --validate=strict`."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from tests.k8s.building import ROOT, Document, pods

# The oldest Kubernetes that the manifests are for (podFailurePolicy is final since), and a new one.
VERSIONS = ("1.31", "1.36")
NOT_OF_KUBERNETES = ("RayCluster", "PodMonitor")


def crd_path() -> Path:
    """Where KubeRay's definition is, if it is here; `CRYOSCALE_TEST_CRDS` names another folder."""
    folder = os.environ.get("CRYOSCALE_TEST_CRDS")
    return Path(folder or ROOT.parent / "shared" / "schemas") / "ray.io_rayclusters.yaml"


def kubernetes_complaints(docs: list[Document], version: str) -> list[str]:
    """What Kubernetes would refuse: the documents themselves, and the pods that an operator makes of them."""
    found = []
    for doc in docs:
        if doc["kind"] not in NOT_OF_KUBERNETES:
            found += _complaints(doc, version, f"{doc['kind']}/{doc['metadata']['name']}")
    for pod in pods(docs):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod.spec}
        found += _complaints(whole, version, pod.owner)
    return found


def _complaints(doc: Document, version: str, name: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import kubernetes_validate

        try:
            kubernetes_validate.validate(doc, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{name}: {error.message} at {'/'.join(map(str, error.path))}"]
    return []


def crd_complaints(docs: list[Document]) -> list[str]:
    """What KubeRay's definition does not know; Kubernetes itself would drop it in silence."""
    found = []
    for doc in docs:
        if doc["kind"] == "RayCluster":
            version = doc["apiVersion"].partition("/")[2]
            errors = _crd_validator(version).iter_errors(doc)
            found += [f"RayCluster: {e.message[:300]} at {'/'.join(map(str, e.path))}" for e in errors]
    return found


@cache
def _crd_validator(version: str) -> Draft202012Validator:
    definition = yaml.load(crd_path().read_text(), Loader=yaml.CSafeLoader)
    (schema,) = [
        v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version
    ]
    return Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """Return an OpenAPI schema as a JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in schema.items() if key not in ("properties", "default")}
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made
