"""The engines of a run, without starting one."""

from __future__ import annotations

from typing import Any

import pytest

from cryoscale.config import RunConfig
from cryoscale.errors import SurroundingsError
from cryoscale.pipeline.engines import EngineChoice, Engines


class Recorded:
    """Stands for an executor; says whether it was closed."""

    def __init__(self, broken: bool) -> None:
        self.broken, self.closed = broken, False

    def start(self) -> None:
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
