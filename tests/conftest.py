"""Shared fixtures: a tiny run that went through every stage once, and copies of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from cryoscale.data.run import Run
from cryoscale.testing.phantoms import small_run, write_phantom

settings.register_profile("cryoscale", deadline=None)  # machines are shared: slow is not wrong
settings.load_profile("cryoscale")

SHAPES = {"alpha": (40, 64, 64), "beta": (48, 56, 64)}
SELECTION = "[classes.particle]\nclusters = [1, 2]\n[classes.other]\nclusters = [3]\n"


@pytest.fixture(scope="session")
def small_sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small MRC files; nobody writes to them."""
    folder = tmp_path_factory.mktemp("sources")
    return [
        write_phantom(folder / f"{name}.mrc", shape, seed=seed)
        for seed, (name, shape) in enumerate(SHAPES.items())
    ]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_sources: list[Path]) -> Run:
    """A run with every stage sealed, its selection made; not to be changed: take a `copied_run`."""
    from tests.pipeline.driving import drive

    run = small_run(tmp_path_factory.mktemp("finished") / "run", small_sources)
    assert drive(run).waiting
    run.clusters.folder.write_bytes("selection.toml", SELECTION.encode())
    result = drive(run)
    assert not result.failures, result.failures
    assert not result.waiting
    return run


@pytest.fixture
def copied_run(finished_run: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, free to change."""
    shutil.copytree(finished_run.folder.url, tmp_path / "run")
    return Run.at(tmp_path / "run")


@pytest.fixture
def make_run(tmp_path: Path, small_sources: list[Path]) -> Callable[..., Run]:
    """Make a fresh run: `make_run("pick.threshold=3", sources=[…])`."""

    def make(*settings: str, sources: list[Path] | None = None, name: str = "run") -> Run:
        return small_run(tmp_path / name, sources or small_sources, *settings)

    return make
