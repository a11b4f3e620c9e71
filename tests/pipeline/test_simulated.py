"""Simulated runs: what is made, that it is the same however it is made, and what is refused."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile

from cryoscale.cli import run_command
from cryoscale.data.pyramid import Pyramid
from cryoscale.data.run import Run
from cryoscale.data.subtomograms import Subtomograms
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.data.truth import read_truth
from cryoscale.errors import ConfigurationError
from cryoscale.formats.points import read_positions
from cryoscale.geometry import Box
from cryoscale.pipeline.simulation import set_up_simulation
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.crashes import Moment, drive_and_die
from tests.pipeline.driving import drive, settle

SMALL = (
    "simulate.scene.shape=[32, 160, 144]",
    "simulate.scene.voxel_size_angstrom=20",
    "simulate.scene.margin_angstrom=100",
    'simulate.scene.particles=[{density="ring", copies=12}, {density="ball", copies=8, placement="at"}]',
    "simulate.scene.membranes={vesicles=2, vesicle_radius_angstrom=[150, 200]}",
    "simulate.imaging.tilt_step_degrees=15",
    "simulate.subtomograms={count=10, size_voxels=12}",
)
LAST = "subtomograms"


def simulated(place: Path, *settings: str) -> Run:
    set_up_simulation(str(place), "cell-demo", seed=5, tomograms=1, settings=[*SMALL, *settings])
    return Run.open(place)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A simulated run, complete; not to be changed."""
    run = simulated(tmp_path_factory.mktemp("simulated") / "run")
    result = drive(run, until=LAST)
    assert not result.failures, result.failures
    return run


def whole(pyramid: Pyramid) -> np.ndarray:
    return pyramid.read(0, Box.whole(pyramid.shape(0)))


def test_the_file_is_the_tomogram_and_the_labels_are_the_scene(made: Run) -> None:
    with mrcfile.open(made.simulated.path("cell_1.mrc")) as mrc:
        density, size = np.array(mrc.data), float(mrc.voxel_size.x)
    assert size == pytest.approx(20.0)
    tomogram = Tomogram(made.tomogram("cell_1"))
    assert np.array_equal(whole(tomogram.pyramid), density)
    scene = whole(Pyramid(made.scene("cell_1").child("labels")))
    truth = LabelVolume(made.tomogram("cell_1"), "truth")
    assert np.array_equal(whole(truth.pyramid), scene)
    assert truth.facts.class_names == ("ring", "ball", "membrane")
    assert set(np.unique(scene)) == {0, 1, 2, 3}
    assert truth.facts.levels == tomogram.facts.levels


def test_objects_are_dark_and_the_ratio_is_as_asked(made: Run) -> None:
    facts = tomllib.loads(made.simulated.read_bytes("cell_1.toml").decode())
    assert facts["realised_snr"] == pytest.approx(0.1, rel=0.05)
    density = whole(Tomogram(made.tomogram("cell_1")).pyramid)
    labels = whole(Pyramid(made.scene("cell_1").child("labels")))
    assert density[labels == 2].mean() < density[labels == 0].mean() - 0.2


def test_star_and_table_say_the_same(made: Run) -> None:
    truth = read_truth(made.truth, "cell_1")
    assert [int(truth.of_class(name).sum()) for name in truth.particle_classes] == [12, 8]
    star = Path(made.truth.path("cell_1.star"))
    read = read_positions(star, shape=(32, 160, 144), voxel_size_angstrom=20.0, tomogram="cell_1")
    np.testing.assert_allclose(read.positions_N3, truth.positions_N3, atol=2e-3)
    assert list(starfile.read(star)["rlnClassNumber"]) == truth.class_N.tolist()
    assert truth.notes["simulate"]["seed"] == 5
    assert (truth.placement_N == "at").sum() == 8


def test_subtomograms_show_their_particles(made: Run) -> None:
    boxes, truth = Subtomograms(made.subtomograms("cell_1")), read_truth(made.truth, "cell_1")
    table = boxes.table
    assert len(table["row"]) == 10
    assert np.unique(table["split"], return_counts=True)[1].tolist() == [1, 8, 1]
    tomogram = Tomogram(made.tomogram("cell_1"))
    data, density, mask = (boxes.read(name, slice(None)) for name in ("data", "density", "mask"))
    for n, row in enumerate(table["row"]):
        centre = np.rint(truth.positions_N3[row] / 20).astype(int)
        box = Box.of(centre - 6, centre + 6)
        assert np.array_equal(data[n], tomogram.read_canonical(0, box))
        assert mask[n].any()
        assert density[n][mask[n] > 0].min() > density[n][mask[n] == 0].max() * 0.99
        place = np.average(np.argwhere(mask[n]), axis=0, weights=density[n][mask[n] > 0])
        assert np.abs(place - 6).max() < 1.5
    assert np.array_equal(table["class"], truth.class_N[table["row"]])


def test_the_same_however_it_is_cut_and_however_often_it_is_killed(made: Run, tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", "execution.block_voxels=64")
    for moment in (Moment(event=9), Moment(write=40, torn=True), Moment(write=55), Moment(event=14)):
        drive_and_die(run.folder.url, moment, {"until": LAST})
    end = drive_and_die(run.folder.url, Moment(), {"until": LAST})
    assert end.exit_code == 0
    assert not drive(run, until=LAST).tasks
    assert not differences(artifact_digest(made), artifact_digest(run))


def test_a_changed_setting_redoes_what_depends_on_it_and_a_move_nothing(made: Run, tmp_path: Path) -> None:
    shutil.copytree(made.folder.url, tmp_path / "moved")
    run = Run.open(tmp_path / "moved")
    again = drive(run, until=LAST)
    assert again.stages <= {"identify"}  # the copy has a time of its own; its content is the same
    settle(run, "simulate.imaging.snr=0.2")
    louder = drive(run, until=LAST)
    assert {"image", "ingest", "subtomograms"} <= louder.stages
    assert not {"densities", "place", "paint"} & louder.stages
    settle(run, "simulate.imaging.snr=0.1")
    drive(run, until=LAST)
    assert not differences(artifact_digest(made), artifact_digest(run))


def test_variants_share_their_scene(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 'simulate.variants=[{name="a"}, {name="b", snr=1.0}]')
    assert not drive(run, until="image").failures
    first, second = (read_truth(run.truth, name) for name in ("a_1", "b_1"))
    assert np.array_equal(first.positions_N3, second.positions_N3)
    noisy, clear = (mrcfile.read(run.simulated.path(f"{n}_1.mrc")) for n in "ab")
    signal = -whole(Pyramid(run.scene("a_1").child("signal")))
    correlation = [np.corrcoef(v.ravel(), signal.ravel())[0, 1] for v in (noisy, clear)]
    assert correlation[1] > 1.5 * correlation[0]


def test_the_tilt_series_is_written_and_makes_the_tomogram(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", "simulate.imaging.route=tilts")
    assert not drive(run, until=LAST).failures
    tilts = mrcfile.read(run.simulated.path("cell_1_tilts.mrc"))
    angles = [float(line) for line in run.simulated.read_bytes("cell_1_tilts.rawtlt").split()]
    assert angles == list(range(-60, 61, 15))
    assert tilts.shape[:2] == (len(angles), 160)
    from cryoscale.simulate.backprojection import backproject

    volume = backproject(tilts, angles, 32, width_x=144)
    density = mrcfile.read(run.simulated.path("cell_1.mrc"))
    assert np.corrcoef(volume.ravel(), density.ravel())[0, 1] > 0.9999


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--recipe"),
        (["--recipe", "nonsense"], "no recipe 'nonsense'"),
        (["--recipe", "cell"], "simulate structures"),
        (["--recipe", "cell", "--structures", "paper"], "of no paper"),
        (["--recipe", "cell-demo", "--snr", "-1"], "snr"),
        (["--recipe", "cell-demo", "--set", "simulate.imaging.tilt_min_degrees=-100"], "tilt_min_degrees"),
        (["--recipe", "cell-demo", "--set", "simulate.scene.colour=1"], "unknown key"),
    ],
)
def test_misuse_is_one_sentence(
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CRYOSCALE_CACHE", str(tmp_path / "cache"))
    assert run_command(["simulate", str(tmp_path / "out"), *words, "--executor", "serial", "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_density_and_an_ambiguous_one_are_named(tmp_path: Path) -> None:
    for name in ("x1.mrc", "X1.map", "ring.mrc"):
        (tmp_path / name).write_bytes(b"")
    particles = 'simulate.scene.particles=[{density="x1", copies=1}, {density="nobody", copies=1}]'
    with pytest.raises(ConfigurationError, match="ambiguous") as caught:
        set_up_simulation(str(tmp_path / "out"), "cell-demo", settings=[particles], densities=[str(tmp_path)])
    assert "nobody" in str(caught.value)


def test_a_packing_without_room_fails_its_tomogram_alone(tmp_path: Path) -> None:
    run = simulated(
        tmp_path / "run", 'simulate.variants=[{name="few"}, {name="many", copies=20000}]',
        'simulate.scene.particles=[{density="ring", copies=5}]', "simulate.subtomograms=none",
    )  # fmt: skip
    result = drive(run, until="truth_labels")
    assert [(f["stage"], f["tomogram"]) for f in result.failures] == [("place", "many_1")]
    assert "of 20000" in result.failures[0]["reason"]
    assert run.tomogram("few_1").exists("zarr.json")


def test_real_tomograms_are_not_simulated_over(tmp_path: Path, small_sources: list[Path]) -> None:
    assert run_command(["init", str(tmp_path / "run"), str(small_sources[0])]) == 0
    with pytest.raises(ConfigurationError, match="real tomograms"):
        set_up_simulation(str(tmp_path / "run"), "cell-demo")


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["simulate", "recipes"]) == 0
    shown = capsys.readouterr().out
    assert "dsm-net-a" in shown
    assert "1KP8  3j9i" in shown


# -- what a review found -------------------------------------------------------------------------------------


def test_one_route_never_takes_the_file_of_the_other_for_its_own(made: Run, tmp_path: Path) -> None:
    shutil.copytree(made.folder.url, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    for route in ("tilts", "direct"):
        settle(run, f"simulate.imaging.route={route}")
        assert not drive(run, until=LAST).failures
        facts = tomllib.loads(run.simulated.read_bytes("cell_1.toml").decode())
        assert facts["imaging"]["route"] == route
        assert run.simulated.exists("cell_1_tilts.mrc") == (route == "tilts")
    run.folder.delete("tilts")  # of the other route, which is not asked for any more
    assert not differences(artifact_digest(made), artifact_digest(run))


@pytest.mark.parametrize("gone", ["scenes", "simulated"])
def test_what_was_deleted_is_made_again(made: Run, tmp_path: Path, gone: str) -> None:
    shutil.copytree(made.folder.url, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.folder.delete(gone)
    assert not drive(run, until=LAST).failures
    assert not differences(artifact_digest(made), artifact_digest(run))


def test_a_run_keeps_its_densities_when_their_folder_goes(tmp_path: Path) -> None:
    from cryoscale.formats.mrc import write_mrc
    from cryoscale.simulate.shapes import density

    (tmp_path / "maps").mkdir()
    write_mrc(tmp_path / "maps" / "mine.mrc", density("rod", 20.0), 20.0)
    words = ['simulate.scene.particles=[{density="mine", copies=4}]', "simulate.subtomograms=none"]
    set_up_simulation(
        str(tmp_path / "run"), "cell-demo", tomograms=1, densities=[str(tmp_path / "maps")],
        settings=[*SMALL, *words],
    )  # fmt: skip
    run = Run.open(tmp_path / "run")
    assert not drive(run, until="truth_labels").failures
    (tmp_path / "maps").rename(tmp_path / "elsewhere")
    again = drive(run, until="truth_labels")
    assert not again.failures
    assert not again.tasks
    set_up_simulation(str(tmp_path / "run"), "cell-demo", snr=0.3)  # needs no map either
    assert drive(run, until="truth_labels").exit_code == 0


def test_the_same_recipe_given_again_goes_on(made: Run, tmp_path: Path) -> None:
    shutil.copytree(made.folder.url, tmp_path / "run")
    config = set_up_simulation(str(tmp_path / "run"), "cell-demo")
    assert config == made.config
    assert set_up_simulation(str(tmp_path / "run"), "cell-demo", seed=6).simulate.seed == 6


def test_edited_tables_name_their_own_inputs(made: Run, tmp_path: Path, small_sources: list[Path]) -> None:
    shutil.copytree(made.folder.url, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    settle(run, "simulate.tomograms=2")
    assert [source.name for source in run.config.inputs] == ["cell_1", "cell_2"]
    assert run_command(["init", str(tmp_path / "run"), str(small_sources[0])]) == 2


def test_the_ratio_is_measured_on_what_is_written(made: Run) -> None:
    from cryoscale.simulate.imaging import filter_signal
    from cryoscale.stages.imaging import Measured, imaging_of

    assert made.config.simulate is not None
    signal = filter_signal(
        whole(Pyramid(made.scene("cell_1").child("signal"))), 20.0, imaging_of(made.config.simulate)
    )
    measured = Measured()
    measured.add(signal, mrcfile.read(made.simulated.path("cell_1.mrc")))
    told = tomllib.loads(made.simulated.read_bytes("cell_1.toml").decode())["realised_snr"]
    assert told == pytest.approx(measured.snr, rel=1e-6)
    assert told != 0.1  # the asked one; the draw of the noise leaves a trace
