"""Three or four hosts, secrets, a run on a folder that all of them share, and what it must become."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cryoscale.data.run import Run
from cryoscale.runtime.secrets import Secrets
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.hosts import Hosts, obstacle
from cryoscale.testing.phantoms import small_run, write_phantom
from tests.cluster.machines import CRYOSCALE, Machines
from tests.conftest import SELECTION

TOMOGRAMS = 10
SETTINGS = (
    "execution.ray_threads=1", "execution.start_timeout_s=60", "execution.pauses=8",
    "execution.pause_seconds=0.5",
)  # fmt: skip


@pytest.fixture(scope="session")
def namespaces() -> None:
    if why := obstacle():
        pytest.skip(why)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every host sees: sources, runs, secrets, logs."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def secrets(shared: Path) -> Path:
    return Secrets.create(shared / "secrets").folder


@pytest.fixture(scope="session")
def sources(shared: Path) -> list[Path]:
    (shared / "sources").mkdir()
    return [
        write_phantom(shared / "sources" / f"t{n:02d}.mrc", (40, 64, 64), seed=n) for n in range(TOMOGRAMS)
    ]


@pytest.fixture
def new_run(shared: Path, sources: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a run with its selection: `new_run("execution.pauses=1", place=…)`."""

    def make(*settings: str, place: Path | None = None) -> Path:
        place = place or shared / "runs" / tmp_path.name
        run = small_run(place, sources, *SETTINGS, *settings)
        run.clusters.folder.write_bytes("selection.toml", SELECTION.encode())
        return place

    return make


@pytest.fixture(scope="session")
def reference(shared: Path, sources: list[Path]) -> dict[str, str]:
    """Every artifact of the run as one process on one machine makes it."""
    run = small_run(shared / "runs" / "reference", sources, *SETTINGS)
    run.clusters.folder.write_bytes("selection.toml", SELECTION.encode())
    words = [CRYOSCALE, "run", run.folder.url, "--executor", "serial", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return artifact_digest(run)


@pytest.fixture
def same(reference: dict[str, str]) -> Callable[[Path], None]:
    """Check that a run has the bytes of the reference."""

    def check(place: Path) -> None:
        assert not differences(reference, artifact_digest(Run.at(place)))

    return check


@pytest.fixture
def make_machines(
    namespaces: None, shared: Path, secrets: Path, tmp_path: Path
) -> Iterator[Callable[..., Machines]]:
    """Switch on hosts: `make_machines(4)`; all end with the test."""
    with ExitStack() as stack:

        def make(count: int, **options: object) -> Machines:
            hosts = stack.enter_context(Hosts(count, keep=[shared, tmp_path], **options))
            return Machines(hosts, tmp_path, secrets)

        yield make
