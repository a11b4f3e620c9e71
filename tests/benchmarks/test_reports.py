"""Reports say what was measured: their tables are those of the results beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness import results
from benchmarks.harness.report import tables
from benchmarks.weak_pipeline.tables import write_tables

REPORTS = Path(__file__).parents[2] / "benchmarks" / "reports"


@pytest.mark.parametrize("name", ["2026-11-20-weak-pipeline"])
def test_the_tables_of_a_report_are_those_of_its_results(name: str, tmp_path: Path) -> None:
    rows = json.loads((REPORTS / name / "results.json").read_text())
    write_tables(rows, tmp_path / "tables.md")
    assert (REPORTS / f"{name}.md").read_text().endswith((tmp_path / "tables.md").read_text())
    assert sorted(row["snr"] for row in rows) == [0.01, 0.05, 0.1, 0.5]
    for picture in (REPORTS / name).glob("*.png"):
        assert f"{name}/{picture.name}" in (REPORTS / f"{name}.md").read_text()


@pytest.mark.parametrize(
    "folder", sorted(p.parent for p in REPORTS.glob("*/results.jsonl")), ids=lambda p: p.name
)
def test_a_report_of_the_suite_is_that_of_its_results(folder: Path) -> None:
    records = list(results.latest(results.read(folder / "results.jsonl")).values())
    text = folder.with_suffix(".md").read_text()
    assert tables(records) in text
    assert (folder / "notes.md").read_text().strip() in text
    for picture in folder.glob("*.png"):
        assert f"{folder.name}/{picture.name}" in text
    assert f"({folder.name}.md)" in (REPORTS / "README.md").read_text()
