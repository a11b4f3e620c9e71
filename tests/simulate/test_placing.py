"""What stands where: gaps are as asked, the truth makes the scene again, and errors say what was reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from cryoscale.config.simulate import (
    FilamentConfig,
    MembraneConfig,
    ParticlesConfig,
    SceneConfig,
    SurroundingsConfig,
)
from cryoscale.data.folder import Folder
from cryoscale.data.truth import read_truth, write_truth
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.simulate.membranes import HEAD_SURFACE_ANGSTROM
from cryoscale.simulate.placed import Placed
from cryoscale.simulate.placing import place_scene

RADII = {"big": 100.0, "small": 50.0, "core": 60.0}
RICH = SceneConfig(
    shape=(100, 220, 230),
    voxel_size_angstrom=12.0,
    particles=(
        ParticlesConfig(density="big", copies=20, placement="far"),
        ParticlesConfig(density="small", copies=25, placement="at"),
        ParticlesConfig(density="core", copies=20, placement="near", name="loaded", contrast=2.0),
        ParticlesConfig(density="small", copies=30, least_share=0.5),
    ),
    membranes=MembraneConfig(vesicles=2, double_vesicles=1, planes=1),
    filaments=FilamentConfig(microtubules=1, actin=2),
    surroundings=SurroundingsConfig(carbon_edge=True, gold_beads=5, border_angstrom=100.0),
)


def crowd(**changes: Any) -> SceneConfig:
    return SceneConfig(**{"shape": (60, 100, 100), "voxel_size_angstrom": 14.0, **changes})


@pytest.fixture(scope="module", params=[0, 1, 2])
def placed(request: pytest.FixtureRequest) -> Placed:
    return place_scene(RICH, RADII, seed=request.param, contrasts={"core": 3.0}, least_shares={"core": 0.4})


def test_rows_are_in_the_order_of_the_configuration(placed: Placed) -> None:
    assert placed.class_names == (
        "background", "big", "small", "loaded", "membrane", "double_membrane",
        "microtubule", "actin", "carbon", "gold",
    )  # fmt: skip
    assert placed.class_N.tolist() == [1] * 20 + [2] * 25 + [3] * 20 + [2] * 30
    assert placed.placement_N.tolist() == ["far"] * 20 + ["at"] * 25 + ["near"] * 20 + ["free"] * 30
    assert [placed.density_of(row) for row in (0, 20, 45, 65)] == ["big", "small", "core", "small"]
    np.testing.assert_array_equal(np.unique(placed.radius_N), [50, 60, 100])
    assert [len(m.levels) for m in placed.membranes] == [1, 2, 1, 1]
    assert len(placed.filaments) == 3


def test_gaps_to_membranes_are_as_asked(placed: Placed) -> None:
    """Measured from the truth and the notes about membranes alone."""
    truth = placed.to_truth()
    distance = np.full(len(truth), np.inf)
    for note in truth.notes["membranes"]:
        if note["kind"] == "vesicle":
            depth = np.linalg.norm(truth.positions_N3 - note["centre_zyx"], axis=1)
        else:
            depth = truth.positions_N3 @ np.array(note["normal_zyx"])
        for level in note.get("radii_angstrom") or note["offsets_angstrom"]:
            distance = np.minimum(distance, np.abs(depth - level))
    np.testing.assert_allclose(truth.membrane_distance_N, distance, rtol=1e-5)
    gap = distance - placed.radius_N - HEAD_SURFACE_ANGSTROM
    at, near, far = (truth.placement_N == word for word in ("at", "near", "far"))
    assert gap.min() >= -1e-6
    assert gap[at].max() <= 20 + 1e-6
    assert gap[near].min() >= 20 - 1e-6
    assert gap[near].max() <= 150 + 1e-6
    assert gap[far].min() >= 150 - 1e-6
    assert np.ptp(gap[near]) > 60  # they spread over the range


def test_nothing_overlaps(placed: Placed) -> None:
    first, second = np.triu_indices(len(placed), 1)
    radius = placed.radius_N
    assert (pdist(placed.positions_N3) >= radius[first] + radius[second]).all()
    assert placed.gold is not None
    assert placed.carbon is not None
    for thing in (*placed.filaments, placed.carbon, placed.gold):
        assert (thing.approach(placed.positions_N3)[0] >= radius - 1e-6).all()
    for thing in (*placed.filaments, placed.carbon):
        assert (thing.approach(placed.gold.centres_N3)[0] >= placed.gold.radius - 1e-6).all()
    beads = pdist(placed.gold.centres_N3)
    assert beads.min() >= 2 * placed.gold.radius


def test_everything_is_within_its_faces(placed: Placed) -> None:
    assert placed.gold is not None
    size = placed.size_angstrom
    low = placed.positions_N3 >= 112
    assert low.all()
    assert (placed.positions_N3 <= size - 112).all()
    z, radius = placed.positions_N3[:, 0], placed.radius_N
    assert (z - radius >= 100 - 1e-9).all()
    assert (z + radius <= size[0] - 100 + 1e-9).all()
    z = placed.gold.centres_N3[:, 0]
    assert (np.minimum(z, size[0] - z) >= 150 - 1e-9).all()


def test_contrast_is_configured_times_own_times_share(placed: Placed) -> None:
    big, at, core, free = np.split(placed.contrast_N, [20, 45, 65])
    assert (big == 1).all()
    assert (at == 1).all()
    assert core.min() >= 2 * 3 * 0.4
    assert core.max() <= 6
    assert np.ptp(core) > 1
    assert free.min() >= 0.5
    assert np.ptp(free) > 0.2


def test_the_seed_decides_everything() -> None:
    once, again, other = (place_scene(RICH, RADII, seed=seed) for seed in (7, 7, 8))
    for name in ("positions_N3", "quaternion_N4", "contrast_N"):
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))
        assert not np.array_equal(getattr(once, name), getattr(other, name))
    assert once.to_truth().notes == again.to_truth().notes
    assert once.membranes != other.membranes
    more = RICH.surroundings.model_copy(update={"gold_beads": 9})
    with_gold = place_scene(RICH.model_copy(update={"surroundings": more}), RADII, seed=7)
    assert with_gold.membranes == once.membranes  # each kind of thing has its own stream


def test_the_truth_on_storage_makes_the_scene_again(placed: Placed, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "truth"))
    write_truth(folder, "cell_1", placed.to_truth())
    truth = read_truth(folder, "cell_1")
    again = Placed.from_truth(truth)
    for name in Placed.__dataclass_fields__:
        value, new = getattr(placed, name), getattr(again, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, new)
            assert value.dtype.kind == new.dtype.kind
        elif name == "gold":
            assert value.to_dict() == new.to_dict()
        else:
            assert value == new, name
    assert truth.particle_classes == ("big", "small", "loaded")
    assert truth.notes["entry_counts"] == [20, 25, 20, 30]


def test_an_empty_scene(tmp_path: Path) -> None:
    placed = place_scene(crowd(), {}, seed=0)
    folder = Folder(str(tmp_path / "truth"))
    write_truth(folder, "cell_1", placed.to_truth())
    again = Placed.from_truth(read_truth(folder, "cell_1"))
    assert len(again) == 0
    assert again.class_names == ("background",)
    assert again.filled == 0


def test_without_membranes_the_distance_is_infinite() -> None:
    one = ParticlesConfig(density="big", copies=3, placement="far")
    placed = place_scene(crowd(particles=(one,)), RADII, seed=0)
    assert np.isinf(placed.membrane_distance_N).all()


def test_crowds_as_dense_as_in_the_papers() -> None:
    entries = (ParticlesConfig(density="big", copies=170), ParticlesConfig(density="small", copies=420))
    placed = place_scene(crowd(particles=entries, margin_angstrom=60.0), RADII, seed=0)
    assert placed.filled > 0.55
    first, second = np.triu_indices(len(placed), 1)
    assert (pdist(placed.positions_N3) >= placed.radius_N[first] + placed.radius_N[second]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"particles": (ParticlesConfig(density="big", copies=1),), "shape": (14, 60, 60)},
            r"'big' is larger than the volume: 200 Å across, in a volume of 196 x 840 x 840 Å",
        ),
        (
            {
                "particles": (ParticlesConfig(density="big", copies=1),),
                "surroundings": SurroundingsConfig(border_angstrom=330.0),
            },
            r"'big' is larger than the volume: .* with empty borders of 330 Å in z",
        ),
        (
            {"particles": (ParticlesConfig(density="big", copies=1),), "shape": (16, 60, 60)},
            r"has no room within a margin of 112 Å",
        ),
        (
            {"particles": (ParticlesConfig(density="big", copies=280),)},
            r"\d+ of 280 copies did, [3-6]\d % of the volume, of 71 % .* \d+ of 'big' \(free\)",
        ),
        (
            {
                "particles": (ParticlesConfig(density="small", copies=250, placement="at"),),
                "membranes": MembraneConfig(vesicles=1),
            },
            r"\d+ of 250 copies did.* \d+ of 'small' \(at\)",
        ),
        ({"particles": (ParticlesConfig(density="ghost", copies=1),)}, "no radius is known of .* 'ghost'"),
        (
            {"surroundings": SurroundingsConfig(gold_beads=300, gold_diameter_angstrom=200.0)},
            r"only \d+ of 300 gold beads fit",
        ),
        ({"surroundings": SurroundingsConfig(gold_beads=1, gold_diameter_angstrom=2000.0)}, "gold beads of"),
        (
            {"particles": tuple(ParticlesConfig(density="big", copies=0, name=f"c{n}") for n in range(256))},
            "256 classes do not fit",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        place_scene(crowd(**changes), RADII, seed=0)


def refused(monkeypatch: pytest.MonkeyPatch, scene: SceneConfig) -> str:
    """Return what is said when nothing may be packed at all."""

    def packed(*_: object) -> None:
        raise AssertionError("it was tried")

    monkeypatch.setattr("cryoscale.simulate.particles.pack_crowded", packed)
    monkeypatch.setattr("cryoscale.simulate.placing.pack_crowded", packed)
    with pytest.raises(ConfigurationError) as caught:
        place_scene(scene, RADII, seed=0)
    return str(caught.value)


def test_what_no_packing_reaches_is_refused_without_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centres may be 112 Å or more from the faces: in 602 x 1162 x 1162 Å, spheres in 200 Å more."""
    room = 802 * 1362**2 / (4 / 3 * np.pi * 100**3)  # so many spheres have the volume of the room
    many = round(2 * room)
    said = refused(monkeypatch, crowd(particles=(ParticlesConfig(density="big", copies=many),)))
    assert "200 % of the volume that they may take up, and packings reach 63 % at most" in said
    assert f"About {int(0.63 * room)} of {many} copies" in said
    assert "fewer copies" in said
    entry = (ParticlesConfig(density="big", copies=int(0.81 * room)),)
    assert "have 81 %" in refused(monkeypatch, crowd(particles=entry))
    entry = (ParticlesConfig(density="big", copies=int(0.79 * room)),)
    with pytest.raises(AssertionError, match="it was tried"):
        refused(monkeypatch, crowd(particles=entry))


def test_empty_borders_are_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole spheres stay in the 426 Å between the borders: 43 % of the volume are nearly all of that."""
    entry = (ParticlesConfig(density="big", copies=170),)
    borders = SurroundingsConfig(border_angstrom=200.0)
    share = 170 * 4 / 3 * np.pi * 100**3 / (426 * 1362**2)
    said = refused(monkeypatch, crowd(particles=entry, surroundings=borders))
    assert f"have {100 * share:.0f} %" in said
    assert share == pytest.approx(0.90, abs=0.01)


def test_too_many_gold_beads_are_refused_without_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = SurroundingsConfig(gold_beads=2_000, gold_diameter_angstrom=200.0)
    assert "the gold beads cannot fit" in refused(monkeypatch, crowd(surroundings=gold))


def test_notes_of_something_else_are_refused(placed: Placed) -> None:
    truth = placed.to_truth()
    truth.notes.pop("membranes")
    with pytest.raises(StateError, match="membranes"):
        Placed.from_truth(truth)
    truth = placed.to_truth()
    truth.notes["entry_counts"] = [1, 2, 3, 4]
    with pytest.raises(StateError, match="count 10 copies"):
        Placed.from_truth(truth)
