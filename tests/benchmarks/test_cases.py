"""Every case runs once, small and untimed, so that none rots."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.case import Case, all_cases
from benchmarks.harness.measure import measure

CASES = list(all_cases())


def test_names_are_unique_and_say_where_a_case_stands() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.question.endswith("?") for case in CASES)


@pytest.mark.filterwarnings("ignore")  # peers warn as they like
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_runs(case: Case, tmp_path: Path) -> None:
    record = json.loads(json.dumps(measure(case, "tiny", tmp_path)))
    timed = [row for row in record["rows"] if row["seconds"]]
    assert timed, "no contestant ran"
    assert all(row["work"] > 0 and math.isfinite(row["seconds"][0]) for row in timed)
    asked = {
        name for t in case.targets for name in (t.ours, *([t.of] if isinstance(t.of, str) else t.of or ()))
    }
    known = {row["name"] for row in record["rows"]}
    if not record["missing"]:
        assert asked <= known, f"targets name contestants that are not there: {asked - known}"


BARE = """
import sys

ABSENT = {"monai", "zarr", "pyarrow", "fsspec", "dask", "dask_ml", "distributed", "ray", "pydantic", "click",
          "sklearn", "pandas", "matplotlib", "mrcfile", "openvino", "numcodecs", "safetensors"}
OURS = {"errors", "geometry", "ops", "models", "inference", "learn"}


class Without:
    # A machine with torch, numpy and scipy (and what these import) and nothing else of ours.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] in ABSENT or (parts[0] == "cryoscale" and len(parts) > 1 and parts[1] not in OURS):
            return None
        return self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from pathlib import Path
from benchmarks.harness.case import all_cases
from benchmarks.harness.measure import measure

names = []
for number, case in enumerate(all_cases()):
    if case.device == "cuda":
        place = Path(sys.argv[1]) / str(number)
        place.mkdir()
        measure(case, "tiny", place)
        names.append(case.name)
print(*names)
"""


def test_cases_for_a_gpu_need_torch_numpy_and_scipy_alone(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) >= 4
