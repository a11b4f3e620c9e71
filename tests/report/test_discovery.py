"""The folder of a discovery: files, densities, a page without open ends; and the command that writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cryoscale.cli import run_command
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.boxes import read_boxes
from cryoscale.evaluate.discovery import Discovery, Novelty, discover
from cryoscale.report.discovery import as_text, local, nm, write_discovery
from tests.evaluate.boxed_run import COUNT, QUICK, SIDE, boxed_run
from tests.evaluate.scored_run import VOXEL, read_density

LEFT_OUT = "ribo<some>"
WORDS = [
    word
    for key, value in {
        "epochs": 2,
        "channels": 2,
        "batch_size": 16,
        "threads": 1,
        "precision": "float32",
    }.items()
    for word in ("--set", f"supervised.{key}={value}")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return boxed_run(tmp_path_factory.mktemp("boxed") / "run")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out") / "found"


@pytest.fixture(scope="module")
def found(run, place) -> Discovery:
    folder = ModelFolder(Folder.of(str(place / "model")))
    found = discover(
        run, read_boxes(run), Novelty(LEFT_OUT, 4), QUICK, folder, device="cpu", read_density=read_density
    )
    write_discovery(found, str(place))
    return found


def test_every_link_leads_somewhere_and_names_are_escaped(found, place) -> None:
    page = (place / "index.html").read_text()
    targets = re.findall(r'(?:src|href)="([^"#:]+)"', page)
    assert {"tsne.png", "clusters.png", "fsc.png", "averages.png", "examples.png", "training.png"} <= set(
        targets
    )
    for target in targets:
        assert (place / target).stat().st_size > 100, target
    assert LEFT_OUT not in page
    assert "ribo&lt;some&gt;" in page
    assert "What differs from the paper" in page


def test_numbers_and_rows_are_kept(found, place) -> None:
    assert json.loads((place / "discovery.json").read_text()) == found.scores
    table = read_table(Folder.of(str(place)), "subtomograms.parquet")
    assert len(table["row"]) == 2 * COUNT
    richest = found.scores["features"]["trained"]
    within = table["cluster"] == richest["richest"]
    assert within.sum() == richest["size"]
    assert (table["class_name"][within] == LEFT_OUT).sum() == richest["hits"]
    assert LEFT_OUT not in table["found_class"]


def test_densities_are_maps_at_the_voxel_size(found, place) -> None:
    for volume in found.recovery.volumes:
        values, voxel_size = read_density(str(place / f"{volume.name}.mrc"))
        assert voxel_size == pytest.approx(VOXEL)
        assert values.shape == (SIDE, SIDE, SIDE)
        assert np.allclose(values, volume.density_ZYX, atol=1e-5)


def test_what_an_earlier_one_left_is_gone(found, place) -> None:
    (place / "example9-box.mrc").write_text("old")
    write_discovery(found, str(place))
    assert not (place / "example9-box.mrc").exists()
    assert (place / "model" / "model.toml").exists()


def test_resolutions_have_units() -> None:
    assert nm(54.3) == "5.43 nm (54 Å)"
    assert nm(None) == "not reached"


def test_maps_are_not_written_to_urls() -> None:
    with pytest.raises(ConfigurationError, match="--to"):
        local("s3://bucket/found")


def test_the_words_name_what_is_as_good(found) -> None:
    scores = json.loads(json.dumps(found.scores))
    scores["features"]["components"]["f1"] = 1.0
    assert "The training does not pay here" in as_text(scores)
    scores["features"]["trained"]["f1"] = 1.1
    assert "does not pay" not in as_text(scores)
    scores["recovery"]["from_cluster"] = False
    assert "fewer than two" in as_text(scores)
    scores["recovery"] = None
    assert "no recovery head" in as_text(scores)


def test_the_command(run, tmp_path, capsys) -> None:
    words = [
        "discover",
        run.folder.url,
        "--leave-out",
        LEFT_OUT,
        "--clusters",
        "4",
        "--device",
        "cpu",
        *WORDS,
    ]
    assert run_command([*words, "--json"]) == 0
    shown = capsys.readouterr()
    scores = json.loads(shown.out)
    assert scores["left_out"] == LEFT_OUT
    assert "epoch 2: validation loss" in shown.err
    folder = Path(run.folder.url) / "discovery" / "ribo_some_"
    assert shown.err.strip().endswith(str(folder / "index.html"))
    assert run_command([*words, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "", "nothing on the way"
    assert f"holds {scores['features']['trained']['hits']} of" in shown.out
    assert run_command(words) == 0
    assert "nothing was trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--leave-out", "ribosome"], "Did you mean 'ribo<some>'"),
        (["--leave-out", "small", "--clusters", "1000"], "--clusters"),
        (["--leave-out", "small", "--tomogram", "three"], "no tomogram 'three'"),
        (["--leave-out", "small", "--set", "pick.seed=1"], "not of the training"),
        (["--leave-out", "small", "--set", "supervised.epoch=1"], "did you mean 'epochs'"),
        (["--leave-out", "small", "--to", "s3://bucket/x"], "folders of this machine"),
    ],
)
def test_misuse_is_one_sentence(run, words, said, capsys) -> None:
    assert run_command(["discover", run.folder.url, *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert "Traceback" not in shown.err
