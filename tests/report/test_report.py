from __future__ import annotations

import hashlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from cryoscale.cli import run_command
from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.classes import write_classes
from cryoscale.data.clusters import SELECTION
from cryoscale.data.ledger import UnitLedger
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.report.build import ReportOptions, write_report
from cryoscale.report.collect import StageName, read_choice, summarise
from cryoscale.report.html import page_names
from cryoscale.report.selection import accept_suggestion, write_template
from cryoscale.simulate.recipes import recipe
from tests.report import synthetic
from tests.report.synthetic import (
    NASTY,
    STAGES,
    add_clusters,
    add_labels,
    add_picks,
    add_tomogram,
    new_run,
    whole_run,
)

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Collects links, text and alt texts, and checks that elements nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.ids, self.images, self.text = path, [], set(), [], ""
        self.open: list[str] = []
        self.feed(path.read_text())
        self.close()
        assert self.open == [], f"{path}: not closed {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
        self.links += [attributes[key] for key in ("href", "src") if key in attributes]
        if tag == "img":
            self.images.append(attributes)

    def handle_endtag(self, tag):
        assert self.open, f"{self.path}: stray </{tag}>"
        assert self.open.pop() == tag, f"{self.path}: </{tag}> does not close what is open"

    def handle_data(self, data):
        self.text += data


def check_pages(index: str) -> dict[str, Page]:
    """Check every page of a report: well formed, no link outside, none broken, each picture described."""
    root = Path(index).parent
    pages = {str(path.relative_to(root)): Page(path) for path in sorted(root.rglob("*.html"))}
    for page in pages.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            assert not parts.scheme, f"{link} leaves the folder"
            assert not parts.netloc, f"{link} leaves the folder"
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            assert target.is_file(), f"{page.path}: {link} is broken"
            if parts.fragment:
                assert parts.fragment in pages[str(target.relative_to(root.resolve()))].ids, link
        assert all(image["alt"] for image in page.images)
    return pages


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = whole_run(tmp_path_factory.mktemp("whole") / "run")
    return run, write_report(run, STAGES)


def test_all_pages_are_well_formed_and_every_link_leads_somewhere(whole):
    pages = check_pages(whole[1])
    assert len(pages) == 5
    assert len(pages["tomograms/one.html"].images) == 6  # plain, picks, groups, labels, series, scores
    assert {f"cluster-{k}" for k in range(synthetic.K)} <= pages["clusters.html"].ids


def test_names_are_escaped_in_every_page(whole):
    root = Path(whole[1]).parent
    text = "".join(path.read_text() for path in root.rglob("*.html"))
    assert "<b>&" not in text
    assert "rib<o>some" not in text
    assert "blobs <are>" not in text
    page = check_pages(whole[1])[f"tomograms/{page_names(['one', NASTY])[NASTY]}.html"]
    assert NASTY in page.text
    assert "rib<o>some" in page.text


def test_first_page_marks_changed_settings_and_counts_states(whole):
    summary = summarise(whole[0], whole[0].config, STAGES)
    assert [s.key for s in summary.settings["pick"] if s.changed] == ["radius_angstrom"]
    assert {s.name: s.counts["done"] for s in summary.stages} == {
        "ingest": 2, "pick": 2, "train_encoder": 1, "cluster": 1, "review": 1, "segment": 2,
    }  # fmt: skip
    assert summary.state("segment", "one") == "done"
    assert dict(summary.disk)["tomograms"] > 1000
    assert "reports" not in dict(summary.disk)


def test_a_second_report_is_the_same_bytes_and_draws_no_tomogram_again(whole, monkeypatch):
    run, index = whole
    root = Path(index).parent

    def digests():
        files = [path for path in root.rglob("*") if path.is_file()]
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    monkeypatch.setattr("cryoscale.report.build.make_page", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr("cryoscale.report.build.make_sheets", lambda *_: pytest.fail("drawn again"))
    write_report(run, STAGES)
    assert digests() == before


def test_a_changed_tomogram_is_drawn_again(tmp_path):
    run = whole_run(tmp_path / "run", ["one"])
    page = Path(write_report(run, STAGES)).with_name("tomograms") / "one.html"
    assert "60, radius 6.0 nm" in page.read_text()
    add_picks(run, "one", n=30)
    write_report(run, STAGES)
    assert "30, radius 6.0 nm" in page.read_text()
    check_pages(str(page.parent.parent / "index.html"))  # assignments of the earlier picks are not used


def test_reports_of_unfinished_runs(tmp_path):
    """Each step of a run's life gives a whole report."""
    run = new_run(tmp_path / "run", ["one", "two"])
    assert "Nothing was done yet" in check_pages(write_report(run, STAGES))["index.html"].text
    add_tomogram(run, "one", z_range=(4, 20))
    assert len(check_pages(write_report(run))["tomograms/one.html"].images) == 2
    add_picks(run, "one")
    assert len(check_pages(write_report(run))["tomograms/one.html"].images) == 4
    synthetic.add_model(run, "encoder", dead=0.5)
    assert (
        "50 % of the code units are dead: clusters will suffer"
        in check_pages(write_report(run))["training.html"].text
    )
    add_clusters(run, ["one"])
    text = check_pages(write_report(run, STAGES))["index.html"].text
    assert "Choose clusters" in text
    assert "--accept-suggestions" in text


def test_the_template_says_what_becomes_of_other_clusters(tmp_path):
    run = new_run(tmp_path / "run", ["one"])
    add_tomogram(run, "one")
    add_picks(run, "one")
    add_clusters(run, ["one"])
    write_template(run, read_choice(run))
    text = run.clusters.folder.read_bytes(SELECTION).decode()
    assert "ignore_unselected = true (the default) objects in them are left out" in text


def test_nobody_is_asked_to_choose_when_everything_is_segmented(tmp_path):
    """As with a segmenter of another run, which needs no selection."""
    run = whole_run(tmp_path / "run", ["one", "two"])
    run.clusters.folder.delete(SELECTION)
    assert "Choose clusters" not in check_pages(write_report(run, STAGES))["index.html"].text
    UnitLedger(run.ledger, "segment", "two", "k").folder.delete()
    assert "Choose clusters" in check_pages(write_report(run, STAGES))["index.html"].text


def test_clusters_before_their_review_are_listed_without_sheets(tmp_path):
    run = whole_run(tmp_path / "run", ["one"])
    run.clusters.folder.delete("review")
    page = check_pages(write_report(run, STAGES))["clusters.html"]
    assert "did not run for this clustering yet" in page.text
    assert len(page.images) == synthetic.K  # where members lie


def test_failures_come_with_their_reasons(tmp_path):
    run = new_run(tmp_path / "run", ["bad", "worse"])
    run.write_failures([{"stage": "ingest", "tomogram": "bad", "block": 3, "reason": "cut <short>, by half"}])
    UnitLedger(run.ledger, "ingest", "worse", "k").fail("not an MRC file")
    page = check_pages(write_report(run, STAGES))["index.html"]
    assert "cut <short>, by half" in page.text
    assert "not an MRC file" in page.text
    assert "--retry-quarantined" in page.text


def test_a_damaged_tomogram_says_so_and_the_others_are_drawn(tmp_path):
    run = whole_run(tmp_path / "run", ["one", "two"])
    for shard in Path(run.tomogram("one").path("0/c")).rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"torn")
    pages = check_pages(write_report(run, STAGES))
    assert "could not be drawn" in pages["tomograms/one.html"].text
    assert len(pages["tomograms/two.html"].images) == 6


def test_pages_are_capped_and_those_asked_for_are_added(tmp_path):
    run = new_run(tmp_path / "run", ["a", "b", "c"])
    for name in "abc":
        add_tomogram(run, name)
    assert {p for p in check_pages(write_report(run)) if "/" in p} == {f"tomograms/{n}.html" for n in "abc"}
    pages = check_pages(write_report(run, options=ReportOptions(most_tomograms=1, tomograms=("c",))))
    assert {p for p in pages if "/" in p} == {"tomograms/a.html", "tomograms/c.html"}
    assert "2 of 3 have a page" in pages["index.html"].text
    assert not (tmp_path / "run/reports/images/tomograms/b").exists()
    with pytest.raises(ConfigurationError, match="no tomogram 'd'"):
        write_report(run, options=ReportOptions(tomograms=("d",)))


def test_an_unreadable_selection_is_shown_not_raised(tmp_path):
    run = whole_run(tmp_path / "run", ["one"])
    run.clusters.folder.write_toml(SELECTION, {"classes": {"x": {"clusters": [99]}}})
    assert "names cluster 99" in check_pages(write_report(run, STAGES))["clusters.html"].text


def test_page_names_are_safe_and_distinct():
    names = page_names(["TS_1", "ts_1", "a/b", "a_b", "plain-2.3", "ø"])
    assert names["plain-2.3"] == "plain-2.3"
    assert names["a_b"] == "a_b"
    assert len({name.casefold() for name in names.values()}) == 6
    assert all(name.isascii() and "/" not in name for name in names.values())


def test_template_of_the_selection_chooses_nothing_until_uncommented(tmp_path):
    run = whole_run(tmp_path / "run", ["one"])
    assert write_template(run, read_choice(run))
    assert not write_template(run, read_choice(run))  # never over a person's file
    assert run.clusters.selection(synthetic.K) is None
    text = run.clusters.folder.read_bytes(SELECTION).decode()
    tail = text[text.index("# [classes.surface]") :]
    bare = "\n".join(line.removeprefix("#").strip() for line in tail.splitlines())
    run.clusters.folder.write_bytes(SELECTION, (text[: text.index("# [classes.surface]")] + bare).encode())
    chosen = run.clusters.selection(synthetic.K)
    assert chosen.classes == (("surface", (0,)), ("globular", (1, 3)))
    assert run.clusters.accepts(chosen)


def test_accepting_the_suggestion_never_overwrites_a_choice(tmp_path):
    run = whole_run(tmp_path / "run", ["one"])
    assert accept_suggestion(run, read_choice(run))
    assert not accept_suggestion(run, read_choice(run))
    assert run.clusters.selection(synthetic.K).class_names == ("surface", "globular")
    run.clusters.folder.write_toml(SELECTION, {"classes": {"mine": {"clusters": [2]}}})
    with pytest.raises(ConfigurationError, match="chooses other clusters"):
        accept_suggestion(run, read_choice(run))
    run.clusters.folder.write_toml(SELECTION, {"clustering": "old", "classes": {"mine": {"clusters": [2]}}})
    assert accept_suggestion(run, read_choice(run))
    assert b"mine" in run.clusters.folder.read_bytes("selection-earlier.toml")
    with pytest.raises(StateError, match="no reviewed clusters"):
        write_template(new_run(tmp_path / "new", ["x"]), read_choice(new_run(tmp_path / "new", ["x"])))


def test_selected_classes_colour_the_picks(tmp_path):
    run = whole_run(tmp_path / "run", ["one"])
    accept_suggestion(run, read_choice(run))
    page = check_pages(write_report(run, STAGES))["tomograms/one.html"]
    assert "globular (24)" in page.text
    assert "not selected (24)" in page.text
    assert np.bincount(np.arange(60) % 5)[[1, 3]].sum() == 24


def test_the_commands_say_where_to_look(tmp_path, capsys):
    run = whole_run(tmp_path / "run", ["one"])
    place = str(tmp_path / "run")
    assert run_command(["review", place]) == 0
    said = capsys.readouterr().out
    assert "selection.toml (new" in said
    assert (tmp_path / "run/reports/clusters.html").is_file()
    assert not (tmp_path / "run/reports/tomograms").exists()
    assert run_command(["review", place, "--accept-suggestions"]) == 0
    assert run.clusters.selection(synthetic.K).class_names == ("surface", "globular")
    assert run_command(["review", place]) == 0
    assert "it chooses surface, globular" in capsys.readouterr().out
    assert run_command(["report", place]) == 0
    index = capsys.readouterr().out.strip()
    assert len(check_pages(index)) == 4
    assert "begun" in check_pages(index)["index.html"].text  # all stages of the pipeline are listed


# -- supervised runs ---------------------------------------------------------------------------------------


def supervised_run(place):
    """A run that was trained on what is known: no encoder, no clusters; each pick has a class."""
    import torch

    asked = SupervisedConfig(model="dsm-net", truth="subtomograms", subtomograms="/data/boxes.csv")
    run = new_run(place, ["one"], supervised=asked)
    add_tomogram(run, "one")
    add_picks(run, "one", 6)
    add_labels(run, "one")
    parts = ("loss", "cls_loss", "cls_accuracy", "seg_loss", "seg_accuracy", "rec_error")
    falling = np.linspace(1, 0, 4)
    history = {f"{part}_{name}": falling for name in parts for part in ("train", "validation")}
    card = {
        "architecture": {"name": "dsm-net"}, "training": {"best_epoch": 3, "stopped": "epochs"},
        "particles": {"names": ["rib<o>some", "none"]},
        "metrics": {"test_boxes": 40, "test_object_accuracy": 0.9375, "test_miou": 0.89},
    }  # fmt: skip
    history = {"epoch": np.arange(1, 5), "improved": np.ones(4, bool), **history}
    run.model("segmenter").save({"w": torch.zeros(2)}, card, history)
    shares = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6]], np.float32)
    write_classes(run.classes, "one", ["rib<o>some", "none"], shares)
    return run


def test_supervised_runs_have_pages_without_clusters(tmp_path):
    run = supervised_run(tmp_path / "run")
    pages = check_pages(write_report(run, [StageName("pick", False), StageName("train_supervised", True)]))
    for name, page in pages.items():
        if name != "clusters.html":
            assert "clusters.html" not in " ".join(page.links), name
    training = pages["training.html"].text
    assert "dsm-net" in training
    assert "Encoder" not in training
    assert "Not trained yet" not in training
    assert "0.9375" in training
    assert "cls_accuracy 0" in training
    tomogram = pages["tomograms/one.html"].text
    assert "Classes of picks" in tomogram
    assert "rib<o>some (3)" in tomogram, "the legend of the picture, as text"
    rows = " ".join(tomogram.split())
    assert "rib<o>some30.70" in rows
    assert "none30.80" in rows
    assert (tmp_path / "run/reports/images/tomograms/one/classes.png").stat().st_size > 1000


def test_the_first_page_leads_to_discoveries(tmp_path):
    run = new_run(tmp_path / "run", ["one"])
    assert "Discoveries" not in check_pages(write_report(run, STAGES))["index.html"].text
    run.folder.write_bytes("discovery/ribo some/index.html", b"<p>")
    page = check_pages(write_report(run, STAGES))["index.html"]
    assert "../discovery/ribo%20some/index.html" in page.links


def test_classes_of_other_picks_are_not_shown(tmp_path):
    run = supervised_run(tmp_path / "run")
    add_picks(run, "one", 9)
    pages = check_pages(write_report(run, STAGES))
    assert "Classes of picks" not in pages["tomograms/one.html"].text


def test_simulated_runs_are_scored_by_their_own_truth_and_their_settings_are_lines(tmp_path):
    simulate = recipe("dsm-net-a", seed=1)
    run = new_run(tmp_path / "run", ["one"], simulate=simulate)
    summary = summarise(run, run.config, [])
    rows = {row.key: row for row in summary.settings["simulate"]}
    assert rows["scene.voxel_size_angstrom"].value == "10"
    assert rows["variants"].value == "dsm (10000)"
    assert rows["scene.particles"].value.startswith("1bxn (708), ")
    assert rows["scene.particles"].changed
    assert rows["subtomograms.count"].value == "3205"
    assert not any("{" in row.value for row in rows.values())
    for name in ("pick", "segment"):
        for source in run.config.inputs:
            synthetic.seal(run, name, source.name)
    done = summarise(run, run.config, [StageName("pick", False), StageName("segment", False)])
    assert [step.command for step in done.next_steps][-1] == f"cryoscale evaluate {run.folder.url}"
