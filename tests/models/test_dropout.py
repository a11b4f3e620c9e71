"""Dropout whose masks are decided by a seed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from cryoscale.errors import ConfigurationError
from cryoscale.models import registry
from cryoscale.models.layers import Dropout, seed_dropout

ONES = torch.ones(8, 4, 5, 5)


def test_a_seed_decides_the_masks_and_the_global_generator_has_no_part_in_them():
    network = registry.build({"name": "ssn3d-fcn", "channels": 2})
    x = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    found = []
    for seed in (3, 4, 3):
        seed_dropout(network, seed)
        found.append([network(x), network(x)])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][1], found[2][1])
    assert not torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[0][1]), "parts of a batch need masks of their own"


def test_layers_of_one_network_draw_different_masks_at_every_step():
    network = nn.Sequential(Dropout(0.5), nn.Sequential(Dropout(0.5)), Dropout(0.5))
    masks = []
    for step in range(4):
        seed_dropout(network, step)
        masks += [layer(ONES) for layer in network.modules() if isinstance(layer, Dropout)]
    assert len(masks) == 12
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_without_a_seed_the_global_generator_decides():
    layer = Dropout(0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = layer(ONES)
        torch.manual_seed(1)
        assert torch.equal(one, layer(ONES))


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    assert Dropout(0.5).eval()(ONES) is ONES
    assert Dropout(0.0)(ONES) is ONES


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_the_mean_stays_and_the_share_is_the_rate(rate):
    layer = Dropout(rate)
    seed_dropout(layer, 0)
    y = layer(torch.ones(200, 500))
    assert float((y == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    assert float(y.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(y.unique(), torch.tensor([0, 1 / (1 - rate)]))


@pytest.mark.parametrize("rate", [0.3, 0.45])
def test_the_mean_stays_in_bfloat16(rate):
    """The factor itself, rounded to bfloat16, is wrong by 1e-3 for each number."""
    layer = Dropout(rate)
    seed_dropout(layer, 0)
    x = (torch.rand(400, 500, generator=torch.Generator().manual_seed(1)) + 1).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    kept = y != 0
    factor = float(y[kept].double().mean() / x[kept].double().mean())
    assert factor == pytest.approx(1 / (1 - rate), rel=1e-4)
    rounded = float(torch.tensor(1 / (1 - rate)).bfloat16())
    assert abs(rounded * (1 - rate) - 1) > 3e-4


def test_whole_channels_are_dropped_together():
    layer = Dropout(0.5, whole_channels=True)
    seed_dropout(layer, 0)
    dropped = (layer(ONES) == 0).flatten(2)
    assert torch.equal(dropped.all(2), dropped.any(2))
    assert 0 < int(dropped.all(2).sum()) < 32


def test_a_seed_has_the_same_mask_under_autocast_and_gradients_pass_where_numbers_do():
    layer, x = Dropout(0.5), ONES.clone().requires_grad_()
    seed_dropout(layer, 5)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    seed_dropout(layer, 5)
    assert torch.equal(layer(ONES.bfloat16()).float(), y.detach())


def test_networks_without_dropout_are_left_as_they_are():
    seed_dropout(registry.build({"name": "edss3d", "n_classes": 2, "channels": 2}), 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ConfigurationError, match=f"dropout = {rate}"):
        Dropout(rate)


def test_networks_with_seeded_dropout_can_be_copied_and_sent():
    network = nn.Sequential(Dropout(0.5))
    seed_dropout(network, 3)
    wanted = network(ONES)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(ONES), wanted)
