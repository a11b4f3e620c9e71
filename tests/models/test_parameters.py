"""The numbers of parameters that papers and reference implementations have, part by part."""

import pytest

from cryoscale.models import registry
from cryoscale.models.layers import count_parameters


def count(name, **keywords):
    return count_parameters(registry.build({"name": name, **keywords}))


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        ({"name": "ssn3d-ed"}, 895_746),
        ({"name": "ssn3d-ed", "upsampling": "trilinear"}, 895_746),
        ({"name": "ssn3d-fcn"}, 2_042_342),
        ({"name": "dsm-net"}, 2_174_905),
        ({"name": "unet2d"}, 34_524_294),
        ({"name": "cnn2d-chen"}, 378_081),
        ({"name": "unet3d"}, 5_882_402),
    ],
)
def test_networks_have_the_parameters_that_are_known(architecture, wanted):
    assert count_parameters(registry.build(architecture)) == wanted


def test_dsm_net_part_by_part():
    """Each convolution has inputs * outputs * 27 weights and a bias for each output."""
    parts = {
        key: count_parameters(part) for key, part in registry.build({"name": "dsm-net"}).named_children()
    }
    first, block32, down64 = 27 * 32 + 32, 2 * (27 * 32 * 32 + 32), 27 * 32 * 64 + 64
    block64, down128, block128 = 2 * (27 * 64**2 + 64), 27 * 64 * 128 + 128, 2 * (27 * 128**2 + 128)
    up64, up32, last = 27 * 128 * 64 + 64, 27 * 64 * 32 + 32, 27 * 32 * 32 + 32
    assert parts == {
        "backbone": first + block32 + down64 + block64 + down128 + block128,
        "dense": 128 * 1024 + 1024,
        "drop": 0,
        "classify": 1024 * 22 + 22,
        "trunk": up64 + block64 + up32 + block32 + last,
        "segment": 32 * 2 + 2,
        "recover": 32 + 1,
    }
    assert parts["backbone"] == 1_439_232
    assert sum(parts.values()) == 2_174_905


@pytest.mark.parametrize(
    ("heads", "left_out"),
    [
        (["cls"], 580_928 + 66 + 33),
        (["seg"], 154_646 + 33),
        (["cls", "rec"], 66),
        (["cls", "seg"], 33),
        (["rec", "seg", "cls"], 0),
    ],
)
def test_ablations_of_dsm_net_have_the_parts_they_need_alone(heads, left_out):
    assert count("dsm-net", heads=heads) == 2_174_905 - left_out


def test_each_feature_of_the_small_2d_network_has_its_own():
    assert [count("cnn2d-chen", n_classes=n) for n in (2, 3, 6)] == [378_081, 2 * 378_081, 5 * 378_081]


def test_dsrf3d_counts_its_dense_layers_by_the_box():
    encoder = 858_400
    after = {40: 5, 20: 3, 36: 5}  # a side, and what three poolings that round up leave of it
    for side, small in after.items():
        dense = 128 * small**3 * 1024 + 1024 + 1024**2 + 1024 + 1024 * 22 + 22
        assert count("dsrf3d-v2", n_classes=22, box=[side] * 3) == encoder + dense


def test_normalisation_adds_a_weight_and_a_bias_for_each_channel():
    convolved = 2 * (32 + 64 + 128) + 128 + 64 + 32
    assert count("ssn3d-ed", batch_norm=True) == 895_746 + 2 * convolved
