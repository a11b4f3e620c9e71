"""Every shell script of the repository is free of what shellcheck knows, and stops at its first mistake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("benchmarks", "cryoscale", "deploy", "docs", "k8s", "tests")


def is_shell(file: Path) -> bool:
    if not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as stream:
        first = stream.readline(100)
    return first.startswith(b"#!") and (b"bash" in first or b"/sh" in first)


SCRIPTS = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*") if is_shell(file))
each_script = pytest.mark.parametrize(
    "script", SCRIPTS, ids=[str(file.relative_to(ROOT)) for file in SCRIPTS]
)


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


def test_the_scripts_are_found():
    names = {file.name for file in SCRIPTS}
    assert {"cryoscale.sbatch", "array.sbatch", "up", "down", "build-image", "try-image"} <= names


@each_script
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        [tool("shellcheck"), "--severity=style", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@each_script
def test_a_script_stops_at_its_first_mistake_and_can_be_started(script):
    text = script.read_text()
    assert "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


@each_script
def test_a_script_calls_the_command_line_and_no_python(script):
    words = script.read_text().replace("python3-venv", "").replace("python:3.11", "")
    for line in words.splitlines():
        if not line.lstrip().startswith("#") and "python" in line and script.parent.name in ("slurm", "ssh"):
            raise AssertionError(f"{script.name} calls Python: {line}")
