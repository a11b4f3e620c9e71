"""checkov over every overlay, and over the pods that KubeRay makes of them; `make check-k8s` installs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.building import K8S, OVERLAYS, ROOT, Document, documents, pods
from tests.k8s.mutations import MUTATIONS

pytestmark = pytest.mark.slow
SEEN_TOO = ("runs_as_root", "root_writable", "latest_image", "probe_removed", "limits_removed")


def checkov() -> str:
    """Return where checkov is; it wants other versions of libraries, so it has its own environment."""
    own = ROOT / "build" / "checkov" / "bin" / "checkov"
    found = os.environ.get("CRYOSCALE_CHECKOV") or (str(own) if own.exists() else shutil.which("checkov"))
    if not found:
        pytest.skip("checkov is not here (`make check-k8s` installs it)")
    return found


def write(docs: list[Document], path: Path) -> None:
    """Documents of Kubernetes, with pods in place of what only KubeRay knows."""
    whole = [doc for doc in docs if doc["kind"] not in ("RayCluster", "PodMonitor")]
    for pod in pods(docs):
        if pod.owner.startswith("RayCluster/"):
            name = re.sub("[^a-z-]", "-", pod.owner.lower())
            meta = {
                "name": name, "namespace": "cryoscale", "labels": pod.labels, "annotations": pod.annotations,
            }  # fmt: skip
            whole.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod.spec})
    path.write_text(yaml.safe_dump_all(whole))


def failed(folder: Path) -> set[tuple[str, str, str]]:
    """Return check, file and object of each complaint."""
    words = [checkov(), "--directory", str(folder), "--config-file", str(K8S / "checkov.yaml"), "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, cwd=folder, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["resource_count"] > 0
    return {
        (c["check_id"], Path(c["file_path"]).stem, c["resource"]) for c in report["results"]["failed_checks"]
    }


def test_checkov_finds_nothing_but_the_faults(tmp_path: Path) -> None:
    """One call for all: overlays as they are, and some with a fault that it knows."""
    for overlay in OVERLAYS:
        write(documents(overlay), tmp_path / f"{overlay}.yaml")
    for name in SEEN_TOO:
        overlay, _, change = MUTATIONS[name]
        docs = documents(overlay)
        change(docs)
        write(docs, tmp_path / f"fault-{name}.yaml")
    found = failed(tmp_path)
    assert {complaint for complaint in found if not complaint[1].startswith("fault-")} == set()
    assert {file.removeprefix("fault-") for _, file, _ in found} == set(SEEN_TOO)


def test_each_skipped_check_has_its_reason() -> None:
    lines = (K8S / "checkov.yaml").read_text().splitlines()
    skipped = [number for number, line in enumerate(lines) if line.strip().startswith("- CKV")]
    assert skipped
    assert all(lines[number - 1].strip().startswith("#") for number in skipped)
