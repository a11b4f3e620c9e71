"""What the recipe of the image promises: one lock, a user that is not root, no secrets, no registries."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.deploy.test_shell import tool

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "deploy").glob("Dockerfile*"))
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=[file.name for file in RECIPES])


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), f"a name stands twice in {file}"
    return {name.lower().replace("_", "-"): version for name, version in found.items()}


def steps(recipe: Path, word: str) -> list[str]:
    """Return the arguments of each step of a kind, continued lines joined, comments left out."""
    text = "\n".join(line for line in recipe.read_text().splitlines() if not line.lstrip().startswith("#"))
    return re.findall(rf"^{word} +(.*)$", text.replace("\\\n", " "), flags=re.M)


def test_there_is_a_recipe():
    assert RECIPES


@each_recipe
def test_hadolint_finds_nothing(recipe):
    done = subprocess.run(
        [tool("hadolint"), "--no-color", recipe], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@each_recipe
def test_each_exception_from_hadolint_is_explained(recipe):
    lines = recipe.read_text().splitlines()
    for number, line in enumerate(lines):
        if "hadolint ignore" in line:
            assert re.match(r"# \w.*[.]$", lines[number - 1]), f"line {number + 1} says no reason"


@each_recipe
def test_versions_come_from_the_lock_alone(recipe):
    installs = [step for step in steps(recipe, "RUN") if re.search(r"pip (install|wheel)", step)]
    assert installs
    for step in installs:
        assert re.search(r"-c constraints\.txt|--no-index --no-deps|--no-deps \.$", step), step
    assert not re.search(r"==\d", "".join(steps(recipe, "RUN")))


@each_recipe
def test_the_user_is_a_number_and_not_root(recipe):
    assert steps(recipe, "USER") == ["10001:10001"]
    assert recipe.read_text().index("USER 10001") > recipe.read_text().rindex("\nRUN ")


@each_recipe
def test_process_1_reaps(recipe):
    assert steps(recipe, "ENTRYPOINT") == ['["/usr/bin/tini", "--", "cryoscale"]']


@each_recipe
def test_no_secret_goes_in_by_environment_argument_or_copy(recipe):
    given = " ".join(steps(recipe, "ENV") + steps(recipe, "ARG") + steps(recipe, "COPY"))
    assert not re.search(r"token|password|secret|key\b|pip\.conf", given, flags=re.I)


@each_recipe
def test_the_image_asks_for_no_gpu_by_itself(recipe):
    """With NVIDIA's runtime this variable alone gives a container all GPUs, also one that asked for none."""
    assert "NVIDIA_VISIBLE_DEVICES" not in " ".join(steps(recipe, "ENV"))


@pytest.mark.parametrize(
    "file", [file for file in (ROOT / "deploy").rglob("*") if file.is_file()], ids=lambda file: file.name
)
def test_no_host_of_a_registry_is_named(file):
    hosts = re.findall(r"\b(?:[a-z0-9-]+\.)+(?:org|io|com|net|dev)\b", file.read_text())
    assert not {host for host in hosts if re.search(r"py(pi|thon|torch)|docker|quay|ghcr|gcr|debian", host)}


def test_the_build_context_is_an_allow_list_without_caches():
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    for recipe in RECIPES:
        copied = [
            word for step in steps(recipe, "COPY") for word in step.split()[:-1] if not word.startswith("--")
        ]
        for word in copied:
            assert f"!{word.removeprefix('./')}" in lines, f"{word} is copied and not in the context"
            assert (ROOT / word).exists()


def test_everything_that_is_needed_is_in_the_lock():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in needed}
    assert names <= pins("constraints.txt").keys()


def test_what_cuda_brings_is_pinned_once():
    assert not pins("constraints.txt").keys() & pins("deploy/constraints-cuda.txt").keys()
    assert "triton" in pins("deploy/constraints-cuda.txt")
