"""Doctor, temporary folders, agreement of versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from cryoscale.runtime import devices
from cryoscale.runtime.reaper import Reaper, holders
from cryoscale.runtime.scratch import claim_folder, drop_folder


def test_doctor_describes_this_machine():
    said = json.loads(json.dumps(devices.describe()))
    assert said["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert said["cores"] >= 1
    assert said["packages"]["numpy"]
    assert said["engines"] == {"serial": True, "dask": True, "ray": True}
    assert isinstance(said["problems"], list)


def test_doctor_says_what_is_missing_and_the_remedy(monkeypatch):
    real = devices._version
    monkeypatch.setattr(devices, "_version", lambda name: None if name in ("zarr", "s3fs") else real(name))
    monkeypatch.setattr(devices, "available_bytes", lambda: 10)
    said = devices.describe()
    assert "zarr is not installed: pip install zarr" in said["problems"]
    assert any("less than 4 GB" in line for line in said["problems"])
    assert any(line.startswith("s3fs is not installed: ") for line in said["suggestions"])


def test_folders_of_the_living_stay_and_of_the_dead_go(tmp_path):
    mine = claim_folder(tmp_path, "cs-")
    code = (
        "import os; from pathlib import Path; from cryoscale.runtime.scratch import claim_folder; "
        f"print(claim_folder(Path({str(tmp_path)!r}), 'cs-'), flush=True); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    assert mine.is_dir()
    assert os.path.isdir(dead)
    other = claim_folder(tmp_path, "cs-")
    assert not os.path.isdir(dead)
    assert mine.is_dir()
    for folder in (mine, other, other):
        drop_folder(folder)
    assert list(tmp_path.iterdir()) == []


def _hold(folder):
    """A driver with a reaper, and a stray process that holds a file open and ignores the driver's end."""
    path = str(folder / "log")
    stray = f"import signal; held = open({path!r}, 'w'); print(1, flush=True); signal.pause()"
    code = (
        "import subprocess, sys; from cryoscale.runtime.reaper import Reaper; "
        f"reaper = Reaper({str(folder)!r}); "
        f"stray = subprocess.Popen([sys.executable, '-c', {stray!r}], stdout=subprocess.PIPE); "
        "stray.stdout.readline(); print(stray.pid, reaper._process.pid, flush=True); "
        "sys.stdin.readline()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the reaper reads /proc")
def test_the_reaper_ends_strays_of_a_killed_driver_and_nobody_else(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with _hold(folder) as driver, open(tmp_path / "mine", "w"):
        stray, reaper = (psutil.Process(int(word)) for word in driver.stdout.readline().split())
        assert holders(str(folder), set()) == [stray.pid]
        driver.kill()
        _, alive = psutil.wait_procs([stray, reaper], timeout=20)
    assert alive == []
    assert not folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the reaper reads /proc")
def test_a_dismissed_reaper_kills_nobody(tmp_path):
    with open(tmp_path / "held", "w"):
        reaper = Reaper(tmp_path)
        reaper.dismiss()
        reaper.dismiss()
    assert reaper._process.returncode == 0
    assert (tmp_path / "held").exists()
