"""What a supervised training and what it is applied to depend on, and what they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cryoscale.config import RunConfig
from cryoscale.data.weights import identity_of
from cryoscale.errors import StateError
from cryoscale.pipeline.export import usual_kinds
from cryoscale.pipeline.order import Step, steps_for
from cryoscale.simulate.recipes import recipe

INPUTS = [{"name": "a", "path": "/x/a.mrc"}, {"name": "b", "path": "/x/b.mrc"}]


def config_with(asked: dict[str, Any], **tables: Any) -> RunConfig:
    return RunConfig.model_validate({"supervised": asked, "inputs": INPUTS, **tables})


def step_of(config: RunConfig, name: str) -> Step:
    return {step.name: step for step in steps_for(config)}[name]


def depends(config: RunConfig, name: str = "train_supervised") -> list[Any]:
    step = step_of(config, name)
    return [step.parameters(config), step.outside(config)]


LABELS = {"model": "ssn3d-ed", "labels": "d/{tomogram}.mrc", "tomograms": ["a"]}
TABLE = {"model": "dsm-net", "truth": "subtomograms", "subtomograms": "boxes.csv"}
GIVEN = {"model": "ssn3d-ed", "weights": "other/models/segmenter"}


@pytest.mark.parametrize(
    ("asked", "change", "renewed"),
    [
        (LABELS, {"supervised": {"seed": 1}}, True),
        (LABELS, {"supervised": {"tomograms": ["a", "b"]}}, True),
        (LABELS, {"supervised": {"classes": ["ribosome"]}}, True),
        (LABELS, {"supervised": {"threads": 2}}, False),
        (LABELS, {"supervised": {"workers": 2}}, False),
        (LABELS, {"supervised": {"axis": "y", "tile_voxels": 64}}, False),  # of slices, and this sees boxes
        (LABELS, {"ingest": {"contrast": "dark"}}, False),  # by way of the tomograms, which are read
        ({**LABELS, "model": "unet2d"}, {"supervised": {"axis": "y"}}, True),
        (
            {**LABELS, "model": "unet2d"},
            {"supervised": {"workers": 2}},
            True,
        ),  # statistics of their own
        (TABLE, {"ingest": {"contrast": "bright"}}, True),
        (GIVEN, {"supervised": {"model": "unet3d"}}, True),
        (GIVEN, {"patch": {"size_voxels": 40}}, True),
        (GIVEN, {"supervised": {"seed": 1}}, False),
    ],
)
def test_what_renews_a_training(asked: dict[str, Any], change: dict[str, Any], renewed: bool) -> None:
    before = config_with(asked)
    tables = {table: values for table, values in change.items() if table != "supervised"}
    after = config_with({**asked, **change.get("supervised", {})}, **tables)
    assert (depends(before) != depends(after)) == renewed


def test_held_out_tomograms_renew_a_training_on_simulated_truth() -> None:
    made = recipe("cell-demo", seed=1).model_dump(mode="json")
    names = sorted(recipe("cell-demo", seed=1).names)
    keys = set()
    for tomograms in ([], names[:1], names[1:]):
        asked = {"model": "unet3d", "tomograms": tomograms}
        keys.add(str(depends(RunConfig.model_validate({"supervised": asked, "simulate": made}))))
    assert len(keys) == 3


def test_drawn_files_count_without_a_list_of_tomograms(tmp_path: Path) -> None:
    asked = {"model": "ssn3d-ed", "labels": str(tmp_path / "{tomogram}.mrc")}
    (tmp_path / "b.mrc").write_bytes(b"drawn")
    assert depends(config_with(asked))[1] == [str(tmp_path / "b.mrc")]


def test_where_nothing_is_cut_into_slices_an_axis_changes_no_label_volume() -> None:
    one, other = config_with(LABELS), config_with({**LABELS, "axis": "x", "tile_voxels": 64})
    assert depends(one, "segment") == depends(other, "segment")
    assert depends(config_with({**LABELS, "model": "unet2d"}), "segment") != depends(
        config_with({**LABELS, "model": "unet2d", "axis": "x"}), "segment"
    )


def test_a_network_with_other_names_is_another() -> None:
    card = {"weights_sha256": "f" * 64, "architecture": {"name": "unet3d"}, "classes": {"names": ["a", "b"]}}
    assert identity_of(card) != identity_of({**card, "classes": {"names": ["b", "a"]}})
    assert identity_of(card) == identity_of({**card, "metrics": {"train_loss": 1.0}})


def test_a_card_without_weights_is_refused() -> None:
    with pytest.raises(StateError, match="does not name its weights"):
        identity_of({"architecture": {"name": "unet3d"}})


@pytest.mark.parametrize("name", ["annotation", "truth"])
def test_predictions_do_not_take_the_place_of_truth(name: str) -> None:
    with pytest.raises(ValueError, match="take another name"):
        RunConfig.model_validate({"segment": {"labels": name}})


@pytest.mark.parametrize("classes", [["a", "a"], ["a", " "]])
def test_names_of_classes_are_told_apart(classes: list[str]) -> None:
    with pytest.raises(ValueError, match="each of them once"):
        config_with({**LABELS, "classes": classes})


def test_tomograms_with_labels_must_be_of_the_run() -> None:
    with pytest.raises(ValueError, match="'on', which the run does not have; it has a, b"):
        config_with({**LABELS, "tomograms": ["on"]})


def test_objects_are_exported_only_where_they_are_counted(tmp_path: Path) -> None:
    from cryoscale.data.run import Run

    run = Run.at(tmp_path)
    for volumes, counted in (("merged", True), ("features", False)):
        run.save_config(config_with(LABELS, segment={"volumes": volumes}))
        assert ("instances" in usual_kinds(run)) == counted
