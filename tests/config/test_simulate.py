"""The table [simulate]: names, variants, classes, and what cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.config import RunConfig, apply_settings, dump_config, load_config
from cryoscale.config.simulate import ParticlesConfig, SceneConfig, SimulateConfig, file_stem, scaled
from cryoscale.errors import ConfigurationError

PARTICLES = [{"density": "ring", "copies": 3}, {"density": "ring", "copies": 2, "placement": "at"},
             {"density": "maps/1KP8.mrc.gz", "copies": 4}]  # fmt: skip


def made(**changes: object) -> SimulateConfig:
    return SimulateConfig.model_validate(
        {"scene": {"particles": PARTICLES, "membranes": {"planes": 1}}, **changes}
    )


def test_entries_of_one_name_are_one_class() -> None:
    scene = made().scene
    assert scene.particle_classes == ("ring", "1KP8")
    assert scene.class_names == ("background", "ring", "1KP8", "membrane")


def test_variants_change_copies_and_snr_and_share_numbers() -> None:
    config = made(tomograms=2, variants=[{"name": "a", "copies": 90}, {"name": "b-1", "snr": 0.5}])
    assert config.names == ("a_1", "a_2", "b-1_1", "b-1_2")
    assert [p.copies for p in config.for_tomogram("a_2").scene.particles] == [30, 20, 40]
    assert config.for_tomogram("b-1_1").imaging.snr == 0.5
    assert config.for_tomogram("b-1_1").scene == config.scene
    assert config.number_of("a_2") == config.number_of("b-1_2") == 2


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), st.integers(0, 500))
def test_scaled_copies_add_up_and_keep_their_shares(counts: list[int], total: int) -> None:
    entries = tuple(ParticlesConfig(density=f"d{n}", copies=c) for n, c in enumerate(counts))
    new = [p.copies for p in scaled(entries, total)]
    assert sum(new) == total
    assert all(abs(n - c * total / sum(counts)) < 1 for n, c in zip(new, counts, strict=True))


def test_toml_round_trip_and_nested_settings() -> None:
    config = RunConfig(simulate=made(subtomograms={"count": 5}))
    assert load_config(dump_config(config)) == config
    changed = apply_settings(config, ["simulate.imaging.snr=0.02", "simulate.scene.membranes.vesicles=3"])
    assert changed.simulate is not None
    assert (changed.simulate.imaging.snr, changed.simulate.scene.membranes.vesicles) == (0.02, 3)
    with pytest.raises(ConfigurationError, match=r"'snr' is not a table|'imaging.snr'|snr"):
        apply_settings(config, ["simulate.imaging.snr.x=1"])


def test_an_unknown_key_names_the_nearest_of_its_table() -> None:
    with pytest.raises(
        ConfigurationError, match=r"unknown key 'simulate\.imaging\.snrr'; did you mean 'snr'"
    ):
        apply_settings(RunConfig(simulate=made()), ["simulate.imaging.snrr=1"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("imaging.snr=0", "greater than 0"),
        ("imaging.tilt_min_degrees=-95", "-90"),
        ("imaging.tilt_max_degrees=-61", "smaller than tilt_max_degrees"),
        ("imaging.defocus_micrometre=-4", "defocus"),
        ("scene.membranes.planes=0", "no membrane"),
        ("scene.near_angstrom=10", "larger than at_angstrom"),
        ("tomograms=0", "greater than or equal to 1"),
    ],
)
def test_impossible_values_are_named(setting: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        apply_settings(RunConfig(simulate=made()), [f"simulate.{setting}"])
    assert setting.partition("=")[0].split(".")[0] in str(caught.value)


def test_variants_need_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="different names"):
        made(variants=[{"name": "a"}, {"name": "a"}])


def test_a_scene_without_anything_is_a_scene() -> None:
    assert SceneConfig().class_names == ("background",)


@pytest.mark.parametrize("name", ["background", "gold", "double_membrane", "a/b c", ""])
def test_class_names_are_names_and_not_taken(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be named|at least"):
        SceneConfig.model_validate({"particles": [{"density": "ring", "copies": 1, "name": name or " "}]})


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("a.mapped.mrc", "a.mapped"),
        ("x/1KP8.cif.gz", "1KP8"),
        ("e.ccp4", "e"),
        ("m.map.bz2", "m"),
        ("4v7r", "4v7r"),
    ],
)
def test_names_of_files(path: str, stem: str) -> None:
    assert file_stem(path) == stem


def test_subtomograms_are_shared_by_tomograms() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        made(tomograms=3, subtomograms={"count": 2})
