"""Who may reach whom by the NetworkPolicies: a small evaluator, and the flows that must and must not be."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from tests.k8s.building import Document, of_kind, pods

NAMESPACE = "cryoscale"


@dataclass(frozen=True)
class Place:
    """A pod by its namespace and labels, or an address outside of the cluster."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str | None = None


DNS = Place("dns", {"k8s-app": "kube-dns"}, "kube-system")
STRANGER = Place("a pod of another namespace", {"app.kubernetes.io/component": "driver"}, "other")
NEIGHBOUR = Place("another pod of the namespace", {"app": "x"})
OPERATOR = Place("operator", {"app.kubernetes.io/name": "kuberay-operator"}, "kuberay")
PROMETHEUS = Place("prometheus", {"app": "prometheus"}, "monitoring")
INTERNET = Place("an address outside", address="203.0.113.7")
METADATA = Place("the node's metadata", address="169.254.169.254")


def may_reach(docs: list[Document], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether policies let a connection leave its source and arrive at its target."""
    leaves = _passes(docs, source, target, "Egress", port, protocol)
    return leaves and _passes(docs, target, source, "Ingress", port, protocol)


def _passes(docs: list[Document], pod: Place, other: Place, way: str, port: int, protocol: str) -> bool:
    if pod.address is not None or pod.namespace != NAMESPACE:
        return True  # our policies say nothing of it
    ours = [
        policy["spec"] for policy in of_kind(docs, "NetworkPolicy")
        if way in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], pod.labels)
    ]  # fmt: skip
    if not ours:
        return True  # nothing selects it: everything is let through
    side, peers = ("egress", "to") if way == "Egress" else ("ingress", "from")
    return any(
        _is_peer(rule.get(peers), other) and _is_port(rule.get("ports"), port, protocol)
        for spec in ours for rule in spec.get(side) or []
    )  # fmt: skip


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for part in selector.get("matchExpressions", []):
        inside = labels.get(part["key"]) in part.get("values", [])
        holds = {"In": inside, "NotIn": not inside, "Exists": part["key"] in labels}
        if not holds[part["operator"]]:
            return False
    return True


def _is_peer(peers: list[dict[str, Any]] | None, other: Place) -> bool:
    if not peers:
        return True
    return any(_is_one(peer, other) for peer in peers)


def _is_one(peer: dict[str, Any], other: Place) -> bool:
    if "ipBlock" in peer:
        if other.address is None:
            return False  # what an address block means for pods differs from plugin to plugin
        address = ipaddress.ip_address(other.address)
        inside = address in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return inside and not any(
            address in ipaddress.ip_network(e) for e in peer["ipBlock"].get("except", [])
        )
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        spaces = {"kubernetes.io/metadata.name": other.namespace}
        if not _selects(peer["namespaceSelector"], spaces):
            return False
    elif other.namespace != NAMESPACE:
        return False
    return _selects(peer.get("podSelector", {}), other.labels)


def _is_port(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    if not ports:
        return True
    return any(
        p.get("protocol", "TCP") == protocol and p["port"] <= port <= p.get("endPort", p["port"])
        for p in ports
    )


SCHEDULER, WORKER, DRIVER = "dask-scheduler", "dask-worker", "driver"
HEAD, NODE = "ray-head", "ray-worker"

# From, to, ports.
NEEDED = [
    (WORKER, SCHEDULER, (8786,)), (DRIVER, SCHEDULER, (8786,)),
    (SCHEDULER, WORKER, (32768, 60999)), (WORKER, WORKER, (32768, 45000, 60999)),
    (NODE, HEAD, (6379, 6380, 6381, 10002, 10999)), (DRIVER, HEAD, (6379, 6380, 6381, 10002, 10999)),
    (HEAD, NODE, (6380, 6381, 10002, 10999)), (NODE, NODE, (6380, 6381, 10002, 10999)),
    (DRIVER, NODE, (6380, 6381, 10002, 10999)),
    (HEAD, DRIVER, (10002, 19999, 32768, 60999)), (NODE, DRIVER, (10002, 19999, 32768, 60999)),
]  # fmt: skip
PORTS = (22, 53, 80, 443, 6379, 6380, 8080, 8265, 8786, 8787, 9464, 10001, 10002, 32768, 52365, 60999)


def flow_complaints(docs: list[Document]) -> list[str]:
    """Which needed flow is closed, and which other one is open."""
    places = {pod.component: Place(pod.component, pod.labels) for pod in pods(docs)}
    found = [
        f"{source} cannot reach {target}:{port}"
        for source, target, ports in NEEDED for port in ports
        if not may_reach(docs, places[source], places[target], port)
    ]  # fmt: skip
    for place in places.values():
        found += [
            f"{place.name} has no DNS by {p}"
            for p in ("UDP", "TCP")
            if not may_reach(docs, place, DNS, 53, p)
        ]
    return found + _open_inside(docs, places) + _open_outside(docs, places)


def _open_inside(docs: list[Document], places: dict[str, Place]) -> list[str]:
    """Pairs of our own: only the ranges of `NEEDED`."""
    ranges: dict[tuple[str, str], list[tuple[int, int]]] = {
        (WORKER, SCHEDULER): [(8786, 8786)], (DRIVER, SCHEDULER): [(8786, 8786)],
        (SCHEDULER, WORKER): [(32768, 60999)], (WORKER, WORKER): [(32768, 60999)],
    }  # fmt: skip
    node = [(6380, 6381), (10002, 10999)]
    ranges |= {(a, HEAD): [(6379, 6381), (10002, 10999)] for a in (NODE, DRIVER)}
    ranges |= {(a, NODE): node for a in (HEAD, NODE, DRIVER)}
    ranges |= {(a, DRIVER): [(10002, 19999), (32768, 60999)] for a in (HEAD, NODE)}
    found = []
    for a in places:
        for b in places:
            allowed = ranges.get((a, b), [])
            found += [
                f"{a} may reach {b}:{port}" for port in PORTS
                if not any(low <= port <= high for low, high in allowed)
                and may_reach(docs, places[a], places[b], port)
            ]  # fmt: skip
    return found


def _open_outside(docs: list[Document], places: dict[str, Place]) -> list[str]:
    """What lies outside: Kubernetes for the head, the store for who has its credentials, Prometheus."""
    unknown = may_reach(docs, NEIGHBOUR, INTERNET, 443) or may_reach(docs, STRANGER, NEIGHBOUR, 443)
    found = ["what no policy names is not shut in"] if unknown else []
    metrics = bool(of_kind(docs, "PodMonitor"))
    if metrics and not may_reach(docs, PROMETHEUS, places[DRIVER], 9464):
        found.append("Prometheus cannot reach the driver's metrics")
    for place in places.values():
        stored = place.labels.get("cryoscale/object-store") == "true"
        web = {443, 6443} if place.name == HEAD else {443} if stored else set()
        for port in (*PORTS, 6443):
            if (port in web) != may_reach(docs, place, INTERNET, port):
                found.append(f"{place.name} {'cannot' if port in web else 'may'} reach the outside at {port}")
            if may_reach(docs, place, METADATA, port):
                found.append(f"{place.name} may reach the node's metadata at {port}")
            for other in (STRANGER, NEIGHBOUR, OPERATOR, PROMETHEUS):
                meant = metrics and other is PROMETHEUS and (place.name, port) == (DRIVER, 9464)
                if not meant and may_reach(docs, other, place, port):
                    found.append(f"{other.name} may reach {place.name}:{port}")
                if may_reach(docs, place, other, port):
                    found.append(f"{place.name} may reach {other.name}:{port}")
    return found
