"""All checks of the manifests, as functions from documents to complaints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.k8s.engine_checks import command_complaints, grace_complaints, job_complaints, ray_complaints
from tests.k8s.flows import flow_complaints
from tests.k8s.pod_checks import (
    image_complaints,
    probe_complaints,
    resource_complaints,
    secret_complaints,
    security_complaints,
)
from tests.k8s.schemas import VERSIONS, crd_complaints, crd_path, kubernetes_complaints
from tests.k8s.wiring_checks import (
    access_complaints,
    budget_complaints,
    placement_complaints,
    reference_complaints,
    selector_complaints,
    storage_complaints,
)

if TYPE_CHECKING:
    from tests.k8s.building import Document


def schema_complaints(docs: list[Document]) -> list[str]:
    """Schemas of Kubernetes, the newest of `VERSIONS`."""
    return kubernetes_complaints(docs, VERSIONS[-1])


def custom_complaints(docs: list[Document]) -> list[str]:
    """KubeRay's definition, where it is here."""
    return crd_complaints(docs) if crd_path().is_file() else []


CHECKS: dict[str, Callable[[list[Document]], list[str]]] = {
    "kubernetes": schema_complaints, "kuberay": custom_complaints, "images": image_complaints,
    "security": security_complaints, "resources": resource_complaints, "probes": probe_complaints,
    "secrets": secret_complaints, "commands": command_complaints, "ray": ray_complaints,
    "selectors": selector_complaints, "job": job_complaints, "grace": grace_complaints,
    "placement": placement_complaints, "access": access_complaints, "references": reference_complaints,
    "storage": storage_complaints, "flows": flow_complaints, "budgets": budget_complaints,
}  # fmt: skip
