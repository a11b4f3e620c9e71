import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError
from cryoscale.models import registry
from cryoscale.models.autoencoder3d import CODES, Autoencoder3D
from cryoscale.models.edss3d import ALIGNMENT, EDSS3D, halo_voxels
from cryoscale.models.layers import count_parameters, initialise

SMALL = st.sampled_from([4, 8, 12])


def test_autoencoder_has_the_parameters_of_the_paper():
    assert count_parameters(Autoencoder3D((32, 32, 32))) == 1_149_793


def test_edss3d_has_the_parameters_of_the_paper():
    assert count_parameters(EDSS3D(3)) == 111_715


@settings(max_examples=10, deadline=None)
@given(box=st.tuples(SMALL, SMALL, SMALL), channels=st.integers(1, 4), dimension=st.integers(1, 5))
def test_autoencoder_keeps_the_box_whatever_its_sides(box, channels, dimension):
    network = Autoencoder3D(box, channels=channels, dimension=dimension)
    patches_NCZYX = torch.randn(2, 1, *box, generator=torch.Generator().manual_seed(0))
    reconstruction, codes_NF = network(patches_NCZYX)
    assert reconstruction.shape == patches_NCZYX.shape
    assert codes_NF.shape == (2, dimension)
    assert torch.equal(network.encode(patches_NCZYX), codes_NF)
    assert torch.equal(network.decode(codes_NF), reconstruction)


@pytest.mark.parametrize("box", [(16, 16, 18), (0, 16, 16), (16, 16)])
def test_autoencoder_refuses_a_box_that_does_not_fit(box):
    with pytest.raises(ConfigurationError, match="divisible by 4"):
        Autoencoder3D(box)


def test_the_message_about_a_box_names_the_nearest_that_fits():
    with pytest.raises(ConfigurationError, match="nearest box is 16 x 16 x 20"):
        Autoencoder3D((16, 17, 19))


def test_codes_differ_only_by_their_activation():
    x = torch.randn(6, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    linear_NF = Autoencoder3D((8, 8, 8), channels=4, code="linear").encode(x)
    expected = {
        "relu": linear_NF.clamp(min=0),
        "linear": linear_NF,
        "leaky_relu": torch.where(linear_NF > 0, linear_NF, 0.1 * linear_NF),
        "softplus": torch.log1p(torch.exp(linear_NF)),
    }
    assert set(expected) == set(CODES)
    for code, wanted_NF in expected.items():
        codes_NF = Autoencoder3D((8, 8, 8), channels=4, code=code).encode(x)
        torch.testing.assert_close(codes_NF, wanted_NF)


@pytest.mark.parametrize("keywords", [{"code": "tanh"}, {"channels": 0}, {"dimension": 0}])
def test_autoencoder_refuses_impossible_values(keywords):
    with pytest.raises(ConfigurationError, match="autoencoder3d"):
        Autoencoder3D((8, 8, 8), **keywords)


@pytest.mark.parametrize("sides", [(4, 8, 12), (16, 4, 4)])
def test_edss3d_gives_logits_on_the_grid_of_its_input(sides):
    assert EDSS3D(5, channels=3)(torch.zeros(2, 1, *sides)).shape == (2, 5, *sides)


def test_edss3d_refuses_sides_that_do_not_divide_by_four():
    with pytest.raises(ConfigurationError, match="divisible by 4"):
        EDSS3D(3, channels=2)(torch.zeros(1, 1, 8, 8, 10))


def test_edss3d_needs_a_class_beside_the_background():
    with pytest.raises(ConfigurationError, match="n_classes = 1"):
        EDSS3D(1)


def test_halo_is_how_far_edss3d_looks():
    network = EDSS3D(2, channels=3).double()
    with torch.no_grad():  # positive weights: no path is cut by a ReLU
        for parameter in network.parameters():
            parameter.abs_().add_(0.01)
    x = torch.rand(1, 1, 4, 4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cumsum(x, dim=-1)  # growing along x: the later voxel of each pooling window decides
    rises, falls = x, x.flip(-1)
    lowest, highest = 64, -1
    for volume in (rises, falls):
        volume = volume.clone().requires_grad_()
        network(volume)[0, 1, :, :, 28:36].sum().backward()
        seen = torch.nonzero(volume.grad.abs().sum(dim=(0, 1, 2, 3))).flatten()
        lowest, highest = min(lowest, int(seen.min())), max(highest, int(seen.max()))
    assert 28 % ALIGNMENT == 0
    assert (28 - lowest, highest - 35) == (halo_voxels(), halo_voxels())


def test_first_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    one, same, other = Autoencoder3D((8, 8, 8)), Autoencoder3D((8, 8, 8)), Autoencoder3D((8, 8, 8), seed=1)
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


def test_initialise_is_glorot_uniform_with_zero_bias():
    network = initialise(Autoencoder3D((16, 16, 16)), 7)
    for layer in (network.encoder_conv2, network.decoder_conv3, network.encoder_dense):
        reference = torch.empty_like(layer.weight)
        torch.nn.init.xavier_uniform_(reference, generator=torch.Generator().manual_seed(0))
        weight = layer.weight.detach().numpy()
        assert np.abs(weight).max() <= reference.abs().max() * 1.05
        assert weight.std() == pytest.approx(float(reference.std()), rel=0.1)
        assert abs(weight.mean()) < 0.1 * weight.std()
        assert not layer.bias.any()


@pytest.mark.parametrize(
    "network",
    [Autoencoder3D((8, 12, 4), channels=2, dimension=3, code="linear"), EDSS3D(4, channels=2)],
    ids=["autoencoder3d", "edss3d"],
)
def test_an_architecture_builds_the_same_network_again(network):
    again = registry.build(network.architecture)
    assert again.architecture == network.architecture
    again.load_state_dict(network.state_dict())
    assert set(again.state_dict()) == set(network.state_dict())


def test_build_takes_a_seed():
    weights = [registry.build(EDSS3D(2, channels=2).architecture, seed=s).conv1.weight for s in (0, 1)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "autoencoder"}, "mean 'autoencoder3d'"),
        ({"name": "zzz"}, "Known: autoencoder3d"),
        ({"box": [8, 8, 8]}, "no 'name'"),
        ({"name": "edss3d"}, "lacks n_classes"),
        ({"name": "edss3d", "n_classes": 2, "chanels": 2}, "mean 'channels'"),
    ],
)
def test_build_names_what_is_wrong(architecture, message):
    with pytest.raises(ConfigurationError, match=message):
        registry.build(architecture)


def test_describe_lists_every_model_with_its_source():
    rows = registry.describe()
    assert [row["name"] for row in rows] == list(registry.MODELS)
    for row in rows:
        assert row["parameters"] == count_parameters(registry.build(row["example"]))
        assert row["source"]
        assert row["purpose"]
    assert {row["name"]: row["parameters"] for row in rows}["edss3d"] == 111_715
