"""TOML in and out: nothing is lost, and what is wrong is named with what was probably meant."""

from __future__ import annotations

import contextlib
import math

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.config import RunConfig, apply_settings, dump_config, load_config
from cryoscale.config.run import SourceConfig, parameters_key
from cryoscale.config.sections import PickConfig
from cryoscale.errors import ConfigurationError
from cryoscale.testing.strategies import plain_toml, run_configs


@given(run_configs())
def test_round_trip(config: RunConfig) -> None:
    again = load_config(dump_config(config))
    assert again == config
    assert parameters_key(again) == parameters_key(config)


def test_defaults_left_out_are_defaults() -> None:
    assert load_config("") == RunConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pick]\nradius_angstroms = 100.0", ["unknown key 'pick.radius_angstroms'", "'radius_angstrom'"]),
        ("[clusters]\nseed = 1", ["unknown key 'clusters'", "'cluster'"]),
        ("[pick]\nqqqq = 1", ["unknown key 'pick.qqqq'", "known keys are", "threshold"]),
        ('[[inputs]]\nname = "a"\npaht = "b"', ["inputs.0.paht", "'path'"]),
        ("[pick]\nratio = 1.0", ["pick.ratio = 1.0", "greater than 1"]),
        ("[ingest]\nchunk = 48\nshard = 64", ["shard = 64", "multiple of chunk = 48"]),
        ("[patch]\nsize_voxels = 10", ["size_voxels = 10", "divide by 4"]),
        ("[pick]\nz_range = [9, 3]", ["z_range", "first < second"]),
        ("[pick]\nradius_angstrom = 9.0\nsigma_voxels = 3.0", ["not both"]),
        ('[pick]\npositions = "p.csv"\nmask = "m.mrc"', ["positions and mask", "together"]),
        ('[pick]\npositions = "p.csv"\nz_range = "auto"', ["positions and z_range", "together"]),
        ('[pick]\npositions = "p.csv"\nmax_picks = 9', ["positions and max_picks", "together"]),
        ('[segment]\nlabels = "../0"', ["segment.labels = '../0'", "begins with a letter"]),
        ('[segment]\nlabels = "a b"', ["segment.labels = 'a b'", "a name of letters"]),
        ('[segment]\nlabels = "a\\n"', ["segment.labels"]),
        ("[segment]\nprobabilities = true", ["segment.probabilities", "set supervised.model"]),
        ('[supervised]\nmodel = "unet2d"', ['supervised.labels = "truth"', "name the files"]),
        ('[supervised]\nmodel = "unet3d"\nlabels = "a.mrc"\n[segment]\nmode = "decoded"', ["of clusters"]),
        ('[supervised]\nmodel = "dsm-net"\ntruth = "subtomograms"', ["name a table of boxes"]),
        ('[supervised]\nmodel = "unet2d"\nheads = ["cls"]\nlabels = "a"', ["heads are of dsm-net"]),
        ('[supervised]\nmodel = "dsm-net"\nlabels = "a"\nloss_weights = [1, 2]', ["2 loss_weights for 3"]),
        ('[supervised]\nmodel = "unet"', ["supervised.model = 'unet'"]),
        ("[pick]\nthreshold = nan", ["pick.threshold"]),
        ("[encoder]\nlearning_rate = inf", ["encoder.learning_rate"]),
        ("[pick", ["not valid TOML"]),
    ],
)
def test_message_names_key_value_and_what_was_meant(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(text, origin="here/run.toml")
    for word in ["here/run.toml", *words]:
        assert word in str(caught.value)


def test_every_problem_is_listed() -> None:
    with pytest.raises(ConfigurationError, match=r"pick\.ratio.*cluster\.n_clusters"):
        load_config("[pick]\nratio = 0.5\n[cluster]\nn_clusters = 1")


TABLES = st.sampled_from([*RunConfig.model_fields, "other"])
KEYS = st.sampled_from(["seed", "threshold", "size_voxels", "z_range", "chunk", "name", "labels", "level"])


@settings(max_examples=200)
@given(st.dictionaries(TABLES, plain_toml() | st.dictionaries(KEYS, plain_toml()), max_size=4))
def test_garbage_is_a_configuration_error_and_nothing_else(raw: dict[str, object]) -> None:
    text = tomli_w.dumps(raw)
    try:
        config = load_config(text)
    except ConfigurationError as error:
        assert "run.toml" in str(error)  # noqa: PT017 - some values are fine
    else:
        assert load_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("pick.threshold=2.5", 2.5),
        ("pick.z_range=auto", "auto"),
        ("pick.z_range=[3, 9]", (3, 9)),
        ("pick.z_range='auto'", "auto"),
        ("pick.mask=masks/{tomogram}.mrc", "masks/{tomogram}.mrc"),
        ("pick.mask=a = b", "a = b"),
        (" pick.max_picks = 10 ", 10),
        ("pick.max_picks=none", None),
    ],
)
def test_setting(word: str, value: object) -> None:
    config = apply_settings(RunConfig(pick=PickConfig(max_picks=5)), [word])
    name = word.partition("=")[0].strip().partition(".")[2]
    assert getattr(config.pick, name) == value


@pytest.mark.parametrize(
    "word", ["pick", "pick.threshold", "threshold=3", "pick.=3", "=", "pick.ratio=0", "inputs.x=1",
             "version.x=1", "picks.threshold=3", "pick.thresold=3", "encoder.epochs=none"],
)  # fmt: skip
def test_setting_that_cannot_be(word: str) -> None:
    config = RunConfig(inputs=(SourceConfig(name="a", path="/a.mrc"),))
    with pytest.raises(ConfigurationError, match="--set"):
        apply_settings(config, [word])


@given(run_configs(), TABLES, KEYS, plain_toml())
def test_any_setting_is_taken_or_refused(config: RunConfig, table: str, key: str, value: object) -> None:
    text = tomli_w.dumps({"v": value}).partition("=")[2].strip()
    with contextlib.suppress(ConfigurationError):
        apply_settings(config, [f"{table}.{key}={text}"])


def test_settings_do_not_change_what_they_start_from() -> None:
    start = RunConfig()
    assert apply_settings(start, ["pick.threshold=4"]).pick.threshold == 4
    assert start == RunConfig()


@given(run_configs(), run_configs())
def test_keys_are_equal_exactly_for_equal_parameters(one: RunConfig, other: RunConfig) -> None:
    assert (parameters_key(one) == parameters_key(other)) == (one == other)
    assert math.log2(int(parameters_key(one), 16) + 1) <= 64
