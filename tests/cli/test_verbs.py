"""Each verb on a small run: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import starfile

from cryoscale.cli import run_command
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table
from cryoscale.data.tomogram import LabelVolume
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.formats.points import read_positions
from cryoscale.geometry import Box

Out = pytest.CaptureFixture[str]


@pytest.fixture
def drives(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record what the verbs of single stages ask of `drive`, and do nothing."""
    asked: list[dict[str, Any]] = []

    def record(place: str, **words: Any) -> int:
        asked.append({"place": place, **words})
        return 0

    monkeypatch.setattr("cryoscale.cli.stages.drive", record)
    monkeypatch.setattr("cryoscale.cli.run.drive", record)
    return asked


# -- init ---------------------------------------


def test_init_writes_what_was_asked(tmp_path: Path, small_sources: list[Path], capsys: Out) -> None:
    place = str(tmp_path / "run")
    words = ["--voxel-size", "13.5", "--contrast", "dark", "--set", "pick.radius_angstrom=120"]
    assert run_command(["init", place, *map(str, small_sources), *words]) == 0
    config = Run.open(place).config
    assert [source.name for source in config.inputs] == ["alpha", "beta"]
    assert [source.voxel_size_angstrom for source in config.inputs] == [13.5, 13.5]
    assert (config.ingest.voxel_size_angstrom, config.ingest.contrast) == (None, "dark")
    assert config.pick.radius_angstrom == 120
    said = capsys.readouterr().out
    assert f"cryoscale run {place}" in said
    assert "13.5 Å, as given: 2 tomograms" in said
    assert run_command(["init", place, str(small_sources[0]), "--set", "cluster.n_clusters=7"]) == 0
    again = Run.open(place).config
    assert again.inputs == config.inputs
    assert (again.cluster.n_clusters, again.pick.radius_angstrom) == (7, 120)


def test_init_makes_paths_absolute(
    tmp_path: Path, small_sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "pick.mask": "masks/{tomogram}.mrc",
        "encoder.weights": "../other/models/encoder",
        "segmenter.weights": "s3://bucket/models/segmenter",
    }
    words = [word for key, path in given.items() for word in ("--set", f"{key}={path}")]
    assert run_command(["init", "run", *map(str, small_sources), *words]) == 0
    config = Run.open("run").config
    assert config.pick.mask == str(tmp_path / "masks" / "{tomogram}.mrc")
    assert config.encoder.weights == str(tmp_path.parent / "other/models/encoder")
    assert config.segmenter.weights == "s3://bucket/models/segmenter"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    words = ["--set", "pick.mask=none", "--set", "pick.positions=/p/{tomogram}.csv"]
    assert run_command(["init", "../run", str(small_sources[0]), *words]) == 0
    again = Run.open("../run").config
    assert (again.pick.mask, again.pick.positions) == (None, "/p/{tomogram}.csv")
    assert again.encoder == config.encoder


def test_init_refuses_misuse(tmp_path: Path, small_sources: list[Path], capsys: Out) -> None:
    place = str(tmp_path / "run")
    assert run_command(["init", place, str(tmp_path / "*.mrc")]) == 2
    assert "no file matches" in capsys.readouterr().err
    assert run_command(["init", place, str(small_sources[0]), "--set", "pick.radius_angstroms=1"]) == 2
    assert "did you mean 'radius_angstrom'" in capsys.readouterr().err
    assert not Path(place).exists()


def test_the_preset_paper_is_the_papers_choices(tmp_path: Path, small_sources: list[Path]) -> None:
    words = ["init", str(tmp_path / "run"), str(small_sources[0]), "--preset", "paper"]
    assert run_command([*words, "--set", "encoder.l1=0"]) == 0
    config = Run.open(str(tmp_path / "run")).config
    assert (config.pick.smooth_sigma_voxels, config.pick.sigma_voxels) == (2, 5)
    assert (config.segment.mode, config.segment.class_of) == ("picks", "network")
    assert (config.segmenter.background_share, config.encoder.invariant_weight) == (0, 0)
    assert config.encoder.l1 == 0, "settings given besides count more"


def test_the_preset_paper_leaves_picking_to_a_radius(tmp_path: Path, small_sources: list[Path]) -> None:
    def pick(name: str, *settings: str, preset: str = "paper") -> tuple[float | None, ...]:
        words = [word for setting in settings for word in ("--set", setting)]
        place = str(tmp_path / name)
        assert run_command(["init", place, str(small_sources[0]), "--preset", preset, *words]) == 0
        asked = Run.open(place).config.pick
        return asked.radius_angstrom, asked.smooth_sigma_voxels, asked.sigma_voxels

    assert pick("new", "pick.radius_angstrom=97") == (97, None, None)
    assert pick("new", "cluster.n_clusters=9") == (97, None, None), "also one that run.toml holds"
    assert pick("new", "pick.radius_angstrom=none") == (None, 2, 5)
    assert pick("new", "pick.radius_angstrom = 80") == (80, None, None)
    place = [str(tmp_path / "both"), str(small_sources[0]), "--preset", "paper"]
    both = ["--set", "pick.radius_angstrom=97", "--set", "pick.sigma_voxels=4"]
    assert run_command(["init", *place, *both]) == 2


# -- run and the verbs of single stages ---------------------------------------


@pytest.mark.parametrize(
    ("verb", "until"),
    [
        ("ingest", "ingest"),
        ("pick", "pick"),
        ("encode", "encode"),
        ("cluster", "review"),
        ("segment", "instances"),
    ],
)
def test_a_verb_runs_up_to_its_stage(verb: str, until: str, drives: list[dict[str, Any]]) -> None:
    assert run_command([verb, "place", "--executor", "serial", "--quiet", "--retry-quarantined"]) == 0
    (asked,) = drives
    assert (asked["place"], asked["until"], asked["executor"]) == ("place", until, "serial")
    assert asked["quiet"]
    assert asked["retry_quarantined"]


def test_train_is_the_training_that_is_due(copied_run: Run, drives: list[dict[str, Any]]) -> None:
    place = copied_run.folder.url
    assert run_command(["train", place]) == 0
    copied_run.clusters.folder.delete("selection.toml")
    assert run_command(["train", place]) == 0
    assert [asked["until"] for asked in drives] == ["train_segmenter", "train_encoder"]


def test_segment_can_take_the_suggestion(drives: list[dict[str, Any]]) -> None:
    assert run_command(["segment", "place", "--accept-suggestions"]) == 0
    assert drives[0]["accept_suggestions"]


def test_run_goes_through_a_stage_and_says_what_failed(
    make_run: Callable[..., Run], small_sources: list[Path], tmp_path: Path, capsys: Out
) -> None:
    broken = tmp_path / "gamma.mrc"
    broken.write_bytes(small_sources[0].read_bytes()[:5000])
    run = make_run(sources=[small_sources[0], broken])
    code = run_command(["run", run.folder.url, "--until", "ingest", "--executor", "serial", "--quiet"])
    assert code == 1
    said = capsys.readouterr().err
    assert "failed: identify gamma: " in said
    assert "failures.csv" in said
    assert run.tomogram("alpha").exists("zarr.json")


def test_run_stops_for_a_person_with_exit_0(copied_run: Run, capsys: Out) -> None:
    copied_run.clusters.folder.delete("selection.toml")
    assert run_command(["run", copied_run.folder.url, "--executor", "serial", "--quiet"]) == 0
    assert "selection.toml" in capsys.readouterr().out


def test_dry_run_prints_and_does_nothing(make_run: Callable[..., Run], capsys: Out) -> None:
    run = make_run()
    assert run_command(["run", run.folder.url, "--dry-run"]) == 0
    assert "nothing is written" in capsys.readouterr().out
    assert run.folder.names() == ["run.toml"]


def test_watch_hands_over_to_the_watcher(
    copied_run: Run, tmp_path: Path, drives: list[dict[str, Any]], capsys: Out
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    words = ["run", copied_run.folder.url, "--watch", str(incoming), "--watch-once", "--executor", "serial"]
    assert run_command(words) == 0
    assert [asked["executor"] for asked in drives] == ["serial"]
    assert "watching" in capsys.readouterr().err


# -- status ---------------------------------------


def test_status_prints_a_table_and_json(finished_run: Run, capsys: Out) -> None:
    assert run_command(["status", finished_run.folder.url, "--tomograms"]) == 0
    shown = capsys.readouterr().out
    for word in ("ingest", "train_segmenter", "alpha", "beta", "disk:", "all done"):
        assert word in shown
    assert run_command(["status", finished_run.folder.url, "--json", "--no-disk"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True


def test_status_of_a_failure_is_exit_1(
    make_run: Callable[..., Run], small_sources: list[Path], tmp_path: Path, capsys: Out
) -> None:
    broken = tmp_path / "gamma.mrc"
    broken.write_bytes(b"nothing")
    run = make_run(sources=[small_sources[0], broken])
    run_command(["run", run.folder.url, "--until", "identify", "--executor", "serial", "--quiet"])
    capsys.readouterr()
    assert run_command(["status", run.folder.url]) == 1
    assert "failed: identify gamma: " in capsys.readouterr().out
    assert run_command(["status", run.folder.url, "--json"]) == 1


def test_status_of_many_tomograms_stays_short(
    make_run: Callable[..., Run], small_sources: list[Path], capsys: Out
) -> None:
    run = make_run()
    source = run.config.inputs[0]
    many = tuple(source.model_copy(update={"name": f"t{n:04d}"}) for n in range(1000))
    run.save_config(run.config.model_copy(update={"inputs": many}))
    assert run_command(["status", run.folder.url]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 25
    assert run_command(["run", run.folder.url, "--dry-run", "--until", "pick"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 25


# -- doctor and models ---------------------------------------


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["ray is not installed: pip install ray"], 1)])
def test_doctor(problems: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    from cryoscale.runtime import devices

    real = devices.describe()
    card = {"name": "a card", "bytes": 80_000_000_000, "capability": "9.0"}
    monkeypatch.setattr(devices, "describe", lambda: real | {"problems": problems, "cuda": [card]})
    assert run_command(["doctor"]) == code
    shown = capsys.readouterr().out
    assert "engines: serial yes, dask yes, ray yes" in shown
    assert "a card, 80 GB, 9.0" in shown
    assert ("PROBLEM: ray" in shown) == bool(problems)
    assert run_command(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["problems"] == problems


def test_models(capsys: Out) -> None:
    assert run_command(["models"]) == 0
    shown = capsys.readouterr().out
    assert "autoencoder3d: " in shown
    assert "doi:" in shown
    assert run_command(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {"autoencoder3d", "edss3d"}
    assert all(row["parameters"] > 1000 for row in rows)


def test_models_say_what_they_take_and_give(capsys: Out) -> None:
    assert run_command(["models"]) == 0
    shown = capsys.readouterr().out
    assert "3D, gives codes; box 32 x 32 x 32; 1,149,793 parameters" in shown
    assert "3D, gives cls, seg, rec; any box; 2,174,905 parameters (n_classes 22, heads cls+seg+rec," in shown
    assert "3D, gives seg; any box that divides by 4, tiles of 4 n with a halo of 11; 111,715 param" in shown
    assert run_command(["models", "--json"]) == 0
    row = {row["name"]: row for row in json.loads(capsys.readouterr().out)}["unet2d"]
    assert (row["dimensions"], row["heads"], row["box"], row["halo"]) == (2, ["seg"], None, 126)
    assert row["example"]["n_classes"] == 6


# -- export ---------------------------------------


def test_exported_labels_are_the_label_volume(copied_run: Run, capsys: Out) -> None:
    assert run_command(["export", copied_run.folder.url, "--labels"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == ["alpha_classes.mrc", "beta_classes.mrc"]
    for path, name in zip(paths, ("alpha", "beta"), strict=True):
        volume = LabelVolume(copied_run.tomogram(name), "classes")
        stored = volume.read(0, Box.whole(volume.facts.levels[0].shape))
        assert mrcfile.validate(path)
        with mrcfile.open(path) as written:
            np.testing.assert_array_equal(written.data, stored)
            assert written.header.mode == 0
            assert float(written.voxel_size.x) == pytest.approx(volume.facts.levels[0].voxel_size_angstrom)


@pytest.mark.parametrize("plane_bytes", [1, 2**20, 2**22, 2**26, 2**30])
def test_slabs_stay_small(plane_bytes: int) -> None:
    from cryoscale.pipeline.export import CHUNK, SLAB_BYTES, _planes_per_slab

    planes = _planes_per_slab(plane_bytes)
    assert CHUNK % planes == 0
    assert planes == 1 or planes * plane_bytes <= SLAB_BYTES


def test_slabs_of_one_plane_give_the_same_file(
    copied_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    place = copied_run.folder.url
    run_command(["export", place, "--labels", "--tomogram", "alpha", "--to", str(tmp_path / "one")])
    monkeypatch.setattr("cryoscale.pipeline.export.SLAB_BYTES", 1)
    run_command(["export", place, "--labels", "--tomogram", "alpha", "--to", str(tmp_path / "other")])
    one, other = (tmp_path / folder / "alpha_classes.mrc" for folder in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_exported_picks_come_back_where_they_were(copied_run: Run) -> None:
    assert run_command(["export", copied_run.folder.url, "--picks"]) == 0
    folder = Path(copied_run.folder.path("exports"))
    picks = read_picks(copied_run.picks, "alpha")
    for suffix in ("star", "csv"):
        back = read_positions(
            folder / f"alpha_picks.{suffix}", shape=(40, 64, 64), voxel_size_angstrom=10.0, tomogram="alpha"
        )
        np.testing.assert_allclose(back.positions_N3, picks.positions_N3, atol=2e-3)
        assert back.score_N is not None
        np.testing.assert_allclose(back.score_N, picks.scores_N, atol=1e-3)
    listed = starfile.read(folder / "picks_import.star")
    assert dict(zip(listed["rlnTomoName"], listed["rlnTomoImportParticleFile"], strict=True)) == {
        "alpha": "alpha_picks.star",
        "beta": "beta_picks.star",
    }


def test_exported_instances_keep_their_class(copied_run: Run) -> None:
    assert run_command(["export", copied_run.folder.url, "--instances", "--tomogram", "beta"]) == 0
    table = read_table(copied_run.instances, "beta.parquet")
    written = starfile.read(Path(copied_run.folder.path("exports")) / "beta_instances.star")
    assert list(np.atleast_1d(written["rlnClassNumber"])) == list(table["class_value"])


def test_export_of_what_is_not_there(make_run: Callable[..., Run], copied_run: Run, capsys: Out) -> None:
    assert run_command(["export", make_run(name="fresh").folder.url]) == 1
    assert "nothing could be exported" in capsys.readouterr().err
    assert run_command(["export", copied_run.folder.url, "--tomogram", "delta"]) == 2
    assert "no tomogram 'delta'" in capsys.readouterr().err
    copied_run.picks.delete("beta.parquet")
    assert run_command(["export", copied_run.folder.url, "--picks"]) == 1
    said = capsys.readouterr()
    assert "picks of beta: not made yet" in said.err
    assert "alpha_picks.star" in said.out
    assert run_command(["export", copied_run.folder.url]) == 0  # all that is there


def test_init_without_files_changes_parameters_of_a_run_that_is_there(tmp_path, capsys) -> None:
    place = str(tmp_path / "run")
    assert run_command(["init", place, "--set", "cluster.n_clusters=7"]) == 2
    assert "which files?" in capsys.readouterr().err
    write_mrc(tmp_path / "one.mrc", np.zeros((40, 40, 40), np.float32), 10.0)
    assert run_command(["init", place, str(tmp_path / "one.mrc")]) == 0
    assert run_command(["init", place, "--set", "cluster.n_clusters=7"]) == 0
    assert Run.open(place).config.cluster.n_clusters == 7
    assert len(Run.open(place).config.inputs) == 1
    assert run_command(["init", place, "--voxel-size", "5"]) == 2
