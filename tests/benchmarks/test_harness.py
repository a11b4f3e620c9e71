"""The harness: what is measured before is not measured again, reports say what the results say."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import results
from benchmarks.harness.case import Case, Contestant, Setup, Size, Target
from benchmarks.harness.measure import measure, ratios
from benchmarks.harness.report import reached, write_report
from benchmarks.harness.slopes import slope

MACHINE = {
    "machine": "m", "commit": "abc", "processor": "p", "cores": 2, "memory_gb": 1.0, "gpu": "", "system": "s",
    "python": "3", "versions": {"numpy": "2"},
}  # fmt: skip


def record_of(name: str, rows: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    return {
        "case": name, "size": "small", "unit": "voxel", "threads": 1, "device": "cpu", "load_before": 0.0,
        "peak_mb": 1, "missing": [], "facts": {"error": 0.25}, "date": "2026-01-02T00:00:00",
        "machine": MACHINE,
        "rows": [
            {"name": row, "role": "ours" if row == "ours" else "peer", "settings": "", "work": 8.0,
             "seconds": seconds, "cpu": seconds}
            for row, seconds in rows.items()
        ],
        **more,
    }  # fmt: skip


def test_contestants_take_turns_and_are_checked(tmp_path: Path) -> None:
    calls: list[str] = []

    @contextlib.contextmanager
    def opened(size: Size, scratch: Path) -> Iterator[Setup]:
        def one(name: str) -> Contestant:
            return Contestant(
                name, lambda: calls.append(name), 1.0, before=lambda: calls.append(f"before {name}")
            )

        def check(found: Any) -> dict[str, Any]:
            assert set(found) == {"a", "b"}
            return {"agree": True}

        yield Setup([one("a"), one("b")], check=check)

    case = Case("x.y", "?", "voxel", opened, rounds=2)
    record = measure(case, "small", tmp_path)
    assert calls == ["before a", "a", "before b", "b"] * 3  # once to warm up
    assert [len(row["seconds"]) for row in record["rows"]] == [2, 2]
    assert record["facts"] == {"agree": True}


def test_a_check_that_fails_is_an_error(tmp_path: Path) -> None:
    @contextlib.contextmanager
    def opened(size: Size, scratch: Path) -> Iterator[Setup]:
        def check(found: Any) -> dict[str, Any]:
            raise AssertionError("they differ")

        yield Setup([Contestant("a", lambda: 1, 1.0)], check=check)

    with pytest.raises(AssertionError, match="they differ"):
        measure(Case("x.y", "?", "voxel", opened), "tiny", tmp_path)


def test_results_are_appended_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.append(path, {"case": "a", "size": "small", "machine": MACHINE})
    with path.open("a") as stream:
        stream.write('{"case": "b", "si')
    results.append(path, {"case": "c", "size": "small", "machine": MACHINE})
    assert [r["case"] for r in results.read(path)] == ["a", "c"]


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, True),
        ({"failed": "no memory"}, False),
        ({"size": "full"}, False),
        ({"machine": {**MACHINE, "commit": "other"}}, False),
        ({"machine": {**MACHINE, "machine": "other"}}, False),
        ({"machine": {**MACHINE, "versions": {"numpy": "3"}}}, False),
    ],
)
def test_what_was_measured_with_this_code_is_not_measured_again(changes: dict[str, Any], done: bool) -> None:
    record = {**record_of("a", {"ours": [1.0]}), **changes}
    assert results.is_done([record], "a", "small", MACHINE) is done


def test_changed_files_are_always_measured() -> None:
    machine = {**MACHINE, "commit": "abc+"}
    record = record_of("a", {"ours": [1.0]}, machine=machine)
    assert not results.is_done([record], "a", "small", machine)


def test_ratios_pair_the_rounds() -> None:
    record = record_of("a", {"ours": [1.0, 2.0], "peer": [10.0, 20.0]})
    assert ratios(*record["rows"]) == [10.0, 10.0]


@pytest.mark.parametrize(
    ("target", "good"),
    [
        (Target("ours", 9.0, "peer"), True),
        (Target("ours", 11.0, "peer"), False),
        (Target("ours", 9.0, ("peer", "better")), False),
        (Target("ours", 7.9), True),
        (Target("ours", 8.1), False),
        (Target("ours", 1.0, "nobody"), None),
        (Target("nobody", 1.0), None),
    ],
)
def test_targets_are_judged_by_the_median(target: Target, good: bool | None) -> None:
    record = record_of("a", {"ours": [1.0, 1.0, 9.0], "peer": [10.0, 10.0, 10.0], "better": [2.0, 2.0, 2.0]})
    assert reached(target, record)[2] is good


@pytest.mark.parametrize("power", [0.5, 1.0, 1.2])
def test_the_slope_of_a_power_law_is_its_power(power: float) -> None:
    rows = [
        {"name": f"x{n}", "role": "ours", "settings": "", "work": float(n), "cpu": [],
         "seconds": [drift * n**power for drift in (1.0, 3.0, 0.5)]}
        for n in (1, 2, 4, 8)
    ]  # fmt: skip
    middle, low, high = slope({"rows": rows})
    assert middle == pytest.approx(power)
    # Rounds that are slow as a whole do not widen the interval.
    assert math.isclose(low, power, rel_tol=1e-9) or low <= power <= high


def test_a_report_says_what_the_results_say(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.append(path, record_of("store.unknown", {"ours": [9.0], "peer": [9.0]}))
    results.append(path, record_of("store.unknown", {"ours": [1.0], "peer": [4.0]}))
    results.append(
        path, {"case": "store.bad", "size": "small", "failed": "no room", "machine": MACHINE, "date": "2026"}
    )
    folder = tmp_path / "2026-01-02-all"
    folder.mkdir()
    (folder / "notes.md").write_text("What it means.\n")
    text = write_report(path, folder, "Title").read_text()
    assert text.startswith("# Title\n\nWhat it means.\n")
    assert "| ours | ours |  | 8 | 1 (1 to 1) | 4.00 |" in text  # the last record counts
    assert "Failed: no room" in text
    assert "- error: 0.25" in text
    assert (folder / "store.png").stat().st_size > 0
    assert [json.loads(line)["case"] for line in (folder / "results.jsonl").read_text().splitlines()] == [
        "store.unknown", "store.bad",
    ]  # fmt: skip
