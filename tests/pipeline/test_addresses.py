"""Addresses and secrets that can never work are refused before any work."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cryoscale.errors import ConfigurationError
from cryoscale.pipeline.addresses import check_addresses
from cryoscale.pipeline.engines import EngineChoice
from cryoscale.runtime.secrets import Secrets


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return Secrets.create(tmp_path / "secrets").folder


@pytest.mark.parametrize(
    ("dask", "said"),
    [
        ("tls://10.0.0.1", "tls://HOST:8786"),
        ("http://10.0.0.1:8786", "tls://HOST:8786"),
        ("10.0.0.1:8786", "tls://10.0.0.1:8786"),
        ("tcp://10.0.0.1:8786", "tls://10.0.0.1:8786"),
    ],
)
def test_a_dask_address_that_cannot_work(dask, said, secrets) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_addresses(EngineChoice(dask=dask, secrets=secrets))


def test_tls_wants_certificates() -> None:
    with pytest.raises(ConfigurationError, match="--secrets FOLDER"):
        check_addresses(EngineChoice(dask="tls://127.0.0.1:8786"))


@pytest.mark.parametrize("ray", ["ray://127.0.0.1:10001", "127.0.0.1", ":6379", "host:port"])
def test_a_ray_address_that_cannot_work(ray) -> None:
    with pytest.raises(ConfigurationError, match="HOST:6379"):
        check_addresses(EngineChoice(ray=ray))


def test_secrets_that_are_not_there(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        check_addresses(EngineChoice(dask="tls://127.0.0.1:8786", secrets=tmp_path / "nowhere"))


def test_who_does_not_answer_yet_is_told_and_who_does_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert check_addresses(EngineChoice(dask=f"tcp://127.0.0.1:{port}", ray="auto")) == []
        assert check_addresses(EngineChoice(ray=f"127.0.0.1:{port}")) == []
    told = check_addresses(EngineChoice(dask=f"tcp://127.0.0.1:{port}", ray=f"127.0.0.1:{port}"))
    assert [f"127.0.0.1:{port}" in one for one in told] == [True, True]
    assert check_addresses(EngineChoice()) == []
