"""What the two engines and the driver promise: command lines, Ray, the Job, how they end."""

from __future__ import annotations

import itertools
import re
from typing import Any

import click

from tests.k8s.building import ROOT, Document, of_kind, pods, the


def command_complaints(docs: list[Document]) -> list[str]:
    """The command line of the package takes what is given, with TLS everywhere."""
    found = []
    for pod in pods(docs):
        for container in pod.spec["containers"]:
            words = container.get("args", [])
            if pod.component.startswith("ray"):
                continue
            found += [f"{pod.owner}: {what}" for what in _refused(words)]
            given = dict(itertools.pairwise(words))
            if given.get("--secrets") != "/secrets":
                found.append(f"{pod.owner}: no --secrets /secrets")
            if any(word.startswith("tcp://") for word in words):
                found.append(f"{pod.owner}: Dask without TLS")
            if "scheduler" not in words and "tls://cryoscale-dask-scheduler:8786" not in words:
                found.append(f"{pod.owner}: not the scheduler's address")
            if pod.component == "driver":
                wanted = {"run": "$(RUN)", "--ray": "cryoscale-ray-head-svc:6379", "--wait-for-driver": "300"}
                found += [f"{pod.owner}: {k} is not {v}" for k, v in wanted.items() if given.get(k) != v]
            elif given.get("--host") != "$(POD_IP)":
                found.append(f"{pod.owner}: listens elsewhere than at the pod's address")
            names = {variable["name"] for variable in container.get("env", [])}
            names |= {"RUN", "INPUTS"} if container.get("envFrom") else set()
            found += [
                f"{pod.owner}: {n} is not set"
                for n in re.findall(r"\$\((\w+)\)", str(words))
                if n not in names
            ]
    return found


def _refused(words: list[str]) -> list[str]:
    """What click says of a command line, without running it."""
    from cryoscale.cli import group

    command: click.Command = group
    context = click.Context(command)
    words = [re.sub(r"\$\((\w+)\)", "120", word) for word in words]
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        if found is None:
            return [f"there is no verb {words[0]}"]
        command, words = found, words[1:]
    try:
        command.make_context(command.name or "", list(words))
    except click.ClickException as error:
        return [f"{command.name}: {error.format_message()}"]
    return []


def ray_complaints(docs: list[Document]) -> list[str]:
    """Token, fixed ports, a head without work, groups that begin with nothing."""
    cluster = the(docs, "RayCluster", "cryoscale-ray")
    spec = cluster["spec"]
    wanted_ray = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    head = spec["headGroupSpec"]["rayStartParams"]
    checks = {
        "apiVersion is not ray.io/v1": cluster["apiVersion"] == "ray.io/v1",
        "rayVersion is not the image's": spec["rayVersion"] == wanted_ray,
        "no token": spec.get("authOptions") == {"mode": "token", "secretName": "cryoscale-secrets"},
        "no autoscaling": spec.get("enableInTreeAutoscaling") is True,
        "the head works": head.get("num-cpus") == "0",
        "the head's port is not 6379": head.get("port") == "6379",
        "a dashboard": head.get("include-dashboard") == "false" and head.get("dashboard-host") == "127.0.0.1",
        "a service for outside": spec["headGroupSpec"].get("serviceType") == "ClusterIP",
        "an ingress": not spec["headGroupSpec"].get("enableIngress"),
        "groups are not cpu and gpu": [g["groupName"] for g in spec["workerGroupSpecs"]] == ["cpu", "gpu"],
    }
    found = [what for what, holds in checks.items() if not holds]
    fixed = {
        "node-manager-port": "6380", "object-manager-port": "6381",
        "min-worker-port": "10002", "max-worker-port": "10999",
    }  # fmt: skip
    for params in (head, *(g["rayStartParams"] for g in spec["workerGroupSpecs"])):
        found += [f"{key} is not {value}" for key, value in fixed.items() if params.get(key) != value]
    found += [
        f"group {g['groupName']} begins with nodes" for g in spec["workerGroupSpecs"]
        if g.get("minReplicas") != 0 or g.get("replicas") != 0
    ]  # fmt: skip
    return found + _groups(docs, spec["workerGroupSpecs"])


def _groups(docs: list[Document], groups: list[Document]) -> list[str]:
    """One of the two groups is open, and the run asks for what it has."""
    cpu, gpu = groups
    settings = next(c["data"] for c in of_kind(docs, "ConfigMap") if "prepare.sh" in c["data"])
    text = "\n".join(value for name, value in settings.items() if name.endswith(".where"))
    asked = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    actors = int(asked["execution.ray_workers"])
    threads, gpus = int(asked["execution.ray_threads"]), float(asked["execution.ray_gpus_per_worker"])
    group = gpu if gpus else cpu
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    fit = int(limits["cpu"]) // threads
    if gpus:
        fit = min(fit, int(int(limits.get("nvidia.com/gpu", 0)) / gpus))
    found = (
        []
        if fit and actors == group["maxReplicas"] * fit
        else ["the run asks for more actors or fewer than fit"]
    )
    others = [g for g in groups if g is not group]
    if gpus and any(g["maxReplicas"] for g in others):
        found.append("nodes without GPUs would start")
    tolerated = {t["key"] for t in gpu["template"]["spec"].get("tolerations", [])}
    return found + ([] if "nvidia.com/gpu" in tolerated else ["nodes with GPUs are not tolerated"])


def job_complaints(docs: list[Document]) -> list[str]:
    """The driver comes back after what passes, and not after an end."""
    spec = the(docs, "Job", "cryoscale-run")["spec"]
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    ends = {code: _action(rules, code) for code in (1, 2, 75, 130, 137, 143)}
    wanted = {1: "FailJob", 2: "FailJob", 75: "Count", 130: "Count", 137: "Count", 143: "Count"}
    found = [f"exit {c} is {ends[c]}, not {action}" for c, action in wanted.items() if ends[c] != action]
    first = rules[0] if rules else {}
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    if first.get("action") != "Ignore" or first.get("onPodConditions") != disrupted:
        found.append("a drained node counts as an attempt")
    pod = spec["template"]["spec"]
    if pod.get("restartPolicy") != "Never":
        found.append("podFailurePolicy needs restartPolicy Never")
    if spec.get("podReplacementPolicy") != "Failed":
        found.append("a second driver comes before the first has ended")
    if spec.get("backoffLimit", 6) < 10:
        found.append("a few interruptions end the run")
    if "activeDeadlineSeconds" in spec or "activeDeadlineSeconds" in pod:
        found.append("a long run is ended")
    return found if "ttlSecondsAfterFinished" in spec else [*found, "what ended stays for ever"]


def _action(rules: list[dict[str, Any]], code: int) -> str:
    for rule in rules:
        on = rule.get("onExitCodes")
        if on and (code in on["values"]) == (on["operator"] == "In"):
            return str(rule["action"])
    return "Count"


def grace_complaints(docs: list[Document]) -> list[str]:
    """Time to end in order, within what the node gives."""
    by_component = {pod.component: pod.spec for pod in pods(docs)}
    worker, scheduler = by_component["dask-worker"], by_component["dask-scheduler"]
    values = {variable["name"]: variable.get("value") for variable in worker["containers"][0]["env"]}
    found = []
    if int(values["GRACE"]) + 10 > worker["terminationGracePeriodSeconds"]:
        found.append("a worker is killed before its grace is over")
    hook = (
        scheduler["containers"][0]
        .get("lifecycle", {})
        .get("preStop", {})
        .get("exec", {})
        .get("command", ["sleep", "0"])
    )
    if not 10 <= int(hook[-1]) < scheduler["terminationGracePeriodSeconds"]:
        found.append("the scheduler goes before its workers hand in their blocks, or is killed in its hook")
    if by_component["driver"].get("terminationGracePeriodSeconds", 30) < 60:
        found.append("the driver has no time to keep its marks")
    return found + [
        f"{name} takes longer to end than a preempted node gives"
        for name in ("dask-worker", "ray-worker")
        if wants_spot(by_component[name]) and by_component[name]["terminationGracePeriodSeconds"] > 25
    ]


def wants_spot(spec: Document) -> bool:
    terms = node_terms(spec)
    return bool(terms) and all(e["operator"] == "In" for t in terms for e in t["matchExpressions"])


def node_terms(spec: Document) -> list[Document]:
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    return affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
