from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from cryoscale.inference.dense import LabelsOf, WeightedOf, open_label_engine
from cryoscale.inference.engine import Backend, open_engine
from cryoscale.models.edss3d import EDSS3D
from cryoscale.ops.blend import weight_window

BACKENDS = ["torch"] + ["openvino"] * (importlib.util.find_spec("openvino") is not None)


def network(classes: int = 4) -> EDSS3D:
    return EDSS3D(classes, channels=4, seed=1)


def sure(logits: np.ndarray) -> np.ndarray:
    top = np.sort(logits, axis=1)
    return np.asarray(top[:, -1] - top[:, -2] > 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_are_the_argmax_of_the_logits(backend: Backend) -> None:
    items = np.random.default_rng(0).normal(size=(3, 1, 8, 16, 12)).astype(np.float32)
    logits = network()(torch.from_numpy(items)).detach().numpy()
    with open_engine(LabelsOf(network()), input_shape=items.shape[1:], batch=1, backend=backend) as engine:
        labels = engine.run(items)
    with open_label_engine(network(), window=items.shape[2:], threads=2) as engine:
        assert engine.output_shape == items.shape[1:]
        np.testing.assert_allclose(engine.run(items)[:, 0][sure(logits)], labels[:, 0][sure(logits)])
    assert len(np.unique(labels)) > 2
    np.testing.assert_array_equal(labels[:, 0][sure(logits)], logits.argmax(axis=1)[sure(logits)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_labels_of_broken_logits_are_not_finite(backend: Backend, bad: float) -> None:
    module = network()
    with torch.no_grad():
        module.classify.bias[2] = bad
    with open_engine(LabelsOf(module), input_shape=(1, 8, 8, 8), batch=1, backend=backend) as engine:
        assert not np.isfinite(engine.run(np.ones((1, 1, 8, 8, 8), np.float32))).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_weighted_probabilities(backend: Backend) -> None:
    items = np.random.default_rng(0).normal(size=(2, 1, 8, 8, 8)).astype(np.float32)
    shares = torch.softmax(network()(torch.from_numpy(items)), dim=1).detach().numpy()
    weight = weight_window(8)
    for background_only, expected in [(False, shares * weight), (True, shares[:, :1] * weight)]:
        module = WeightedOf(network(), torch.from_numpy(weight), background_only=background_only)
        with open_engine(module, input_shape=(1, 8, 8, 8), batch=2, backend=backend) as engine:
            np.testing.assert_allclose(engine.run(items), expected, atol=1e-5)


def test_windows_are_the_same_bits_for_any_number_of_threads_and_place() -> None:
    items = np.random.default_rng(0).normal(size=(2, 1, 24, 36, 20)).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        with open_label_engine(network(), window=items.shape[2:], threads=threads) as engine:
            found.append(engine.run(items))
            np.testing.assert_array_equal(engine.run(items[1:])[0], found[0][1])
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
