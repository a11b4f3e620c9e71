"""The faces of a network: what they add, scale and leave out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoscale.inference.engine import open_engine
from cryoscale.inference.wrappers import DecoderOnly, EncoderOnly, EncoderWithInvariants
from cryoscale.models.autoencoder3d import Autoencoder3D
from cryoscale.models.invariants import ShellInvariants

BOX = (12, 8, 12)


def autoencoder() -> Autoencoder3D:
    torch.manual_seed(0)
    return Autoencoder3D(BOX, channels=4, code="linear").eval()


def patches(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, *BOX, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_the_code_comes_first_and_the_invariants_follow_with_their_gain() -> None:
    network, invariants = autoencoder(), ShellInvariants(BOX)
    items = patches()
    found = EncoderWithInvariants(network, invariants, gain=2.5)(items)
    code = EncoderOnly(network)(items)
    assert found.shape == (5, code.shape[1] + invariants.count)
    assert torch.equal(found[:, : code.shape[1]], code)
    assert torch.equal(found[:, code.shape[1] :], 2.5 * invariants(items))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_torch_and_openvino_agree_on_invariants(scale: float) -> None:
    pytest.importorskip("openvino")
    module = EncoderWithInvariants(autoencoder(), ShellInvariants(BOX), gain=0.37)
    items = scale * patches(7).numpy()
    found = {}
    for backend in ("torch", "openvino"):
        with open_engine(module, input_shape=(1, *BOX), batch=4, device="cpu", backend=backend) as engine:
            found[backend] = engine.run(items)
    with torch.inference_mode():
        expected = module(torch.from_numpy(items)).numpy()
    for result in found.values():
        added = module.invariants.count
        for part in (slice(None, -added), slice(-added, None)):
            largest = np.abs(expected[:, part]).max()
            np.testing.assert_allclose(result[:, part], expected[:, part], rtol=1e-4, atol=1e-5 * largest)


@torch.inference_mode()
def test_the_decoder_leaves_invariants_out() -> None:
    network = autoencoder()
    codes = EncoderOnly(network)(patches())
    more = torch.cat([codes, 100 * torch.ones(5, 7)], dim=1)
    expected = network.decode(codes)
    assert torch.equal(DecoderOnly(network)(codes), expected)
    assert torch.equal(DecoderOnly(network, codes.shape[1])(more), expected)
    with open_engine(
        DecoderOnly(network, codes.shape[1]), input_shape=more.shape[1:], batch=5, device="cpu"
    ) as engine:
        np.testing.assert_allclose(engine.run(more.numpy()), expected.numpy(), atol=1e-4)
