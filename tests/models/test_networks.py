"""What all networks promise: shapes, counts, seeds, halos, and the same numbers in every engine."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from cryoscale.errors import ConfigurationError
from cryoscale.inference.dense import LabelsOf, open_label_engine
from cryoscale.inference.engine import open_engine
from cryoscale.models import registry
from cryoscale.models.layers import count_parameters

SMALL = {  # architectures of few channels, each with other numbers than the defaults
    "edss3d": {"n_classes": 3, "channels": 3},
    "ssn3d-ed": {"n_classes": 3, "channels": 3},
    "ssn3d-ed trilinear": {"n_classes": 3, "channels": 3, "upsampling": "trilinear"},
    "ssn3d-ed normalised": {"channels": 3, "batch_norm": True},
    "ssn3d-fcn": {"n_classes": 4, "channels": 2},
    "dsm-net seg": {"heads": ["seg"], "channels": 3, "n_labels": 4},
    "dsm-net rec normalised": {"heads": ["rec"], "channels": 3, "batch_norm": True},
    "unet3d": {"n_classes": 3, "channels": 3},
    "unet3d shallow": {"channels": 3, "levels": 3, "batch_norm": False, "dropout": 0.2},
    "unet2d": {"n_classes": 3, "channels": 3, "slices": 3},
    "cnn2d-chen": {"n_classes": 3, "channels": 3, "kernel": 5},
}
CLASSIFIERS = {
    "dsm-net": {"n_classes": 5, "channels": 3, "features": 7},
    "dsrf3d-v2": {"n_classes": 5, "box": [8, 12, 20], "channels": 2},
}
HALOS = {  # counted by hand, voxels
    "edss3d": 11,
    "ssn3d-ed": 14,
    "ssn3d-ed trilinear": 22,
    "ssn3d-fcn": 14,
    "dsm-net seg": 53,
    "unet3d": 46,
    "unet3d shallow": 22,
    "unet2d": 126,
}


def small(name, seed=0):
    """Build one of SMALL or CLASSIFIERS; what follows the first word of its name is a remark."""
    architecture = {"name": name.split()[0], **(SMALL | CLASSIFIERS)[name]}
    return registry.build(architecture, seed=seed)


def input_for(network, sides, items=2, seed=0):
    channels = getattr(network, "slices", 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(items, channels, *sides[-network.dimensions :], generator=generator)


def labels_of(network):
    return getattr(network, "n_labels", network.n_classes) if network.heads == ("seg",) else 1


# -- shapes ---------------------------------------


@pytest.mark.parametrize("name", [name for name in SMALL if name != "edss3d"])
@pytest.mark.parametrize("sides", [(8, 8, 8), (20, 20, 20), (24, 20, 32), (9, 15, 13)])
def test_every_voxel_gets_its_logits_whatever_the_box(name, sides):
    network = small(name)
    x = input_for(network, sides)
    assert network(x).shape == (2, labels_of(network), *x.shape[2:])


@pytest.mark.parametrize("side", [20, 24, 32, 40])
@pytest.mark.parametrize("name", ["ssn3d-ed", "ssn3d-fcn", "dsm-net", "unet3d"])
def test_boxes_of_the_papers(name, side):
    network = small(name)
    outputs = network(input_for(network, (side,) * 3, items=1))
    assert (outputs["seg"] if isinstance(outputs, dict) else outputs).shape[2:] == (side,) * 3


def test_dsm_net_gives_a_dictionary_by_head():
    network = small("dsm-net")
    outputs = network(input_for(network, (8, 20, 13)))
    assert list(outputs) == ["cls", "seg", "rec"]
    assert [tuple(output.shape) for output in outputs.values()] == [
        (2, 5),
        (2, 2, 8, 20, 13),
        (2, 1, 8, 20, 13),
    ]


def test_dsrf3d_classifies_boxes_of_its_size_alone():
    network = small("dsrf3d-v2")
    assert network(torch.zeros(3, 1, 8, 12, 20)).shape == (3, 5)
    with pytest.raises(ConfigurationError, match="boxes of"):
        network(torch.zeros(3, 1, 8, 12, 16))


# -- architectures ---------------------------------------


@pytest.mark.parametrize("name", [*SMALL, *CLASSIFIERS])
def test_an_architecture_builds_the_same_network_again(name):
    network = small(name)
    again = registry.build(network.architecture, seed=3)
    assert again.architecture == network.architecture
    again.load_state_dict(network.state_dict())
    x = input_for(network, (8, 12, 20))
    for a, b in zip(*(_tensors(n.eval()(x)) for n in (network, again)), strict=True):
        assert torch.equal(a, b)


def _tensors(outputs):
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


@pytest.mark.parametrize("name", [*SMALL, *CLASSIFIERS])
def test_first_weights_depend_on_the_seed_alone(name):
    before = torch.get_rng_state()
    one, same, other = small(name), small(name), small(name, seed=1)
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"
    for key, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[key])
        if weight.ndim > 1:
            assert not torch.equal(weight, other.state_dict()[key])
            assert weight.std() > 0
        else:  # biases, normalisations and their counters
            wanted = 1 if key.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")) else 0
            assert bool((weight == wanted).all()), key


@pytest.mark.parametrize("name", [*SMALL, *CLASSIFIERS])
def test_every_weight_is_learned(name):
    network = small(name).double()
    x = input_for(network, (8, 12, 20), items=3).double()
    sum((output**2).sum() for output in _tensors(network(x))).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.abs().sum() > 0) or key.endswith("bias"), key


def test_facts_are_those_of_the_network():
    for name in [*SMALL, *CLASSIFIERS]:
        network = small(name)
        facts = registry.facts_of(network.architecture)
        assert facts == registry.ModelFacts(
            network.dimensions, network.heads, network.alignment, network.halo
        )
        with pytest.raises(FrozenInstanceError):
            facts.halo = 1
    assert registry.facts_of({"name": "dsm-net", "heads": ["rec", "cls"]}).heads == ("cls", "rec")
    assert registry.facts_of({"name": "dsm-net"}).halo is None


def test_counts_that_no_head_uses_are_not_looked_at():
    registry.build({"name": "dsm-net", "n_classes": 1, "heads": ["seg"], "channels": 2})
    registry.build({"name": "dsm-net", "n_labels": 1, "heads": ["cls", "rec"], "channels": 2, "features": 2})


def test_features_are_what_the_classes_are_told_from():
    network = small("dsm-net").eval()
    x = input_for(network, (8, 12, 20))
    features_NF = network.features(x)
    assert features_NF.shape == (2, 7)
    assert bool((features_NF >= 0).all())
    assert torch.equal(network.classify(features_NF), network(x)["cls"])
    assert torch.equal(network.train().features(x), features_NF), "dropout comes after them"
    with pytest.raises(ConfigurationError, match="come with 'cls'"):
        small("dsm-net seg").features(x)


def test_the_background_of_the_small_2d_network_is_a_constant():
    network = small("cnn2d-chen").eval()
    x = input_for(network, (10, 16))
    responses, scores = network.responses(x), network(x)
    assert responses.shape == (2, 2, 5, 8)
    assert bool((scores[:, 0] == 0.8).all())
    fine = torch.nn.functional.interpolate(responses, size=(10, 16), mode="bilinear")
    torch.testing.assert_close(scores[:, 1:], fine)
    alone = network.networks[1](x)
    assert torch.equal(responses[:, 1:], alone)


def test_networks_are_listed_by_head_and_dimensions():
    assert registry.networks() == list(registry.MODELS)
    assert registry.networks("cls") == ["dsrf3d-v2", "dsm-net"]
    assert registry.networks(dimensions=2) == ["unet2d", "cnn2d-chen"]
    assert "autoencoder3d" not in registry.networks("seg")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "ssn3d"}, "mean 'ssn3d-"),
        ({"name": "ssn3d-ed", "upsample": "nearest"}, "mean 'upsampling'"),
        ({"name": "ssn3d-ed", "upsampling": "cubic"}, "nearest, trilinear"),
        ({"name": "ssn3d-ed", "n_classes": 1}, "n_classes = 1"),
        ({"name": "ssn3d-fcn", "dropout": 1.0}, "dropout = 1.0"),
        ({"name": "dsm-net", "head": ["cls"]}, "mean 'heads'"),
        ({"name": "dsm-net", "heads": []}, "one or more of cls, seg, rec"),
        ({"name": "dsm-net", "heads": "cls"}, "one or more of cls, seg, rec"),
        ({"name": "dsm-net", "heads": ["cls", "mask"]}, "one or more of cls, seg, rec"),
        ({"name": "dsm-net", "n_labels": 1}, "two classes"),
        ({"name": "dsm-net", "n_classes": 1, "heads": ["cls"]}, "two classes"),
        ({"name": "dsrf3d-v2", "n_classes": 3}, "lacks box"),
        ({"name": "dsrf3d-v2", "n_classes": 3, "box": [8, 8, 7]}, "at least 8"),
        ({"name": "dsrf3d-v2", "n_classes": 3, "box": [8, 8]}, "three sides"),
        ({"name": "unet2d", "slices": 2}, "slices = 2 must be odd"),
        ({"name": "cnn2d-chen", "kernel": 4}, "kernel = 4 must be odd"),
        ({"name": "unet3d", "levels": 1}, "levels = 1"),
    ],
)
def test_messages_name_what_is_wrong(architecture, message):
    with pytest.raises(ConfigurationError, match=message):
        registry.build(architecture)


# -- dense use ---------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_halo_is_exactly_how_far_a_network_looks(name):
    """Positive weights: no path is cut by a ReLU. A rising input lets the far end of each pooling decide."""
    network = small(name).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.01)
    tile, halo = max(network.alignment, 8), network.halo
    start = -(-(halo + 1) // network.alignment) * network.alignment
    length = start + tile + start
    sides = (network.alignment,) * (network.dimensions - 1)
    drawn = torch.Generator().manual_seed(3)
    steps = torch.rand(1, getattr(network, "slices", 1), *sides, length, dtype=torch.float64, generator=drawn)
    rises = torch.cumsum(steps, dim=-1)
    lowest, highest = length, -1
    for volume in (rises, rises.flip(-1)):
        volume = volume.clone().requires_grad_()
        network(volume)[:, -1, ..., start : start + tile].sum().backward()
        seen = torch.nonzero(volume.grad.abs().sum(dim=tuple(range(volume.ndim - 1)))).flatten()
        lowest, highest = min(lowest, int(seen.min())), max(highest, int(seen.max()))
    assert max(start - lowest, highest - (start + tile - 1)) == halo
    assert HALOS.get(name, halo) == halo


@pytest.mark.parametrize("name", SMALL)
def test_tiles_with_their_halo_give_what_the_whole_gives(name):
    network = small(name).double().eval()
    alignment, halo = network.alignment, network.halo
    margin = -(-halo // alignment) * alignment
    sides = (*(alignment,) * (network.dimensions - 1), 2 * margin + 4 * alignment)
    x = input_for(network, sides, items=1, seed=5).double()
    start, stop = margin + alignment, margin + 3 * alignment  # in the middle: the halo ends within the whole
    with torch.no_grad():
        whole = network(x)[..., start:stop]
        tile = network(x[..., start - margin : stop + margin])[..., margin : margin + stop - start]
        nearer = network(x[..., start - margin + alignment : stop + margin])[..., margin - alignment :]
    torch.testing.assert_close(tile, whole, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(nearer[..., : stop - start], whole, rtol=1e-12, atol=1e-12) or halo < 1


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("name", [*SMALL, "dsrf3d-v2"])
def test_engines_agree_with_the_network(name, backend):
    network = small(name, seed=2).eval()
    x = input_for(network, (8, 12, 20) if network.alignment < 8 else (8, 16, 24), items=4)
    x[2] = x[0]
    with torch.no_grad():
        wanted = network(x).numpy()
    settings = {"input_shape": x.shape[1:], "batch": 3, "threads": 2, "device": "cpu"}
    with open_engine(network, backend=backend, **settings) as engine:
        found = engine.run(x.numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_array_equal(found[0], found[2], "the place of an item in its batch shows")


@pytest.mark.parametrize("name", ["ssn3d-ed", "dsm-net seg", "unet3d", "unet2d", "cnn2d-chen"])
def test_openvino_takes_odd_boxes_too(name):
    network = small(name, seed=2).eval()
    x = input_for(network, (20, 9, 15), items=2)
    with torch.no_grad():
        wanted = network(x).numpy()
    with open_engine(network, input_shape=x.shape[1:], batch=2, backend="openvino") as engine:
        found = engine.run(x.numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["ssn3d-ed", "ssn3d-ed trilinear", "dsm-net seg", "unet3d"])
def test_windows_may_differ_from_what_a_conversion_was_traced_with(name):
    network = small(name, seed=1).eval()
    x = input_for(network, (16, 8, 48), items=1)
    with torch.no_grad():
        wanted = LabelsOf(network)(x).numpy()
    with open_label_engine(network, window=x.shape[2:], device="cpu") as engine:
        found = engine.run(x.numpy())
    assert np.unique(wanted).size > 1
    assert (found == wanted).mean() > 0.999  # rounding may turn a tie


# -- imports ---------------------------------------


def test_networks_import_with_torch_alone():
    """numpy, scipy and torch are what a machine that only trains and labels has."""
    code = (
        "import sys\n"
        "for name in ('pydantic', 'zarr', 'pyarrow', 'dask', 'ray', 'sklearn', 'openvino', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "from cryoscale.models import registry\n"
        "print(len(registry.describe()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) == len(registry.MODELS)


def test_describe_lists_what_the_verb_shows():
    for row in registry.describe():
        network = registry.build(row["example"])
        assert row["parameters"] == count_parameters(network)
        assert (row["dimensions"], tuple(row["heads"])) == (network.dimensions, network.heads)
        assert (row["alignment"], row["halo"]) == (network.alignment, network.halo)
