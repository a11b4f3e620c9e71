"""Who imports whom: the contracts of `pyproject.toml`, and a start that imports little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch", "ray", "dask", "distributed", "dask_ml", "sklearn", "scipy", "zarr", "pyarrow", "pandas",
    "matplotlib", "openvino", "numpy", "pydantic",
}  # fmt: skip


def modules_after(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n' + ' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def test_rooms_import_what_the_table_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contracts of import-linter; `lint-imports` prints the same with more words."""
    from importlinter.cli import lint_imports

    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout: the contracts stand in pyproject.toml")
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("from cryoscale.cli import run_command; assert run_command(['--help']) == 0")
    assert "cryoscale" in loaded
    assert not loaded & HEAVY


def test_a_verb_in_itself_imports_nothing_heavy() -> None:
    """Modules of verbs hold words; what does the work is imported when the verb runs."""
    statement = (
        "import importlib\nfrom cryoscale.cli import VERBS\n"
        "for name in set(VERBS.values()): importlib.import_module(f'cryoscale.cli.{name}')"
    )
    assert not modules_after(statement) & HEAVY


def test_the_package_ships_its_types() -> None:
    import cryoscale

    assert (Path(cryoscale.__file__).parent / "py.typed").exists()
