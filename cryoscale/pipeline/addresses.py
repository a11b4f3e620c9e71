"""Where running engines are said to be: seen to when a run begins, not hours later."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from cryoscale.errors import ConfigurationError
from cryoscale.pipeline.engines import EngineChoice
from cryoscale.runtime.dask_reach import split
from cryoscale.runtime.secrets import Secrets

_CONNECT_S = 1.0
RAY_FINDS = ("auto",)  # a node of the cluster on this machine, which Ray looks for itself


def check_addresses(choice: EngineChoice) -> list[str]:
    """Refuse addresses and secrets that can never work; tell which engines do not answer yet.

    Parameters
    ----------
    choice : EngineChoice
        What was asked for.

    Returns
    -------
    told : list of str
        A sentence for each engine that does not answer now. That is no error: workers and schedulers may come
        later, and stages without that engine go on meanwhile.

    Raises
    ------
    ConfigurationError
        An address of another form, secrets that cannot be used, or that do not go with the address.
    """
    secrets = Secrets.open(choice.secrets) if choice.secrets is not None else None
    return [*_dask(choice.dask, secrets), *_ray(choice.ray)]


def _dask(address: str | None, secrets: Secrets | None) -> Iterator[str]:
    if address is None:
        return
    parts = split(address)
    if parts is None:
        raise ConfigurationError(
            f"--dask {address} is not the address of a scheduler.", remedy="Give tls://HOST:8786."
        )
    scheme, host, port = parts
    encrypted = secrets is not None and secrets.has_certificates
    if encrypted and scheme != "tls":
        raise ConfigurationError(
            f"--dask {address} is without encryption, but --secrets holds certificates.",
            remedy=f"Give --dask tls://{host}:{port}.",
        )
    if scheme == "tls" and not encrypted and not _dask_has_certificates():
        raise ConfigurationError(
            f"--dask {address} asks for certificates, and none are given.",
            remedy="Add --secrets FOLDER with those of the cluster (`cryoscale engine secrets`).",
        )
    if not _answers(host, port):
        yield f"nothing answers at the Dask address {address} yet; stages that need it will wait."


def _ray(address: str | None) -> Iterator[str]:
    if address is None or address in RAY_FINDS:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigurationError(
            f"--ray {address} is not the address of a Ray head.",
            remedy="Give HOST:6379; Ray Client (ray://) is not used.",
        )
    if not _answers(host.strip("[]"), int(port)):
        yield f"nothing answers at the Ray address {address} yet; stages that need it will wait."


def _dask_has_certificates() -> bool:
    """Whether Dask's own configuration names certificates."""
    import dask

    return bool(dask.config.get("distributed.comm.tls.ca-file", None))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True
