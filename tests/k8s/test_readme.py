"""The README's commands: each block says whether it is run here, and those that are, are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.scale_model import Project, storage
from cryoscale.config.sections import ExecutionConfig
from tests.k8s.building import K8S, OVERLAYS, ROOT, documents, kustomize, the

TEXT = (K8S / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_every_block_says_whether_it_is_run() -> None:
    assert {block.partition("\n")[0] for block in BLOCKS} == {"# run here", "# not run here"}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.startswith("# run here")])
def test_block(block: str, tmp_path: Path) -> None:
    kustomize()
    (tmp_path / "k8s").symlink_to(K8S)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "cryoscale"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cryoscale "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    words = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, umask=0o022
    )
    assert done.returncode == 0, done.stderr
    if (tmp_path / "secret.yaml").exists():
        assert (tmp_path / "secret.yaml").stat().st_mode & 0o077 == 0  # the private key is in it
        secret = yaml.safe_load((tmp_path / "secret.yaml").read_text())
        assert set(secret["data"]) == {"ca.pem", "cert.pem", "key.pem", "ray-token", "auth_token"}
        assert secret["data"]["auth_token"] == secret["data"]["ray-token"]


def test_minutes_until_gpu_nodes_go() -> None:
    """Actors are given back first, then the autoscaler counts."""
    ray = the(documents("gpu"), "RayCluster", "cryoscale-ray")["spec"]
    seconds = ExecutionConfig().idle_release_s + ray["autoscalerOptions"]["idleTimeoutSeconds"]
    assert f"{seconds / 60:g} minutes after the last work" in TEXT


def test_size_of_the_claim() -> None:
    """The claim's comment says what the model counts: sources, and the run beside them."""
    project = Project(voxels=(500, 1024, 1024), picks=5000)
    sources = 4 * 500 * 1024 * 1024
    beside = sum(storage(project).values()) / sources
    (said,) = re.findall(r"([\d.]+) times the size of the tomograms", (K8S / "base/storage.yaml").read_text())
    assert 1 + beside <= float(said) < 1.1 + beside
    scaling = (ROOT / "docs/scaling.md").read_text()
    assert f"{beside:.2f} with all the rest of the run" in scaling
    assert f"{said} times the sources" in scaling


def test_every_overlay_is_told() -> None:
    assert set(re.findall(r"^\| `overlays/([\w-]+)`", TEXT, re.MULTILINE)) == set(OVERLAYS)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)", TEXT):
        assert (K8S / target).exists(), target
