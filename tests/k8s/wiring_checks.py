"""What the parts promise one another: selectors, placement, rights, references, storage."""

from __future__ import annotations

import re

from tests.k8s.building import Document, Pod, of_kind, pods, the
from tests.k8s.engine_checks import node_terms, wants_spot

MADE_BY_USERS = {"cryoscale-secrets", "cryoscale-object-store"}
TAINTS = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}


def selector_complaints(docs: list[Document]) -> list[str]:
    """Selectors find what they are meant to, and only that."""
    all_pods = pods(docs)

    def chosen(labels: dict[str, str]) -> set[str]:
        return {p.component for p in all_pods if labels.items() <= p.labels.items()}

    found = []
    service = the(docs, "Service", "cryoscale-dask-scheduler")
    if chosen(service["spec"]["selector"]) != {"dask-scheduler"}:
        found.append("the service finds other pods than the scheduler")
    scheduler = next(p for p in all_pods if p.component == "dask-scheduler").spec["containers"][0]
    named = {port["name"]: port["containerPort"] for port in scheduler.get("ports", [])}
    (port,) = service["spec"]["ports"]
    if port["port"] != 8786 or named.get(port["targetPort"], port["targetPort"]) != 8786:
        found.append("the service's port is not the scheduler's")
    if service["spec"].get("type", "ClusterIP") != "ClusterIP":
        found.append("the scheduler is open to the outside")
    found += [
        f"{doc['metadata']['name']} does not select its own pods" for doc in of_kind(docs, "Deployment")
        if not _selects_its_own(doc["spec"])
    ]  # fmt: skip
    budgets = {
        b["metadata"]["name"]: chosen(b["spec"]["selector"]["matchLabels"])
        for b in of_kind(docs, "PodDisruptionBudget")
    }
    wanted = {"dask-scheduler": {"dask-scheduler"}, "dask-worker": {"dask-worker"}}
    if budgets != {f"cryoscale-{name}": components for name, components in wanted.items()}:
        found.append(f"budgets are for {budgets}")
    for pod in all_pods:
        if pod.component.startswith("ray") and pod.labels["app.kubernetes.io/name"] != "kuberay":
            found.append(f"{pod.owner}: the operator's service does not find it")
        found += [
            f"{pod.owner}: spreads other pods" for spread in pod.spec.get("topologySpreadConstraints", [])
            if chosen(spread["labelSelector"]["matchLabels"]) != {pod.component}
        ]  # fmt: skip
    return found + _scaling(docs)


def budget_complaints(docs: list[Document]) -> list[str]:
    """Every node can be drained: each budget lets a pod go, of what Kubernetes can count."""
    found = []
    for budget in of_kind(docs, "PodDisruptionBudget"):
        name, spec = budget["metadata"]["name"], budget["spec"]
        chosen = [p for p in pods(docs) if spec["selector"]["matchLabels"].items() <= p.labels.items()]
        found += [  # no scale: the number that `maxUnavailable` is taken from is unknown, and nothing may go
            f"{name}: a {p.owner} has no number of pods"
            for p in chosen
            if not p.owner.startswith("Deployment/")
        ]
        if (
            set(spec) & {"minAvailable", "maxUnavailable"} != {"maxUnavailable"}
            or spec["maxUnavailable"] != 1
        ):
            found.append(f"{name}: does not let one pod go at a time")
        if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            found.append(f"{name}: keeps a pod that does not work")
    return found


def _selects_its_own(spec: Document) -> bool:
    own: bool = spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    return own


def _scaling(docs: list[Document]) -> list[str]:
    scaler = the(docs, "HorizontalPodAutoscaler", "cryoscale-dask-worker")["spec"]
    target = scaler["scaleTargetRef"]
    scaled = [d for d in of_kind(docs, target["kind"]) if d["metadata"]["name"] == target["name"]]
    found = (
        [] if scaled and scaled[0]["metadata"]["name"] == "cryoscale-dask-worker" else ["nothing is scaled"]
    )
    if any("replicas" in doc["spec"] for doc in scaled):
        found.append("applying again undoes what the autoscaler did")
    (metric,) = scaler["metrics"]
    if metric["resource"]["target"]["averageUtilization"] > 40:
        found.append("workers that wait for storage seem idle")
    if scaler["behavior"]["scaleDown"].get("stabilizationWindowSeconds", 0) < 300:
        found.append("workers go between two stages")
    return found


def placement_complaints(docs: list[Document]) -> list[str]:
    """On spot or not: all workers or none; what there is one of never is, and has priority."""
    all_pods = pods(docs)
    workers = [pod for pod in all_pods if pod.component.endswith("-worker")]
    control = [pod for pod in all_pods if pod not in workers]
    spot = {wants_spot(pod.spec) for pod in workers}
    found = [] if len(spot) == 1 else ["some workers are on preemptible nodes, some not"]
    for pod in control:
        if pod.spec.get("priorityClassName") != "cryoscale-control":
            found.append(f"{pod.owner}: may be pushed away by its workers")
        kept = [e for t in node_terms(pod.spec) for e in t["matchExpressions"] if e["operator"] == "NotIn"]
        if True in spot and len(kept) < 4:
            found.append(f"{pod.owner}: may be on a preemptible node")
    for pod in workers:
        tolerated = {t["key"] for t in pod.spec.get("tolerations", [])}
        if (
            True in spot
            and not {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= tolerated
        ):
            found.append(f"{pod.owner}: does not tolerate preemptible nodes")
    return found


def access_complaints(docs: list[Document]) -> list[str]:
    """Nobody asks Kubernetes but Ray's head, with the rights that the operator gives it."""
    found = [f"{d['kind']}/{d['metadata']['name']} gives rights" for d in docs if "rbac" in d["apiVersion"]]
    accounts = {d["metadata"]["name"]: d for d in of_kind(docs, "ServiceAccount")}
    found += [
        f"{n} is handed a token" for n, d in accounts.items() if d.get("automountServiceAccountToken", True)
    ]
    for pod in pods(docs):
        head = pod.component == "ray-head"
        if pod.spec.get("automountServiceAccountToken", True) is not head:
            found.append(f"{pod.owner}: {'no' if head else 'a'} token of Kubernetes")
        if not head and pod.spec.get("serviceAccountName") not in accounts:
            found.append(f"{pod.owner}: runs as an account that is not there")
        if head and pod.spec["serviceAccountName"] != "cryoscale-ray":
            found.append(f"{pod.owner}: not the account of the operator")
    return found


def reference_complaints(docs: list[Document]) -> list[str]:
    """What is named is there; what is there is used."""
    known = {(d["kind"], d["metadata"]["name"]) for d in docs} | {("Secret", name) for name in MADE_BY_USERS}
    found = [
        f"{d['kind']}/{d['metadata']['name']} is in no namespace or another"
        for d in docs
        if d["kind"] not in ("Namespace", "PriorityClass") and d["metadata"].get("namespace") != "cryoscale"
    ]
    used: set[tuple[str, str]] = set()
    for pod in pods(docs):
        volumes = {v["name"]: v for v in pod.spec.get("volumes", [])}
        mounts = {m["name"] for c in pod.containers for m in c.get("volumeMounts", [])}
        found += [f"{pod.owner}: {name} is mounted and not there" for name in mounts - set(volumes)]
        found += [f"{pod.owner}: {name} is there and not mounted" for name in set(volumes) - mounts]
        used |= _named(pod)
    found += [f"{kind} {name} is not there" for kind, name in used - known]
    spare = {key for key in known if key[0] in ("PersistentVolumeClaim", "ConfigMap", "PriorityClass")} - used
    return found + [f"{kind} {name} is used by nobody" for kind, name in spare]


def _named(pod: Pod) -> set[tuple[str, str]]:
    """What a pod names, by kind and name."""
    keys = {
        "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"), "configMap": ("ConfigMap", "name"),
        "secret": ("Secret", "secretName"),
    }  # fmt: skip
    used = {
        (kind, volume[key][name]) for volume in pod.spec.get("volumes", [])
        for key, (kind, name) in keys.items() if key in volume
    }  # fmt: skip
    kinds = {"configMapRef": "ConfigMap", "secretRef": "Secret"}
    sources = [source for container in pod.containers for source in container.get("envFrom", [])]
    used |= {(kind, s[key]["name"]) for s in sources for key, kind in kinds.items() if key in s}
    if "priorityClassName" in pod.spec:
        used.add(("PriorityClass", pod.spec["priorityClassName"]))
    return used


def storage_complaints(docs: list[Document]) -> list[str]:
    """Whoever works sees the run at the same place: in one claim for all, or in an object store."""
    run = next(c["data"] for c in of_kind(docs, "ConfigMap") if "RUN" in c["data"])["RUN"]
    found = []
    for pod in pods(docs):
        names = {
            v["name"]: v["persistentVolumeClaim"]
            for v in pod.spec.get("volumes", [])
            if "persistentVolumeClaim" in v
        }
        writes = {
            (names[m["name"]]["claimName"], m["mountPath"]) for c in pod.spec["containers"]
            for m in c["volumeMounts"] if m["name"] in names and not m.get("readOnly")
        }  # fmt: skip
        works = pod.component in ("dask-worker", "ray-worker", "driver")
        stored = {
            s["secretRef"]["name"]
            for c in pod.spec["containers"]
            for s in c.get("envFrom", [])
            if "secretRef" in s
        }
        if run.startswith("s3://"):
            if writes or (works != (stored == {"cryoscale-object-store"})):
                found.append(f"{pod.owner}: a claim for writing, or not the store's credentials")
        elif writes != ({("cryoscale-data", "/data")} if works else set()):
            found.append(f"{pod.owner}: does not see the run where the others do")
    found += [
        f"{claim['metadata']['name']} is for one node" for claim in of_kind(docs, "PersistentVolumeClaim")
        if not {"ReadWriteMany", "ReadOnlyMany"} & set(claim["spec"]["accessModes"])
    ]  # fmt: skip
    return found if re.match(r"/data/|s3://", run) else [*found, f"the run is at {run}"]
