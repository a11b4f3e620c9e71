"""The folder of scores: files, pictures, a page without open ends."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from cryoscale.evaluate.classified import Classified
from cryoscale.evaluate.evidence import Settings
from cryoscale.evaluate.run import evaluate_run
from cryoscale.evaluate.tables import as_csv, as_text, cell
from cryoscale.report import score_figures
from cryoscale.report.scores import PLOTS, write_scores
from tests.evaluate.scored_run import whole_run

OURS = {"scores.json", "scores.csv", "index.html"}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    run = whole_run(tmp_path_factory.mktemp("scores") / "run")
    settings = Settings(structures=True, most_particles=20, reach_angstrom=70.0)
    return evaluate_run(run, None, ["one", "two"], settings)


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("out") / "scores"
    assert write_scores(report, str(place)) == str(place / "index.html")
    return place


def test_all_files_are_there(folder, report) -> None:
    drawn = set(PLOTS) - {"classes.png"}  # of supervised runs: see below
    assert {path.name for path in folder.iterdir()} == OURS | drawn
    assert json.loads((folder / "scores.json").read_text()) == report
    for name in drawn:
        data = (folder / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 250 < width < 2000, name
        assert 150 < height < 2000, name


def test_classes_of_picks_have_a_table_and_a_picture(report, tmp_path) -> None:
    scores = copy.deepcopy(report)
    found, true = np.array(["<a>", "b", "b", "b"]), np.array(["<a>", "b", "<a>", "nothing"])
    scores["pooled"]["classes"] = Classified(found, true, ("<a>", "b"), "nothing").scores()
    write_scores(scores, str(tmp_path))
    assert (tmp_path / "classes.png").stat().st_size > 1000
    page = (tmp_path / "index.html").read_text()
    assert "<a>" not in page
    assert "right, of 3 matched" in page
    write_scores(report, str(tmp_path))
    assert not (tmp_path / "classes.png").exists()


def test_page_is_whole_and_escaped(folder) -> None:
    page = (folder / "index.html").read_text()
    assert "ribo<some>" not in page
    assert "ribo&lt;some&gt;" in page
    for target in re.findall(r'(?:src|href)="([^"#:]+)"', page):
        assert (folder / target).exists(), target
    for words in ("<td>pixel accuracy</td>", "<td>mean IoU</td>", "<td>mean IoU by tomogram</td>"):
        assert words in page
    for words in ("2 tomograms", "Label classes true, but not found: $barrel, small.", "Clusters enriched"):
        assert words in page
    for tag in ("table", "figure", "main", "div"):
        assert page.count(f"<{tag}") == page.count(f"</{tag}>")


def test_page_names_what_failed(report, tmp_path) -> None:
    write_scores({**report, "failed": {"three": "no <truth>"}}, str(tmp_path))
    assert "no &lt;truth&gt;" in (tmp_path / "index.html").read_text()


def test_old_pictures_go(report, folder, tmp_path) -> None:
    place = tmp_path / "scores"
    write_scores(report, str(place))
    less = copy.deepcopy(report)
    for key in ("clusters", "segmentation", "structures"):
        less["pooled"].pop(key)
    write_scores(less, str(place))
    assert {path.name for path in place.iterdir()} == OURS | {"precision-recall.png"}


def test_same_scores_same_bytes(report, folder, tmp_path) -> None:
    write_scores(report, str(tmp_path / "again"))
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_csv_holds_every_number_of_the_tables(report) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert {row["tomogram"] for row in rows} == {"one", "two", "pooled"}
    found = {(r["tomogram"], r["part"], r["group"], r["measure"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    labels = report["pooled"]["segmentation"]
    assert float(found["pooled", "segmentation", "", "mean_iou"]) == labels["mean_iou"]
    assert (
        float(found["pooled", "segmentation", "by_class.membrane", "dice"])
        == labels["by_class"]["membrane"]["dice"]
    )
    key = ("one", "clusters", "all_picks.purity", "random")
    assert float(found[key]) == report["tomograms"][0]["clusters"]["all_picks"]["purity"]["random"]


def test_text_has_its_columns_in_line(report) -> None:
    lines = as_text(report["pooled"]).splitlines()
    head = next(n for n, line in enumerate(lines) if "F-beta 4" in line)
    assert len({len(line) for line in lines[head : head + 5]}) == 1
    assert cell(None) == "—"
    assert cell(0.12345) == "0.123"
    assert cell(123.456) == "123.5"
    assert cell(7) == "7"
    assert cell(-0.0001) == "0.000"


def test_many_classes_get_panels_of_their_own(report) -> None:
    pooled = copy.deepcopy(report["pooled"])
    row = pooled["picks"]["by_class"]["small"]
    pooled["picks"]["by_class"] = {f"a class of a long name, number {n}": row for n in range(22)}
    figure = score_figures.precision_recall(pooled["picks"])
    assert sum(axes.get_visible() for axes in figure.axes) == 23
    assert len(score_figures.drawn(figure)) > 10_000


def test_names_that_are_no_markup_and_have_no_glyph(report) -> None:
    labels = {"$x_{^$": {"dice": 0.5, "iou": None, "random_dice": 0.1, "random_iou": 0.1}, "細胞": {
        "dice": 0.2, "iou": 0.1, "random_dice": None, "random_iou": 0.0}}  # fmt: skip
    assert score_figures.drawn(score_figures.overlap_bars(labels))
    names = {"names": list(labels), "counts": np.eye(2).tolist()}
    assert score_figures.drawn(score_figures.label_confusion(names))
