"""The encoder's and the decoder's own graphs give what the networks give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoscale.inference.decoder import ManyVoxelDecoder, fits_decoder
from cryoscale.inference.encoder_gpu import PhaseEncoder
from cryoscale.inference.engine import Engine, open_engine
from cryoscale.inference.wrappers import DecoderOnly, EncoderOnly, EncoderWithInvariants
from cryoscale.models.autoencoder3d import Autoencoder3D, Code
from cryoscale.models.invariants import ShellInvariants


def network(box: tuple[int, int, int], code: Code = "linear", channels: int = 8) -> Autoencoder3D:
    module = Autoencoder3D(box, channels=channels, dimension=5, code=code, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (module.encoder_conv1, module.encoder_conv2, module.decoder_conv3):
            assert layer.bias is not None
            layer.bias.copy_(0.3 * torch.randn(layer.bias.shape, generator=generator))
    return module.eval()


def patches_of(box: tuple[int, int, int], count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 1, *box)).astype(np.float32)


def opened(module: torch.nn.Module, shape: tuple[int, ...], **keywords: object) -> Engine:
    pytest.importorskip("openvino")
    settings = {"batch": 16, "device": "cpu", "backend": "openvino", **keywords}
    return open_engine(module, input_shape=shape, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("box", [(8, 8, 8), (16, 8, 12), (12, 16, 8), (20, 4, 4), (4, 4, 4)])
@pytest.mark.parametrize("code", ["linear", "relu", "leaky_relu", "softplus"])
def test_codes_are_those_of_the_network(box: tuple[int, int, int], code: Code) -> None:
    module, patches = EncoderOnly(network(box, code)), patches_of(box, 19)
    with torch.inference_mode():
        expected = module(torch.from_numpy(patches)).numpy()
    with opened(module, (1, *box)) as engine:
        assert type(engine).__name__ == "EncoderEngine"
        np.testing.assert_allclose(
            engine.run(patches), expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max())
        )


@pytest.mark.parametrize("pairs", [False, True])
def test_both_first_layers_give_the_same(monkeypatch: pytest.MonkeyPatch, pairs: bool) -> None:
    from cryoscale.inference import encoder_cpu

    real, box = encoder_cpu.feature_graph, (8, 12, 16)
    monkeypatch.setattr(encoder_cpu, "feature_graph", lambda net, **_: real(net, pairs=pairs))
    module, patches = EncoderOnly(network(box)), patches_of(box, 3)
    with torch.inference_mode():
        expected = module(torch.from_numpy(patches)).numpy()
    with opened(module, (1, *box)) as engine:
        np.testing.assert_allclose(engine.run(patches), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_code_and_invariants_whatever_the_threads(precision: str) -> None:
    box = (16, 16, 16)
    module = EncoderWithInvariants(network(box), ShellInvariants(box, 3), 0.7)
    patches = patches_of(box, 45)
    with torch.inference_mode():
        expected = module(torch.from_numpy(patches)).numpy()
    results = []
    for threads in (1, 3):
        with opened(module, (1, *box), threads=threads, precision=precision) as engine:
            results.append(engine.run(patches))
            np.testing.assert_array_equal(engine.run(patches[7:8]), results[-1][7:8])
    np.testing.assert_array_equal(*results)
    error = np.sqrt(((results[0] - expected) ** 2).mean() / (expected**2).mean())
    assert error < (1e-6 if precision == "float32" else 0.02)


def test_where_there_is_no_bfloat16_the_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryoscale.inference import encoder_cpu, openvino_cpu

    for module in (encoder_cpu, openvino_cpu):
        monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    with opened(EncoderOnly(network((8, 8, 8))), (1, 8, 8, 8), precision="bfloat16") as engine:
        assert "bfloat16 (computed in float32 by this CPU)" in engine.name


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    with opened(EncoderOnly(network((8, 8, 8))), (1, 8, 8, 8), threads=2) as engine:

        class Broken:
            dtype, ndim, shape = np.dtype(np.float32), 5, (9, 1, 8, 8, 8)

            def __len__(self) -> int:
                return 9

            def __getitem__(self, _: object) -> np.ndarray:
                raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            engine.run(Broken())  # type: ignore[arg-type]
        assert engine.run(patches_of((8, 8, 8), 9)).shape == (9, 5)  # it works on


@pytest.mark.parametrize("box", [(8, 8, 8), (16, 8, 12)])
def test_the_encoder_by_phases_is_the_encoder(box: tuple[int, int, int]) -> None:
    patches = torch.from_numpy(patches_of(box, 5))
    for module in (
        EncoderOnly(network(box)),
        EncoderWithInvariants(network(box), ShellInvariants(box, 2), 1.5),
    ):
        with torch.inference_mode():
            torch.testing.assert_close(PhaseEncoder(module)(patches), module(patches), rtol=0, atol=1e-5)


@pytest.mark.parametrize("box", [(8, 8, 8), (16, 8, 12), (4, 20, 4)])
def test_the_decoder_by_many_voxels_is_the_decoder(box: tuple[int, int, int]) -> None:
    module = DecoderOnly(network(box), dimension=5)
    assert fits_decoder(module)
    codes = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = module(codes)
        torch.testing.assert_close(ManyVoxelDecoder(module)(codes), expected, rtol=0, atol=1e-5)
    with opened(module, (9,), batch=4) as engine:
        np.testing.assert_allclose(engine.run(codes.numpy()), expected.numpy(), rtol=0, atol=1e-5)
