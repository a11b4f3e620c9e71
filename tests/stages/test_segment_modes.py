"""The modes on patches of chosen clusters: what is an object, and of which class."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from cryoscale.geometry import Box, Zyx
from cryoscale.ops.blend import weight_window
from cryoscale.stages import segment
from cryoscale.stages.masks import HIGHEST_LEVEL

if TYPE_CHECKING:
    import pytest

BOX = Zyx(4, 4, 4)
CLASS_OF_CLUSTER = np.array([0, 1, 2], np.int32)


class Reader:
    """Gathers, for a patch, its row."""

    box = BOX

    def voxels(self, positions_N3: np.ndarray) -> np.ndarray:
        return positions_N3.astype(np.int64)

    def gather(self, centres_N3: np.ndarray) -> np.ndarray:
        return centres_N3[:, 2].astype(np.float32).reshape(-1, 1, 1, 1) * np.ones(BOX, np.float32)


class Engine:
    """Answers each item by its first number; a segmenter weighs its answers and may give background alone."""

    def __init__(self, answers: dict[int, Any], shape: tuple[int, ...], face: str = "") -> None:
        self.answers, self.face = answers, face
        self.whole_shape = shape
        self.output_shape = (1, *shape[1:]) if face == "background" else shape

    def run(self, items: np.ndarray) -> np.ndarray:
        firsts = items.reshape(len(items), -1)[:, 0].astype(int)
        answers = [np.asarray(self.answers[n], np.float32) for n in firsts]
        whole = np.stack([np.broadcast_to(one, self.whole_shape) for one in answers])
        return whole[:, : self.output_shape[0]] * (weight_window(BOX) if self.face else 1)


def labels_of(
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    clusters: list[int],
    places: list[int],
    answers: dict[int, Any],
    class_of: str = "cluster",
    level: float | None = None,
) -> np.ndarray:
    """Segment a bar of 4 x 4 x 16 voxels with picks at these x; answers by pick, x in `picks`, row else."""
    config = SimpleNamespace(
        segment=SimpleNamespace(class_of=class_of), segmenter=SimpleNamespace(level=level)
    )
    selection = SimpleNamespace(classes=("a", "b"), class_of_cluster=lambda n: CLASS_OF_CLUSTER[:n])
    positions = np.array([[2, 2, x] for x in places], float)
    access: Any = SimpleNamespace(
        config=config,
        selection=lambda: selection,
        clusters=lambda: SimpleNamespace(card={"n_clusters": 3}),
        assignments=lambda: (np.array(clusters), np.zeros(len(clusters))),
        picks=lambda: SimpleNamespace(positions_N3=positions),
        encodings=lambda: SimpleNamespace(read=lambda: np.arange(len(clusters), dtype=np.float32)[:, None]),
    )
    shape = (3, *BOX) if mode == "picks" else (1, *BOX)
    name = "open_segmenter" if mode == "picks" else "open_decoder"
    monkeypatch.setattr(segment.PatchReader, "for_access", lambda *_: Reader())
    monkeypatch.setattr(segment, name, lambda _, *face: contextlib.nullcontext(Engine(answers, shape, *face)))
    with {"picks": segment._open_picks, "decoded": segment._open_decoded}[mode](access) as predict:
        return predict(Box(Zyx(0, 0, 0), Zyx(4, 4, 16)))


def odds(*shares: float) -> np.ndarray:
    """Return what the network says of every voxel of a patch: background, class 1, class 2."""
    return np.array(shares).reshape(3, 1, 1, 1)


def test_the_cluster_says_the_class_of_what_the_network_calls_object(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        2: odds(0.1, 0.9, 0.0),
        7: odds(0.1, 0.9, 0.0),
        12: odds(0.9, 0.1, 0.0),
    }  # the network says 1 to all
    found = labels_of(monkeypatch, "picks", [1, 2, 1], [2, 7, 12], answers)
    assert found[1, 1].tolist() == [1] * 4 + [0] + [2] * 4 + [0] * 7


def test_the_network_says_the_class_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {2: odds(0.1, 0.0, 0.9), 7: odds(0.1, 0.9, 0.0), 12: odds(0.4, 0.3, 0.3)}
    found = labels_of(monkeypatch, "picks", [1, 2, 1], [2, 7, 12], answers, "network")
    assert found[1, 1].tolist() == [2] * 4 + [0] + [1] * 4 + [0] * 7
    assert found.shape == (4, 4, 16)


def test_two_classes_on_one_object_do_not_lose_it_to_background(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {6: odds(0.4, 0.6, 0.0), 7: odds(0.4, 0.6, 0.0)}
    found = labels_of(monkeypatch, "picks", [1, 2], [6, 7], answers)[1, 1]
    assert found[6] > 0, "in the middle of both: 0.8 for background, 0.6 for each class, 1.2 for an object"
    assert np.delete(found, 6).tolist() == [0] * 4 + [1, 1, 2, 2] + [0] * 7
    weak = {6: odds(0.6, 0.4, 0.0), 7: odds(0.6, 0.4, 0.0)}
    assert not labels_of(monkeypatch, "picks", [1, 2], [6, 7], weak).any()


def test_clusters_that_are_not_chosen_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = labels_of(monkeypatch, "picks", [0, 2], [2, 7], {7: odds(0.0, 1.0, 0.0)})
    assert np.unique(found[..., 5:9]).tolist() == [2]
    assert not found[..., :5].any()


def decoded(depth: float) -> np.ndarray:
    patch = np.zeros((1, *BOX), np.float32)
    patch[..., 1:3] = depth
    return patch


def test_decoded_objects_are_cut_at_the_level_of_their_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = decoded(-8)
    deep[..., 0] = -1  # a halo of a deep kind, which a level for all would call object
    answers = {0: deep, 1: decoded(-1)}
    found = labels_of(monkeypatch, "decoded", [1, 2], [2, 8], answers)
    assert found[1, 1].tolist() == [0, 1, 1, 0, 0, 0, 0, 2, 2] + [0] * 7
    given = labels_of(monkeypatch, "decoded", [1, 2], [2, 8], answers, level=-0.5)
    assert given[1, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 2, 2] + [0] * 7


def test_otsu_of_decoded_members_is_never_above_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind whose members are brighter than the tomogram: its histogram would call all of it object."""
    bright = np.full((1, *BOX), 0.2, np.float32)
    bright[..., 1:3] = 3.0
    assert HIGHEST_LEVEL < 0
    assert not labels_of(monkeypatch, "decoded", [1], [2], {0: bright}).any()
