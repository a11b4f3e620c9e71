"""Invariants of a run: the card says which, plans count them, the whole sample gives their gain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoscale.config import apply_settings
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.errors import StateError
from cryoscale.pipeline.preview import forecasts
from cryoscale.pipeline.survey import survey_run
from cryoscale.stages import encode, train_encoder
from cryoscale.stages.networks import (
    encoding_width,
    expected_invariants,
    invariants_bytes,
    invariants_of,
)
from tests.stages.granting import grant

BOX = (16, 16, 16)


def test_the_card_says_which_invariants_are_computed() -> None:
    card = {**expected_invariants(BOX), "gain": 1.0}
    assert card["count"] == 25
    assert invariants_of(card, BOX).shell_voxels == card["shell_voxels"]
    other = {**card, "shell_voxels": 3.0, "width_voxels": 1.1, "count": 10}
    module = invariants_of(other, BOX)
    assert (module.count, module.shell_voxels, module.width_voxels) == (10, 3.0, 1.1)
    for wrong in ({"count": 24}, {"shell_voxels": 3.0}, {"name": "moments"}):
        with pytest.raises(StateError, match="shell_invariants"):
            invariants_of({**card, **wrong}, BOX)


def test_trained_cards_hold_all_that_fixes_the_invariants(finished_run: Run) -> None:
    card = finished_run.model("encoder").card
    added = card["invariants"]
    assert set(added) == {"name", "degrees", "shell_voxels", "width_voxels", "count", "gain"}
    _, access = grant(finished_run, "encode", "alpha")
    assert access.encodings().shape[1] == encoding_width(card)


def test_plans_count_the_basis(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, access = grant(finished_run, "encode", "alpha")
    card, box = finished_run.model("encoder").card, access.config.patch.box
    basis = invariants_of(card["invariants"], box).basis_VB.numel() * 4
    assert invariants_bytes(card, box) == 2 * basis
    assert invariants_bytes({}, box) == 0
    promised = stage.plan(access).bytes_per_worker
    monkeypatch.setattr(encode, "invariants_bytes", lambda *_: 0)
    assert promised - stage.plan(access).bytes_per_worker == 2 * basis
    needed = []
    for weight in (0, 2):
        words = ["patch.size_voxels=64", "encoder.channels=1", "encoder.batch_size=1"]
        config = apply_settings(access.config, [*words, f"encoder.invariant_weight={weight}"])
        stage, fit = grant(finished_run, "train_encoder", config=config)
        needed.append(stage.bytes_needed(fit))
    assert needed[1] > needed[0] + 2**29


def test_the_dry_run_foretells_the_width_of_encodings(
    make_run: Callable[..., Run], finished_run: Run
) -> None:
    width = encoding_width(finished_run.model("encoder").card)
    bare = int(finished_run.model("encoder").card["architecture"]["dimension"])
    for weight, expected in ((2, width), (0, bare)):
        words = ["pick.max_picks=50", f"encoder.invariant_weight={weight}"]
        rows = forecasts(survey_run(make_run(*words, name=f"run{weight}"), look_at_sources=True))
        (row,) = [row for row in rows if (row.step, row.tomogram) == ("encode", "alpha")]
        assert row.disk_bytes == 50 * expected * 4


def test_the_gain_comes_from_all_tomograms(copied_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, access = grant(copied_run, "train_encoder", key="fresh")
    sample = train_encoder._sample(access)
    seen: dict[str, Any] = {}
    for name in ("_codes", "_invariants"):
        real = getattr(train_encoder, name)

        def record(*words: Any, _name: str = name, _real: Any = real) -> Any:
            seen[_name] = next(word for word in words if getattr(word, "ndim", 0) == 5)
            return _real(*words)

        monkeypatch.setattr(train_encoder, name, record)
    monkeypatch.setattr(train_encoder, "MEASURED", len(sample) // 3)
    stage.compute(access)
    for measured in seen.values():
        assert np.array_equal(measured, sample[::4] if len(sample) % 3 else sample[::3])
        assert np.shares_memory(measured, measured.base)  # a view: no copy of thousands of patches


@pytest.mark.parametrize(
    ("has", "weight", "said"),
    [(True, 2, ""), (False, 2, "was trained without"), (True, 0, "of its own"), (False, 0, "")],
)
def test_given_weights_bring_their_own_invariants_or_none(
    copied_run: Run, tmp_path: Path, has: bool, weight: int, said: str
) -> None:
    given = Folder.of(str(tmp_path / "given"))
    shutil.copytree(copied_run.model("encoder").folder.url, given.url)
    card = given.read_toml("model.toml")
    if not has:
        del card["invariants"]
        given.write_toml("model.toml", card)
    words = [f"encoder.weights={given.url}", f"encoder.invariant_weight={weight}"]
    stage, access = grant(copied_run, "train_encoder", config=apply_settings(copied_run.config, words))
    facts = stage.compute(access)
    assert facts["imported"]
    assert ("note" in facts) == bool(said)
    assert said in facts.get("note", "")
