import subprocess
import sys

CODE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "dask", "dask_ml", "distributed", "sklearn", "zarr", "pyarrow", "pandas", "pydantic", "openvino",
            "safetensors", "ray", "fsspec",
        }:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
import cryoscale.models.registry, cryoscale.inference.wrappers, cryoscale.inference.torch_any
import cryoscale.learn.training, cryoscale.learn.losses, cryoscale.learn.clustering
import cryoscale.learn.recipes, cryoscale.learn.chen, cryoscale.learn.multitask, cryoscale.learn.distributed
cryoscale.models.registry.describe()
"""


def test_networks_and_training_need_numpy_scipy_and_torch_alone():
    subprocess.run([sys.executable, "-W", "error", "-c", CODE], check=True)


def test_the_registry_can_be_imported_without_waiting_for_torch():
    code = "import sys, cryoscale.models.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
