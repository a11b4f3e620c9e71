"""What each pod promises: image, security, resources, probes, secrets."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from tests.k8s.building import ROOT, Document, Pod, of_kind, pods, the

SAFE_SYSCTLS = {"net.ipv4.ip_local_port_range"}  # of those that the standard `restricted` lets through
CERTIFICATES = {"ca.pem", "cert.pem", "key.pem"}
_SIZES = {"": 1, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def size(quantity: str) -> float:
    """Return bytes."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(quantity)).groups()
    return float(number) * _SIZES[unit]


def image_complaints(docs: list[Document]) -> list[str]:
    """One image, of the version of the package."""
    images = {container.get("image") for pod in pods(docs) for container in pod.containers}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    known = {f"cryoscale:{version}", f"cryoscale:{version}-cuda"}
    found = [] if len(images) == 1 else [f"more than one image: {sorted(map(str, images))}"]
    wants_gpus = the(docs, "RayCluster", "cryoscale-ray")["spec"]["workerGroupSpecs"][1]["maxReplicas"] > 0
    if wants_gpus != any(str(image).endswith("-cuda") for image in images):
        found.append("the image with CUDA and nodes with GPUs do not go together")
    return found + [f"not an image of this version: {image}" for image in images - known]


def security_complaints(docs: list[Document]) -> list[str]:
    """Pods pass the standard `restricted`, and more."""
    labels = the(docs, "Namespace", "cryoscale")["metadata"]["labels"]
    found = [
        f"the namespace does not {mode} `restricted`" for mode in ("enforce", "audit", "warn")
        if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted"
    ]  # fmt: skip
    for pod in pods(docs):
        found += [f"{pod.owner}: {what}" for what in _pod_security(pod.spec)]
        for container in pod.containers:
            found += [f"{pod.owner}/{container['name']}: {what}" for what in _container_security(container)]
    return found


def _pod_security(spec: dict[str, Any]) -> list[str]:
    context = spec.get("securityContext", {})
    wanted = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    found = [f"{key} is not {value}" for key, value in wanted.items() if context.get(key) != value]
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    found += [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if spec.get(key)]
    found += [f"sysctl {s['name']}" for s in context.get("sysctls", []) if s["name"] not in SAFE_SYSCTLS]
    kinds = {"name", "secret", "configMap", "emptyDir", "persistentVolumeClaim"}
    return found + [f"volume {v['name']} of another kind" for v in spec.get("volumes", []) if set(v) - kinds]


def _container_security(container: dict[str, Any]) -> list[str]:
    context = container.get("securityContext", {})
    wanted = {
        "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
        "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    found = [f"{key} is not {value}" for key, value in wanted.items() if context.get(key) != value]
    if context.get("runAsUser", 10001) != 10001:
        found.append("runs as another user")
    return found + ["a port of the host" for port in container.get("ports", []) if "hostPort" in port]


def resource_complaints(docs: list[Document]) -> list[str]:
    """Every container says what it needs, memory without overcommitment; scratch is bounded."""
    found = []
    for pod in pods(docs):
        for container in pod.containers:
            resources = container.get("resources", {})
            name = f"{pod.owner}/{container['name']}"
            wanted = (
                ["cpu", "memory"]
                if container["name"] == "autoscaler"
                else ["cpu", "memory", "ephemeral-storage"]
            )
            for side in ("requests", "limits"):
                found += [f"{name}: no {side} of {k}" for k in wanted if k not in resources.get(side, {})]
            for key in ("memory", "nvidia.com/gpu"):
                if resources.get("requests", {}).get(key) != resources.get("limits", {}).get(key):
                    found.append(f"{name}: requests and limits of {key} differ")
        found += _scratch(pod)
    worker = next(pod for pod in pods(docs) if pod.component == "dask-worker").spec["containers"][0]
    arguments = dict(zip(worker["args"][3::2], worker["args"][4::2], strict=True))
    if int(arguments["--workers"]) * size(arguments["--memory"].rstrip("B")) > size(
        worker["resources"]["limits"]["memory"]
    ):
        found.append("Dask's workers may use more memory than their pod has")
    if int(arguments["--workers"]) != int(worker["resources"]["requests"]["cpu"]):
        found.append("Dask's workers are not one per core")
    return found


def _scratch(pod: Pod) -> list[str]:
    limits = pod.spec["containers"][0].get("resources", {}).get("limits", {})
    found, disk = [], 0.0
    for volume in pod.spec.get("volumes", []):
        if "emptyDir" in volume:
            bound = volume["emptyDir"].get("sizeLimit")
            if bound is None:
                found.append(f"{pod.owner}: {volume['name']} has no limit")
            elif volume["emptyDir"].get("medium") == "Memory":
                if size(bound) > size(limits.get("memory", "0")) / 4:
                    found.append(f"{pod.owner}: {volume['name']} may take the memory")
            else:
                disk += size(bound)
    if disk > size(limits.get("ephemeral-storage", "0")):
        found.append(f"{pod.owner}: scratch is larger than its storage")
    return found


def probe_complaints(docs: list[Document]) -> list[str]:
    """What serves has three probes, at the port that it serves; the driver, which serves nobody, one."""
    found = []
    ports = {"dask-scheduler": 8786, "ray-head": 6379, "ray-worker": 6380}
    for pod in pods(docs):
        container = pod.spec["containers"][0]
        if pod.component == "driver":
            found += _driver_probe(container)
            continue
        probes = {n: container.get(f"{n}Probe") for n in ("startup", "readiness", "liveness")}
        found += [f"{pod.owner}: no {name} probe" for name, probe in probes.items() if not probe]
        found += [
            f"{pod.owner}: asks by plain HTTP" for probe in probes.values() if probe and "httpGet" in probe
        ]
        asked = {p["tcpSocket"]["port"] for p in probes.values() if p and "tcpSocket" in p}
        if asked - {ports.get(pod.component)}:
            found.append(f"{pod.owner}: probes ask port {asked}")
        words = str([p["exec"] for p in probes.values() if p and "exec" in p])
        if pod.component.startswith("dask") and f":{8786:04X} " not in words:
            found.append(f"{pod.owner}: probes do not look at port 8786")
    return found


def _driver_probe(container: Document) -> list[str]:
    """It asks without secrets, and is more patient than any wait of the driver."""
    probe = container.get("livenessProbe")
    if not probe or "exec" not in probe:
        return ["driver: nobody sees that it hangs"]
    found = ["driver: its probe reads secrets"] if "/secrets" in str(probe["exec"]) else []
    if probe["periodSeconds"] * probe["failureThreshold"] < 3600:
        found.append("driver: killed while it waits")
    return found


def secret_complaints(docs: list[Document]) -> list[str]:
    """Secrets come from one Secret of the user's, for reading, and each pod gets what it needs."""
    found = [f"a secret in the tree: {doc['metadata']['name']}" for doc in of_kind(docs, "Secret")]
    for pod in pods(docs):
        mounted = {v["name"]: v["secret"] for v in pod.spec.get("volumes", []) if "secret" in v}
        for container in pod.containers:
            found += [
                f"{pod.owner}/{container['name']}: {m['name']} is not read-only"
                for m in container.get("volumeMounts", [])
                if m["name"] in ("secrets", "settings")
                and (not m.get("readOnly") or m["mountPath"] != f"/{m['name']}")
            ]
            found += _plain_secrets(pod, container)
        for name, secret in mounted.items():
            if secret["secretName"] != "cryoscale-secrets" or secret.get("defaultMode") != 0o440:
                found.append(f"{pod.owner}: {name} is another secret, or open to others")
        found += _what_is_shown(pod, mounted)
    return found


def _plain_secrets(pod: Pod, container: Document) -> list[str]:
    secret = re.compile("TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)
    return [
        f"{pod.owner}/{container['name']}: {variable['name']} is written out"
        for variable in container.get("env", []) if secret.search(variable["name"]) and "value" in variable
    ]  # fmt: skip


def _what_is_shown(pod: Pod, mounted: dict[str, Any]) -> list[str]:
    """Certificates to Dask, all to the driver, nothing to Ray (the operator hands it the token)."""
    keys = {item["key"] for item in mounted.get("secrets", {}).get("items", [])}
    if pod.component.startswith("dask"):
        return (
            []
            if keys == CERTIFICATES
            else [f"{pod.owner}: does not get Dask's certificates, and these alone"]
        )
    if pod.component == "driver":
        return [] if "secrets" in mounted and not keys else [f"{pod.owner}: does not get the secrets"]
    return [f"{pod.owner}: gets secrets that it does not need"] if mounted else []
