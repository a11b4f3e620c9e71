"""Faults in the manifests, each with the check that must see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.k8s.building import Document, the

Change = Callable[[list[Document]], None]
MUTATIONS: dict[str, tuple[str, str, Change]] = {}  # name: overlay, check, change


def mutation(check: str, overlay: str = "cpu") -> Callable[[Change], Change]:
    """Register a fault; its name is the function's."""

    def register(change: Change) -> Change:
        MUTATIONS[change.__name__] = (overlay, check, change)
        return change

    return register


def spec_of(docs: list[Document], kind: str, name: str) -> dict[str, Any]:
    """Return the spec of the pods of a Deployment or Job."""
    spec: dict[str, Any] = the(docs, kind, name)["spec"]["template"]["spec"]
    return spec


def worker(docs: list[Document]) -> dict[str, Any]:
    return spec_of(docs, "Deployment", "cryoscale-dask-worker")


def scheduler(docs: list[Document]) -> dict[str, Any]:
    return spec_of(docs, "Deployment", "cryoscale-dask-scheduler")


def job(docs: list[Document]) -> dict[str, Any]:
    spec: dict[str, Any] = the(docs, "Job", "cryoscale-run")["spec"]
    return spec


def ray(docs: list[Document]) -> dict[str, Any]:
    spec: dict[str, Any] = the(docs, "RayCluster", "cryoscale-ray")["spec"]
    return spec


def policy(docs: list[Document], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = the(docs, "NetworkPolicy", name)["spec"]
    return spec


def drop(docs: list[Document], kind: str, name: str) -> None:
    docs.remove(the(docs, kind, name))


def swap(words: list[str], old: str, new: str) -> None:
    words[words.index(old)] = new


@mutation("secrets")
def mount_of_secrets_removed(docs: list[Document]) -> None:
    container = worker(docs)["containers"][0]
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != "secrets"]
    worker(docs)["volumes"] = [v for v in worker(docs)["volumes"] if v["name"] != "secrets"]


@mutation("secrets")
def secrets_writable(docs: list[Document]) -> None:
    mounts = job(docs)["template"]["spec"]["containers"][0]["volumeMounts"]
    next(m for m in mounts if m["name"] == "secrets").pop("readOnly")


@mutation("secrets")
def secrets_open_to_all_users(docs: list[Document]) -> None:
    next(v for v in worker(docs)["volumes"] if v["name"] == "secrets")["secret"]["defaultMode"] = 0o644


@mutation("secrets")
def token_given_to_dask(docs: list[Document]) -> None:
    next(v for v in worker(docs)["volumes"] if v["name"] == "secrets")["secret"].pop("items")


@mutation("secrets")
def token_written_out(docs: list[Document]) -> None:
    environment = worker(docs)["containers"][0]["env"]
    environment.append({"name": "RAY_AUTH_TOKEN", "value": "0123456789abcdef"})


@mutation("secrets")
def secret_in_the_tree(docs: list[Document]) -> None:
    meta = {"name": "cryoscale-secrets", "namespace": "cryoscale"}
    docs.append({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"ray-token": "x"}})


@mutation("commands")
def dask_without_tls(docs: list[Document]) -> None:
    arguments = worker(docs)["containers"][0]["args"]
    swap(arguments, "tls://cryoscale-dask-scheduler:8786", "tcp://cryoscale-dask-scheduler:8786")


@mutation("commands")
def scheduler_without_secrets(docs: list[Document]) -> None:
    del scheduler(docs)["containers"][0]["args"][-2:]


@mutation("commands")
def option_misspelt(docs: list[Document]) -> None:
    swap(job(docs)["template"]["spec"]["containers"][0]["args"], "--wait-for-driver", "--wait-for-drivers")


@mutation("commands")
def scheduler_on_all_interfaces(docs: list[Document]) -> None:
    swap(scheduler(docs)["containers"][0]["args"], "$(POD_IP)", "0.0.0.0")


@mutation("selectors")
def wrong_port_of_the_service(docs: list[Document]) -> None:
    the(docs, "Service", "cryoscale-dask-scheduler")["spec"]["ports"][0]["port"] = 8787


@mutation("selectors")
def wrong_selector_of_the_service(docs: list[Document]) -> None:
    service = the(docs, "Service", "cryoscale-dask-scheduler")
    service["spec"]["selector"] = {"app.kubernetes.io/component": "scheduler"}


@mutation("selectors")
def scheduler_open_to_the_outside(docs: list[Document]) -> None:
    the(docs, "Service", "cryoscale-dask-scheduler")["spec"]["type"] = "LoadBalancer"


@mutation("selectors")
def head_hidden_from_its_service(docs: list[Document]) -> None:
    ray(docs)["headGroupSpec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] = "cryoscale"


@mutation("selectors")
def budget_of_nothing(docs: list[Document]) -> None:
    budget = the(docs, "PodDisruptionBudget", "cryoscale-dask-worker")["spec"]
    budget["selector"]["matchLabels"] = {"app.kubernetes.io/component": "dask-workers"}


@mutation("selectors")
def workers_that_wait_seem_idle(docs: list[Document]) -> None:
    scaler = the(docs, "HorizontalPodAutoscaler", "cryoscale-dask-worker")["spec"]
    scaler["metrics"][0]["resource"]["target"]["averageUtilization"] = 60


@mutation("budgets")
def budget_that_holds_up_a_drain(docs: list[Document]) -> None:
    budget = the(docs, "PodDisruptionBudget", "cryoscale-dask-scheduler")["spec"]
    budget["minAvailable"] = budget.pop("maxUnavailable")


@mutation("budgets")
def budget_of_a_job(docs: list[Document]) -> None:
    budget = the(docs, "PodDisruptionBudget", "cryoscale-dask-worker")["spec"]
    budget["selector"]["matchLabels"] = {"app.kubernetes.io/component": "driver"}


@mutation("budgets")
def budget_of_a_ray_cluster(docs: list[Document]) -> None:
    budget = the(docs, "PodDisruptionBudget", "cryoscale-dask-worker")["spec"]
    budget["selector"]["matchLabels"] = {"app.kubernetes.io/component": "ray-head"}


@mutation("kubernetes")
def field_misspelt(docs: list[Document]) -> None:
    container = worker(docs)["containers"][0]
    container["volumeMount"] = container["volumeMounts"]


@mutation("kuberay")
def field_of_ray_misspelt(docs: list[Document]) -> None:
    ray(docs)["enableIntreeAutoscaling"] = True


@mutation("kuberay")
def field_deep_in_ray_misspelt(docs: list[Document]) -> None:
    ray(docs)["workerGroupSpecs"][1]["template"]["spec"]["toleration"] = []


@mutation("security")
def runs_as_root(docs: list[Document]) -> None:
    worker(docs)["securityContext"]["runAsUser"] = 0


@mutation("security")
def autoscaler_unrestricted(docs: list[Document]) -> None:
    ray(docs)["autoscalerOptions"].pop("securityContext")


@mutation("security")
def root_writable(docs: list[Document]) -> None:
    job(docs)["template"]["spec"]["initContainers"][0]["securityContext"]["readOnlyRootFilesystem"] = False


@mutation("security")
def folder_of_the_host(docs: list[Document]) -> None:
    volumes = ray(docs)["workerGroupSpecs"][0]["template"]["spec"]["volumes"]
    volumes[0] = {"name": "data", "hostPath": {"path": "/data"}}


@mutation("security")
def namespace_privileged(docs: list[Document]) -> None:
    the(docs, "Namespace", "cryoscale")["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce")


@mutation("resources")
def limits_removed(docs: list[Document]) -> None:
    ray(docs)["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"].pop("limits")


@mutation("resources")
def memory_overcommitted(docs: list[Document]) -> None:
    swap(worker(docs)["containers"][0]["args"], "3.5GiB", "8GiB")


@mutation("probes")
def probe_of_another_port(docs: list[Document]) -> None:
    probe = ray(docs)["headGroupSpec"]["template"]["spec"]["containers"][0]["readinessProbe"]
    probe["tcpSocket"]["port"] = 8265


@mutation("probes")
def probe_removed(docs: list[Document]) -> None:
    scheduler(docs)["containers"][0].pop("livenessProbe")


@mutation("probes")
def hung_driver_is_not_seen(docs: list[Document]) -> None:
    job(docs)["template"]["spec"]["containers"][0].pop("livenessProbe")


@mutation("probes", "gpu")
def driver_that_waits_for_nodes_is_killed(docs: list[Document]) -> None:
    job(docs)["template"]["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] = 60


@mutation("images")
def latest_image(docs: list[Document]) -> None:
    worker(docs)["containers"][0]["image"] = "cryoscale:latest"


@mutation("images", "gpu")
def one_image_without_cuda(docs: list[Document]) -> None:
    container = ray(docs)["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]
    container["image"] = container["image"].removesuffix("-cuda")


@mutation("ray")
def token_off(docs: list[Document]) -> None:
    ray(docs)["authOptions"]["mode"] = "disabled"


@mutation("ray")
def token_of_its_own(docs: list[Document]) -> None:
    ray(docs)["authOptions"].pop("secretName")


@mutation("ray")
def dashboard_open(docs: list[Document]) -> None:
    ray(docs)["headGroupSpec"]["rayStartParams"]["dashboard-host"] = "0.0.0.0"


@mutation("ray")
def head_takes_work(docs: list[Document]) -> None:
    ray(docs)["headGroupSpec"]["rayStartParams"].pop("num-cpus")


@mutation("ray", "gpu")
def more_actors_than_gpus(docs: list[Document]) -> None:
    ray(docs)["workerGroupSpecs"][1]["maxReplicas"] = 2


@mutation("job")
def again_after_exit_1(docs: list[Document]) -> None:
    next(r for r in job(docs)["podFailurePolicy"]["rules"] if r["action"] == "FailJob")["onExitCodes"][
        "values"
    ] = [2]


@mutation("job")
def end_after_exit_75(docs: list[Document]) -> None:
    rules = job(docs)["podFailurePolicy"]["rules"]
    next(r for r in rules if r["action"] == "FailJob")["onExitCodes"] = {"operator": "NotIn", "values": [0]}


@mutation("job")
def drained_node_is_an_attempt(docs: list[Document]) -> None:
    del job(docs)["podFailurePolicy"]["rules"][0]


@mutation("grace")
def killed_before_the_grace_ends(docs: list[Document]) -> None:
    worker(docs)["terminationGracePeriodSeconds"] = 30


@mutation("grace", "spot")
def longer_than_a_preempted_node(docs: list[Document]) -> None:
    worker(docs)["terminationGracePeriodSeconds"] = 150


@mutation("placement", "spot")
def head_on_a_preemptible_node(docs: list[Document]) -> None:
    ray(docs)["headGroupSpec"]["template"]["spec"].pop("affinity")


@mutation("access")
def token_of_kubernetes_mounted(docs: list[Document]) -> None:
    worker(docs).pop("automountServiceAccountToken")


@mutation("access")
def rights_given(docs: list[Document]) -> None:
    meta = {"name": "all", "namespace": "cryoscale"}
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    docs.append(
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules}
    )


@mutation("references")
def another_claim(docs: list[Document]) -> None:
    next(v for v in worker(docs)["volumes"] if v["name"] == "data")["persistentVolumeClaim"]["claimName"] = (
        "data"
    )


@mutation("storage")
def claim_of_one_node(docs: list[Document]) -> None:
    the(docs, "PersistentVolumeClaim", "cryoscale-data")["spec"]["accessModes"] = ["ReadWriteOnce"]


@mutation("storage", "object-store")
def no_credentials_of_the_store(docs: list[Document]) -> None:
    ray(docs)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].pop("envFrom")


@mutation("flows")
def default_deny_dropped(docs: list[Document]) -> None:
    drop(docs, "NetworkPolicy", "default-deny")


@mutation("flows")
def policy_dropped(docs: list[Document]) -> None:
    drop(docs, "NetworkPolicy", "driver")


@mutation("flows")
def policy_of_a_wrong_port(docs: list[Document]) -> None:
    policy(docs, "dask-scheduler")["ingress"][0]["ports"][0]["port"] = 8787


@mutation("flows")
def policy_opens_to_everyone(docs: list[Document]) -> None:
    policy(docs, "dask-scheduler")["ingress"][0].pop("from")


@mutation("flows", "object-store")
def metadata_of_the_node_reachable(docs: list[Document]) -> None:
    policy(docs, "object-store")["egress"][0]["to"][0]["ipBlock"].pop("except")


@mutation("commands")
def option_of_workers_misspelt(docs: list[Document]) -> None:
    swap(worker(docs)["containers"][0]["args"], "--grace", "--graces")
