import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from cryoscale.errors import ConfigurationError, StateError
from cryoscale.inference.engine import open_engine
from cryoscale.inference.wrappers import DecoderOnly, EncoderOnly, ReconstructionOf, SoftmaxOf
from cryoscale.models.autoencoder3d import Autoencoder3D
from cryoscale.models.edss3d import EDSS3D

BOX = (8, 12, 8)
CASES = {
    "encoder": (EncoderOnly(Autoencoder3D(BOX, channels=8, code="linear")), (1, *BOX)),
    "decoder": (DecoderOnly(Autoencoder3D(BOX, channels=8)), (32,)),
    "reconstruction": (ReconstructionOf(Autoencoder3D(BOX, channels=8)), (1, *BOX)),
    "segmenter": (SoftmaxOf(EDSS3D(3, channels=8)), (1, *BOX)),
}
BACKENDS = ["torch", "openvino"]


def items_of(shape, n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_an_engine_agrees_with_the_network(case, backend):
    module, shape = CASES[case]
    items = items_of(shape, 11)
    with torch.inference_mode():
        expected = module(torch.from_numpy(items)).numpy()
    with open_engine(module, input_shape=shape, batch=4, device="cpu", backend=backend) as engine:
        result = engine.run(items)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_result_depends_neither_on_the_number_of_items_nor_on_the_place(case, backend, threads):
    module, shape = CASES[case]
    items = items_of(shape, 23)
    order = np.random.default_rng(1).permutation(len(items))
    with open_engine(
        module, input_shape=shape, batch=7, device="cpu", backend=backend, threads=threads
    ) as engine:
        whole = engine.run(items)
        np.testing.assert_array_equal(engine.run(items[order]), whole[order])
        np.testing.assert_array_equal(engine.run(items[5:6]), whole[5:6])
        np.testing.assert_array_equal(engine.run(items[3:]), whole[3:])


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("channels", [8, 32])  # with two, torch itself differs in the last bit
def test_copies_of_one_item_give_the_same_bits_at_every_place(backend, channels, threads):
    module = EncoderOnly(Autoencoder3D((12, 12, 12), dimension=5, channels=channels, seed=3)).eval()
    items = np.repeat(items_of((1, 12, 12, 12), 1), 7, axis=0)
    with open_engine(
        module, input_shape=(1, 12, 12, 12), batch=7, device="cpu", backend=backend, threads=threads
    ) as engine:
        found = engine.run(items)
    np.testing.assert_array_equal(found, np.repeat(found[:1], 7, axis=0))


def test_opened_twice_gives_the_same_bits(backend):
    module, shape = CASES["encoder"]
    items = items_of(shape, 9)
    results = []
    for _ in range(2):
        with open_engine(module, input_shape=shape, batch=4, device="cpu", backend=backend) as engine:
            results.append(engine.run(items))
    np.testing.assert_array_equal(*results)


def test_bfloat16_is_near_but_not_float32(backend):
    module, shape = CASES["encoder"]
    items = items_of(shape, 8)
    results = {}
    for precision in ("float32", "bfloat16"):
        with open_engine(
            module, input_shape=shape, batch=8, device="cpu", backend=backend, precision=precision
        ) as engine:
            results[precision] = engine.run(items)
            assert precision in engine.name
    error = np.abs(results["bfloat16"] - results["float32"]).max() / np.abs(results["float32"]).max()
    assert error < 0.03
    if backend == "torch":  # OpenVINO stays at float32 on CPUs without bfloat16
        assert error > 0


def test_no_items_no_results(backend):
    module, shape = CASES["encoder"]
    with open_engine(module, input_shape=shape, batch=4, device="cpu", backend=backend) as engine:
        assert engine.run(items_of(shape, 0)).shape == (0, 32)


def test_read_only_and_double_precision_items_are_fine(backend):
    module, shape = CASES["encoder"]
    items = items_of(shape, 3)
    readonly = items.astype(np.float64)
    readonly.flags.writeable = False
    with open_engine(module, input_shape=shape, batch=2, device="cpu", backend=backend) as engine:
        np.testing.assert_array_equal(engine.run(readonly), engine.run(items))


def test_an_open_engine_does_not_follow_later_training(backend):
    network = Autoencoder3D(BOX, channels=4)
    items = items_of((1, *BOX), 3)
    with open_engine(
        EncoderOnly(network), input_shape=(1, *BOX), batch=3, device="cpu", backend=backend
    ) as engine:
        before = engine.run(items)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        np.testing.assert_array_equal(engine.run(items), before)
    assert network.encoder_conv1.weight.requires_grad
    assert network.training


def test_the_thread_count_of_torch_is_put_back():
    shape = CASES["encoder"][1]
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x

    before = torch.get_num_threads()
    with open_engine(
        Spy(), input_shape=shape, batch=2, device="cpu", backend="torch", threads=before + 1
    ) as engine:
        engine.run(items_of(shape, 1))
    assert seen[-1] == before + 1
    assert torch.get_num_threads() == before


def test_a_closed_engine_says_so(backend):
    module, shape = CASES["encoder"]
    engine = open_engine(module, input_shape=shape, batch=2, device="cpu", backend=backend)
    engine.close()
    engine.close()
    with pytest.raises(StateError, match="closed"):
        engine.run(items_of(shape, 1))


@pytest.mark.parametrize("shape", [(3, 1, 8, 8, 8), (1, *BOX), (2, 2, *BOX)])
def test_items_of_another_shape_are_refused(shape):
    module, expected = CASES["encoder"]
    with (
        open_engine(module, input_shape=expected, batch=2, device="cpu", backend="torch") as engine,
        pytest.raises(ConfigurationError, match="takes items of shape"),
    ):
        engine.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"batch": 0}, "batch = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"precision": "float16"}, "precision = 'float16'"),
        ({"backend": "tensorrt"}, "backend = 'tensorrt'"),
        ({"device": "tpu"}, "device = 'tpu'"),
    ],
)
def test_impossible_wishes_are_named(keywords, message):
    module, shape = CASES["encoder"]
    with pytest.raises(ConfigurationError, match=message):
        open_engine(module, **{"input_shape": shape, "batch": 2, **keywords})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_asking_for_cuda_without_one_is_refused():
    module, shape = CASES["encoder"]
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        open_engine(module, input_shape=shape, batch=2, device="cuda")


def test_two_outputs_ask_for_a_wrapper():
    with pytest.raises(ConfigurationError, match="EncoderOnly"):
        open_engine(Autoencoder3D(BOX, channels=2), input_shape=(1, *BOX), batch=2, device="cpu")


def test_without_openvino_auto_is_torch(monkeypatch):
    module, shape = CASES["encoder"]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "openvino" else find_spec(name, *a)
    )
    with open_engine(module, input_shape=shape, batch=2, device="cpu") as engine:
        assert engine.name.startswith("torch")
    with pytest.raises(ConfigurationError, match="not installed"):
        open_engine(module, input_shape=shape, batch=2, device="cpu", backend="openvino")


def test_openvino_is_imported_when_needed_and_without_usage_reports():
    pytest.importorskip("openvino")
    code = (
        "import sys\n"
        "import cryoscale.inference.engine, cryoscale.inference.torch_any\n"
        "assert 'openvino' not in sys.modules\n"
        "from cryoscale.inference.openvino_cpu import import_openvino\n"
        "import_openvino()\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert 'stub' in telemetry_utils.tm.__name__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu():
    for module, shape in CASES.values():
        items = items_of(shape, 9)
        results = []
        for device in ("cpu", "cuda"):
            with open_engine(module, input_shape=shape, batch=4, device=device, backend="torch") as engine:
                results.append(engine.run(items))
        np.testing.assert_allclose(*results, rtol=0, atol=1e-4)
