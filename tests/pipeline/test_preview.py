"""The dry run: it writes nothing, and it foretells what the run then plans."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoscale.data.ledger import Mark, UnitLedger
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.pipeline.engines import EngineChoice
from cryoscale.pipeline.preview import Forecast, forecasts, preview
from cryoscale.pipeline.survey import survey_run
from cryoscale.pipeline.telling import INTERPRETER_BYTES
from tests.pipeline.driving import drive, settle
from tests.pipeline.test_status import tree


def foretold(run: Run) -> dict[tuple[str, str], Forecast]:
    rows = forecasts(survey_run(run, look_at_sources=True))
    return {(row.step, row.tomogram): row for row in rows}


def test_a_fresh_run_is_estimated_and_left_alone(make_run: Callable[..., Run]) -> None:
    run = make_run()
    before = tree(run)
    text = preview(run.folder.url)
    assert tree(run) == before
    assert [path.name for path in Path(run.folder.url).iterdir()] == ["run.toml"]
    assert "estimate from file headers" in text
    assert "ingest of alpha: ~" in text
    assert "depends on the number of picks" in text


def test_estimates_from_headers_are_what_the_stages_plan(
    make_run: Callable[..., Run], finished_run: Run
) -> None:
    """Same parameters, same files: the headers alone give the blocks that the finished run had."""
    fresh, real = foretold(make_run()), foretold(finished_run)
    for step in ("ingest", "pick", "segment", "instances"):
        for tomogram in ("alpha", "beta"):
            row = fresh[step, tomogram]
            assert row.estimated
            assert row.blocks == row.due == real[step, tomogram].blocks
            assert row.bytes_per_worker
    assert fresh["encode", "alpha"].blocks is None
    assert fresh["encode", "alpha"].bytes_per_worker


def test_the_disk_estimate_covers_what_ingest_writes(make_run: Callable[..., Run], finished_run: Run) -> None:
    row = foretold(make_run())["ingest", "alpha"]
    written = finished_run.tomogram("alpha")
    labels = written.child("labels").size_bytes()
    assert written.size_bytes() - labels <= row.disk_bytes + 20_000  # metadata


def test_nothing_is_due_of_a_finished_run(finished_run: Run) -> None:
    before = tree(finished_run)
    text = preview(finished_run.folder.url)
    assert tree(finished_run) == before
    assert {row.due for row in foretold(finished_run).values()} == {0}
    assert "at most 0 B more" in text
    assert " of alpha" not in text


def test_marked_blocks_are_not_due(copied_run: Run) -> None:
    survey = survey_run(copied_run, look_at_sources=True)
    unit = survey.graph.units["instances", "beta"]
    plan = unit.step.stage.plan(survey.graph.access_for(unit))
    ledger = UnitLedger(copied_run.ledger, "instances", "beta", unit.key)
    ledger.begin(plan.identity, plan.block_count, 0)
    ledger.add(Mark(0, "done"))
    ledger.flush()
    row = foretold(copied_run)["instances", "beta"]
    assert (row.blocks, row.due, row.estimated) == (plan.block_count, plan.block_count - 1, False)
    settle(copied_run, "execution.block_voxels=64")  # the same key, but another cut: these marks mean nothing
    row = foretold(copied_run)["instances", "beta"]
    assert row.due == row.blocks == 1


def test_a_replaced_source_is_due(
    make_run: Callable[..., Run], small_sources: list[Path], tmp_path: Path
) -> None:
    """A driver recognises sources by size and time; so does the dry run, and `status` does not look."""
    source = tmp_path / "alpha.mrc"
    shutil.copy(small_sources[0], source)
    run = make_run(sources=[source])
    drive(run, until="identify")
    assert foretold(run)["identify", "alpha"].due == 0
    os.utime(source, ns=(1, 1))
    assert foretold(run)["identify", "alpha"].due == 1
    (standing,) = survey_run(run, until="identify").standings
    assert standing.state == "done"


def test_a_changed_parameter_is_due_with_all_behind_it(copied_run: Run) -> None:
    settle(copied_run, "segment.overlap_voxels=2")
    rows = foretold(copied_run)
    assert rows["train_segmenter", ""].due == 0
    assert rows["segment", "alpha"].due == rows["segment", "alpha"].blocks
    assert not rows["segment", "alpha"].estimated
    assert rows["instances", "alpha"].due


def test_a_promise_above_the_budget_is_marked(make_run: Callable[..., Run]) -> None:
    text = preview(make_run("execution.memory_budget=10MB").folder.url)
    assert "10 MB per worker: not enough where marked with !" in text
    assert "MB !" in text
    assert "!" not in preview(make_run("execution.memory_budget=4GB", name="other").folder.url)


def test_a_promise_is_judged_with_its_interpreter_and_by_its_own_engine(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    row = foretold(run)["ingest", "alpha"]
    assert row.bytes_per_worker is not None
    exact = row.bytes_per_worker + INTERPRETER_BYTES["cpu"]

    def marked(**budgets: int) -> set[str]:
        monkeypatch.setattr("cryoscale.pipeline.preview.memory_budgets", lambda *_: budgets)
        lines = preview(run.folder.url).splitlines()
        return {line.split()[0] for line in lines if " of alpha: " in line and " !" in line}

    assert row.engine == "cpu"
    assert "ingest" not in marked(cpu=exact, model=2**40)
    assert "ingest" in marked(cpu=exact - 1, model=2**40)
    assert {"encode", "segment"} <= marked(cpu=2**40, model=2**20)
    assert "ingest" not in marked(cpu=2**40, model=2**20)
    assert marked(cpu=2**40) == set()


def test_engines_elsewhere_are_not_judged_by_this_machine(make_run: Callable[..., Run]) -> None:
    run = make_run("execution.memory_budget=none")
    away = EngineChoice(dask="tcp://10.0.0.1:8786", ray="10.0.0.1:6379")
    text = preview(run.folder.url, choice=away)
    assert "memory budget: unknown" in text
    assert "!" not in text


def test_a_file_that_cannot_be_read_is_named(
    make_run: Callable[..., Run], small_sources: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "gamma.mrc"
    broken.write_bytes(b"not a tomogram")
    text = preview(make_run(sources=[small_sources[0], broken]).folder.url)
    assert "ingest of gamma: " in text
    assert "gamma.mrc" in text
    assert "ingest of alpha: ~" in text


def test_it_says_that_a_person_is_needed(copied_run: Run) -> None:
    copied_run.clusters.folder.delete("selection.toml")
    text = preview(copied_run.folder.url)
    assert "until clusters are chosen" in text
    assert "segment of alpha: ~" in text  # memory is promised before anybody has to choose


def test_until_cuts_the_list(make_run: Callable[..., Run]) -> None:
    run = make_run()
    assert "segment" not in preview(run.folder.url, until="pick")
    with pytest.raises(ConfigurationError, match="there is no stage 'pik'"):
        preview(run.folder.url, until="pik")


def test_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is not a run"):
        preview(str(tmp_path / "nothing"))
