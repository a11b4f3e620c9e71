"""The engines of a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from cryoscale.config import RunConfig
from cryoscale.data.folder import Folder
from cryoscale.errors import SurroundingsError
from cryoscale.pipeline.engines import EngineChoice, Engines
from cryoscale.runtime.events import Event, Message
from cryoscale.testing.executors import drain
from cryoscale.testing.works import task


class Recorded:
    """Stands for an executor; says whether it was closed."""

    def __init__(self, broken: bool) -> None:
        self.broken, self.closed = broken, False

    def begin(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        self.closed = True
        if self.broken:
            raise SurroundingsError("the connection is lost.")


@pytest.mark.parametrize("broken", ["dask", "ray"])
def test_an_engine_that_cannot_be_closed_leaves_no_other_open(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}

    def open_executor(kind: str, _settings: Any) -> Recorded:
        made[kind] = Recorded(kind == broken)
        return made[kind]

    monkeypatch.setattr("cryoscale.pipeline.engines.open_executor", open_executor)
    engines = Engines(RunConfig(), EngineChoice())
    engines.get("cpu")
    engines.get("model")
    with pytest.raises(SurroundingsError, match="connection"), engines:
        pass
    assert [executor.closed for executor in made.values()] == [True, True]


def test_an_engine_without_workers_holds_up_nobody_and_says_so(tmp_path: Path) -> None:
    from distributed import LocalCluster

    events: list[Event] = []
    (tmp_path / "run.toml").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = LocalCluster(
            n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, scheduler_port=0
        )
    with cluster:
        choice = EngineChoice("dask", dask=cluster.scheduler_address)
        with Engines(RunConfig(), choice, Folder.of(tmp_path), events.append) as engines:
            executor = engines.get("cpu")
            executor.submit(task("square", 3))
            while not events:  # the other engine would be at work meanwhile
                assert executor.wait(0.05) == []
            assert isinstance(events[0], Message)
            assert "waiting for a worker of dask" in events[0].text
            assert len(list((tmp_path / "ledger" / "probe").iterdir())) == 1
            cluster.scale(1)
            assert [outcome.value for outcome in drain(executor)] == [9]
        assert not (tmp_path / "ledger" / "probe").exists()


def test_what_workers_look_for_is_left_once_and_asked_for_again_where_storage_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "ledger" / "probe"
    with Engines(RunConfig(), EngineChoice(), Folder.of(tmp_path)) as engines:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "write_bytes", refuse)
            with pytest.raises(OSError, match="No space"):
                engines.prepare("cpu")
        engines.prepare("cpu")
        engines.prepare("model")
        assert len(list(folder.iterdir())) == 1
    assert not folder.exists()
    with Engines(RunConfig(), EngineChoice("serial"), Folder.of(tmp_path)) as engines:
        engines.prepare("cpu")
        assert not folder.exists()
