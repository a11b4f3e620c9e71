"""`cryoscale support`: lines of the log, and the bundle; exit codes and words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from cryoscale.cli import run_command
from cryoscale.data.run import Run
from cryoscale.runtime.log_sinks import segment_name

Out = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
LINES = [
    {"event": "DriverStarted", "level": "info", "host": "node7"},
    {"event": "BlocksEnded", "level": "info", "stage": "pick", "tomogram": "t1", "done": 5},
    {"event": "TaskEnded", "level": "warning", "stage": "pick", "tomogram": "t2", "block": 3,
     "message": "bad block", "traceback": "Traceback\n  File x\nValueError: bad block",
     "log": ["looked at it"]},
    {"event": "UnitFailed", "level": "error", "stage": "pick", "tomogram": "t2", "reason": "gave up"},
]  # fmt: skip


@pytest.fixture
def logged(tmp_path: Path) -> str:
    """A run with the log of one drive."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "run.toml").write_text('[[inputs]]\nname = "t1"\npath = "/data/t1.mrc"\n')
    head = {"time": "2026-01-01T00:00:00.000Z", "run": "20260101-000000-abcdef"}
    text = "".join(json.dumps({**head, **line}) + "\n" for line in LINES)
    (tmp_path / "run" / "logs" / segment_name(head["run"], 0)).write_text(text)
    return str(tmp_path / "run")


def test_lines_for_people(logged: str, capsys: Out) -> None:
    assert run_command(["support", logged]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2026-01-01T00:00:00.000Z info    DriverStarted (host node7)"
    assert said[1] == "2026-01-01T00:00:00.000Z info    BlocksEnded pick t1 (done 5)"
    assert said[2] == "2026-01-01T00:00:00.000Z warning TaskEnded pick t2 block 3: bad block"
    assert said[3:7] == ["    looked at it", "    Traceback", "      File x", "    ValueError: bad block"]
    assert said[7].endswith("error   UnitFailed pick t2: gave up")


def test_lines_that_are_asked_for(logged: str, capsys: Out) -> None:
    words = ["--stage", "pick", "--tomogram", "t2", "--level", "error", "--json"]
    assert run_command(["support", logged, *words]) == 0
    assert [json.loads(line)["reason"] for line in capsys.readouterr().out.splitlines()] == ["gave up"]
    assert run_command(["support", logged, "--tomogram", "t9"]) == 0
    assert "nothing of that" in capsys.readouterr().err


def test_a_bundle(logged: str, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "token-of-the-environment")
    Run.at(logged).write_failures(
        [{"stage": "pick", "tomogram": "t2", "block": 3, "reason": "saw token-of-the-environment"}]
    )
    target = tmp_path / "b.zip"
    assert run_command(["support", logged, "--to", str(target)]) == 0
    said = capsys.readouterr().out
    with zipfile.ZipFile(target) as archive:
        for name in archive.namelist():
            assert name == "README.txt" or f"  {name} (" in said
            assert b"token-of-the-environment" not in archive.read(name)
        assert json.loads(archive.read("doctor.json"))["engines"]["serial"], "the real doctor was asked"
    assert "never in it: the contents of tomograms" in said
    assert run_command(["support", logged, "--to", str(target)]) == 2
    assert "exists" in capsys.readouterr().err


def test_misuse(logged: str, tmp_path: Path, capsys: Out) -> None:
    assert run_command(["support", logged, "--to", str(tmp_path / "b.zip"), "--follow"]) == 2
    assert run_command(["support", str(tmp_path / "nothing")]) == 2
    assert run_command(["support", str(tmp_path / "nothing"), "--to", str(tmp_path / "b.zip")]) == 2
    assert run_command(["support", "s3://AKIAX:hunter2@bucket/run"]) == 2
    assert "hunter2" not in capsys.readouterr().err
    assert not (tmp_path / "b.zip").exists()


def test_metrics_that_cannot_be_are_misuse(logged: str, capsys: Out) -> None:
    assert run_command(["run", logged, "--quiet", "--executor", "serial", "--metrics", "0.0.0.0:0"]) == 2
    assert "certificates" in capsys.readouterr().err


# -- docs/operations.md -------------------------------------------------------------------------------------


def blocks() -> list[str]:
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.findall(r"^```([a-z]*)\n(.*?)^```$", text, flags=re.M | re.S)
    return [block for language, block in found if not language]


def test_the_page_lists_every_metric_and_no_other() -> None:
    from cryoscale.runtime.metrics import RunMetrics

    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(cryoscale_\w+)` \| (\w+) \|([\w, ]*)\|", text, flags=re.M)
    listed = {
        name: (kind, sorted(filter(None, labels.replace(" ", "").split(",")))) for name, kind, labels in rows
    }
    told = {}
    metrics = RunMetrics("x")
    for attribute in vars(metrics).values():
        if hasattr(attribute, "_labelnames"):
            name = attribute._name + ("_total" if attribute._type == "counter" else "")
            told[name] = (attribute._type, sorted(attribute._labelnames))
    told["cryoscale_stage_left_seconds"] = ("gauge", ["stage"])
    told["cryoscale_build_info"] = ("gauge", ["python", "run_id", "version"])
    assert listed == told


def test_the_questions_are_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    asked = [line for line in blocks()[1].splitlines() if line and not line.startswith("#")]
    assert len(asked) == 6
    rules = "".join(f"  - record: x:{n}\n    expr: {line}\n" for n, line in enumerate(asked))
    (tmp_path / "rules.yml").write_text(f"groups:\n- name: x\n  rules:\n{rules}")
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
