"""`cryoscale engine`: what it refuses, and what it makes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from cryoscale.cli import run_command
from cryoscale.runtime.check import EngineReport, WorkerReport


@pytest.fixture
def secrets(tmp_path):
    assert run_command(["engine", "secrets", str(tmp_path / "secrets"), "--days", "2"]) == 0
    return str(tmp_path / "secrets")


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in ("CRYOSCALE_SECRETS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def _free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_secrets_says_until_when_and_not_what(tmp_path, capsys):
    secrets = str(tmp_path / "cluster")
    assert run_command(["engine", "secrets", secrets]) == 0
    said = capsys.readouterr().out
    assert "good until" in said
    assert (Path(secrets) / "ray-token").read_text() not in said
    assert run_command(["engine", "secrets", secrets]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["scheduler", "--host", "10.0.0.1"],
        ["lead", "--host", "10.0.0.1"],
        ["join", "10.0.0.2", "--host", "10.0.0.1"],
        ["worker", "tcp://10.0.0.2:8786", "--host", "10.0.0.1"],
    ],
)
def test_nothing_listens_beyond_loopback_without_certificates(words, capsys):
    assert run_command(["engine", *words]) == 2
    assert "without certificates nothing may listen at 10.0.0.1" in capsys.readouterr().err


def test_ray_does_not_start_without_a_token(capsys):
    assert run_command(["engine", "lead", "--host", "127.0.0.1"]) == 2
    assert "Ray needs a token" in capsys.readouterr().err


def test_a_member_that_the_certificate_does_not_name_is_refused(tmp_path, capsys):
    named = str(tmp_path / "named")
    assert run_command(["engine", "secrets", named, "--host", "10.0.0.1"]) == 0
    assert run_command(["engine", "lead", "--host", "10.0.0.2", "--secrets", named]) == 2
    assert "not for 10.0.0.2" in capsys.readouterr().err


def test_a_lead_that_does_not_come_is_named_after_the_wait(secrets, capsys):
    port = _free_port()
    words = ["join", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--wait", "0", "--secrets", secrets]
    assert run_command(["engine", *words]) == 75
    assert f"no Dask scheduler at tls://127.0.0.1:{port} within 0 s" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["worker", "there"], ["check"], ["lead"], ["unknown"]])
def test_misuse(words):
    assert run_command(["engine", *words]) == 2


def test_check_names_engines_that_are_not_there(secrets, capsys):
    port = _free_port()
    addresses = ["--dask", f"tls://127.0.0.1:{port}", "--ray", f"127.0.0.1:{port}"]
    assert run_command(["engine", "check", *addresses, "--secrets", secrets, "--json"]) == 1
    dask, ray = json.loads(capsys.readouterr().out)
    assert f"no Dask scheduler at tls://127.0.0.1:{port}" in dask["problem"]
    assert f"nothing answers at the Ray address 127.0.0.1:{port}" in ray["problem"]
    assert not dask["fit"]


def test_join_takes_no_address_of_two_ports(capsys) -> None:
    assert run_command(["engine", "join", "10.0.0.1:8786:3", "--host", "10.0.0.2"]) == 2
    assert "is not an address" in capsys.readouterr().err


def test_some_fit_workers_are_enough_for_a_run() -> None:
    fit, unfit = WorkerReport("a", "tls://a", "", 0.0), WorkerReport("b", "tls://b", "another version", 0.0)
    assert [EngineReport("dask", "x", "", there).usable for there in ([fit, unfit], [unfit], [])] == [
        True,
        False,
        False,
    ]
    assert not EngineReport("dask", "x", "", [fit, unfit]).fit
    assert not EngineReport("dask", "x", "nobody answers", [fit]).usable
