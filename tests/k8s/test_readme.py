"""The README's commands: each block says whether it is run here, and those that are, are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s.building import K8S, OVERLAYS, ROOT, kustomize

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
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if (tmp_path / "secret.yaml").exists():
        secret = yaml.safe_load((tmp_path / "secret.yaml").read_text())
        assert set(secret["data"]) == {"ca.pem", "cert.pem", "key.pem", "ray-token", "auth_token"}
        assert secret["data"]["auth_token"] == secret["data"]["ray-token"]


def test_every_overlay_is_told() -> None:
    assert set(re.findall(r"^\| `overlays/([\w-]+)`", TEXT, re.MULTILINE)) == set(OVERLAYS)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)", TEXT):
        assert (K8S / target).exists(), target
