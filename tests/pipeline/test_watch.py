"""Watching a folder: when a file is taken, what does not stop it, and how it ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoscale.config import RunConfig
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, StateError, SurroundingsError
from cryoscale.pipeline.watch import STOP_FILE, watch_folder
from cryoscale.testing.phantoms import SMALL_SETTINGS, write_phantom
from tests.pipeline import driving


class Scene:
    """A run, a folder that is watched, and a script: one step happens between two looks each."""

    def __init__(self, root: Path) -> None:
        self.run = Run.at(root / "run")
        self.run.save_config(RunConfig())
        self.folder = root / "incoming"
        self.folder.mkdir()
        self.drives: list[list[str]] = []
        self.said: list[str] = []
        self.codes: list[int | Exception] = []

    def drive(self) -> int:
        self.drives.append([source.name for source in self.run.config.inputs])
        code = self.codes.pop(0) if self.codes else 0
        if isinstance(code, Exception):
            raise code
        return code

    def write(self, name: str, data: bytes) -> Callable[[], None]:
        return lambda: self.put(name, data)

    def put(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def watch(self, *steps: Callable[[], object], once: bool = False) -> int:
        left = list(steps)

        def wait() -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        return watch_folder(
            self.run.folder.url, str(self.folder), self.drive, once, wait=wait, tell=self.said.append
        )


def nothing() -> None:
    """Let time pass."""


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_file_is_taken_when_it_stopped_growing(scene: Scene) -> None:
    scene.put("a.mrc", b"1")
    assert scene.watch(scene.write("a.mrc", b"12"), scene.write("a.mrc", b"123")) == 0
    assert scene.drives == []
    assert scene.watch(nothing) == 0
    assert scene.drives == [["a"]]


def test_files_that_come_later_are_added(scene: Scene) -> None:
    scene.put("a.mrc", b"1")
    scene.watch(nothing, scene.write("b.rec", b"2"), nothing, scene.write("c.ST", b"3"), nothing, nothing)
    assert scene.drives == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_other_files_are_left_alone(scene: Scene) -> None:
    for name in ("a.txt", ".hidden.mrc", "b.mrc.partial", "c.tif"):
        scene.put(name, b"1")
    (scene.folder / "folder.mrc").mkdir()
    scene.watch(nothing, nothing)
    assert scene.drives == []


def test_a_replaced_file_is_driven_again_and_an_old_one_is_not(scene: Scene) -> None:
    scene.put("a.mrc", b"1")
    scene.watch(nothing, nothing, nothing, scene.write("a.mrc", b"12"), nothing, nothing)
    assert scene.drives == [["a"], ["a"]]


def test_a_file_that_cannot_be_taken_stops_nobody(scene: Scene) -> None:
    scene.put("a.mrc", b"1")
    scene.put("A.rec", b"1")  # the same name as the other's, but for its case
    scene.put("a.rec", b"1")
    scene.put("b.mrc", b"1")
    code = scene.watch(nothing, nothing, nothing)
    assert "b" in scene.drives[-1]
    assert code == 1
    refusals = [line for line in scene.said if line.startswith("not taken")]
    assert refusals
    assert any("a.rec" in line for line in refusals)
    assert len(refusals) == len(set(refusals))  # each once, not at every look


@pytest.mark.parametrize(
    ("error", "code"), [(SurroundingsError("no space."), 75), (ConfigurationError("a typo."), 2)]
)
def test_a_drive_that_fails_does_not_end_the_watch(scene: Scene, error: Exception, code: int) -> None:
    scene.put("a.mrc", b"1")
    scene.codes = [error]
    assert scene.watch(nothing, nothing) == code
    assert any(str(error) in line for line in scene.said)
    scene.codes = [error, 0]
    assert scene.watch(nothing, scene.write("b.mrc", b"2"), nothing, nothing) == 0


def test_the_last_exit_code_is_returned(scene: Scene) -> None:
    scene.put("a.mrc", b"1")
    scene.codes = [0, 1]
    assert scene.watch(nothing, scene.write("b.mrc", b"2"), nothing, nothing) == 1


def test_a_selection_made_meanwhile_is_driven(scene: Scene) -> None:
    scene.put("a.mrc", b"1")

    def choose() -> None:
        scene.run.clusters.folder.write_bytes("selection.toml", b"[classes.a]\nclusters = [1]\n")

    scene.watch(nothing, nothing, choose, nothing)
    assert scene.drives == [["a"], ["a"]]


def test_inputs_that_stand_already_are_driven_at_once(scene: Scene, tmp_path: Path) -> None:
    scene.put("a.mrc", b"1")
    scene.watch(nothing)
    scene.drives.clear()
    (scene.folder / "a.mrc").rename(tmp_path / "a.mrc")
    scene.watch(nothing, nothing)
    assert scene.drives == [["a"]]


def test_a_stop_file_ends_it_and_is_removed(scene: Scene) -> None:
    scene.watch(lambda: scene.run.folder.write_bytes(STOP_FILE, b""))
    assert not scene.run.folder.exists(STOP_FILE)
    assert any(STOP_FILE in line for line in scene.said[1:])


def test_once_ends_when_nothing_is_due(scene: Scene) -> None:
    def never() -> None:
        pytest.fail("there was nothing to wait for")

    assert scene.watch(never, once=True) == 0
    scene.put("a.mrc", b"1")
    assert scene.watch(nothing, never, once=True) == 0
    assert scene.drives == [["a"]]


def test_an_interrupt_in_the_middle_of_a_drive_ends_it_cleanly(scene: Scene) -> None:
    scene.put("a.mrc", b"1")

    def interrupted() -> int:
        raise KeyboardInterrupt

    code = watch_folder(
        scene.run.folder.url, str(scene.folder), interrupted, wait=nothing, tell=scene.said.append
    )
    assert code == 0
    assert "finished work is kept" in scene.said[-1]


def test_misuse_is_refused(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a folder"):
        watch_folder(scene.run.folder.url, str(tmp_path / "nowhere"), scene.drive)
    with pytest.raises(StateError, match="is not a run"):
        watch_folder(str(tmp_path / "nowhere"), str(scene.folder), scene.drive)


def test_a_broken_file_among_good_ones_goes_through_a_real_run(tmp_path: Path) -> None:
    """The pipeline itself: the good tomogram is ingested, the truncated one is named, the watch goes on."""
    from cryoscale.config import apply_settings

    run = Run.at(tmp_path / "run")
    run.save_config(apply_settings(RunConfig(), list(SMALL_SETTINGS)))
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    good = write_phantom(tmp_path / "good.mrc", (16, 16, 16), seed=1, count=2)
    shutil.copy(good, incoming / "first.mrc")
    (incoming / "broken.mrc").write_bytes(good.read_bytes()[:3000])
    steps: list[Callable[[], object]] = [
        nothing, lambda: shutil.copy(good, incoming / "second.mrc"), nothing, nothing
    ]  # fmt: skip

    def wait() -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    code = watch_folder(
        run.folder.url,
        str(incoming),
        lambda: driving.drive(run, until="ingest").exit_code,
        wait=wait,
        tell=lambda text: None,
    )
    assert code == 1
    assert run.tomogram("first").exists("zarr.json")
    assert run.tomogram("second").exists("zarr.json")
    assert "broken" in run.folder.read_bytes("failures.csv").decode()
