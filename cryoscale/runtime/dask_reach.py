"""Reaching a Dask scheduler that may not be there yet, and saying what is wrong when it never will be.

Dask itself reports a wrong certificate, a wrong protocol and an absent machine alike, as a time that ran out.
So the connection is tried here first, by hand: what cannot mend by waiting is an error at once.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Any

from cryoscale.errors import RefusedError

_CONNECT_S, _ANSWER_S = 0.5, 3.0
_SETTLE_S = 0.2  # a server that refuses our certificate says so after the handshake (TLS 1.3)
_SCHEMES = ("tcp", "tls")


def split(address: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of a Dask address; None for one that only Dask understands."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        scheme, rest = "tcp", address
    host, _, port = rest.rpartition(":")
    if scheme not in _SCHEMES or not host or not port.isdigit():
        return None
    return scheme, host.strip("[]"), int(port)


def try_scheduler(address: str, security: Any) -> str:
    """Try to connect; return an empty text, or why not yet.

    Parameters
    ----------
    address : str
        `tcp://…` or `tls://…`.
    security : distributed.Security or None
        Certificates for `tls://`.

    Raises
    ------
    RefusedError
        If waiting does not help: another protocol, or a certificate that one side refuses.
    """
    parts = split(address)
    if parts is None:
        return ""
    scheme, host, port = parts
    try:
        plain = socket.create_connection((host, port), timeout=_CONNECT_S)
    except OSError as error:
        return f"Nothing answers there ({error.strerror or error})."
    with plain:
        return _handshake(plain, address, security) if scheme == "tls" else ""


def speaks_tls(address: str) -> bool:
    """Say whether a server at a `tcp://` address wants TLS; asked when plain talk failed."""
    parts = split(address)
    if parts is None or parts[0] != "tcp":
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nothing is sent: only the protocol counts
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(parts[1:], timeout=_CONNECT_S) as plain:
            plain.settimeout(_ANSWER_S)
            with context.wrap_socket(plain):
                return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _handshake(plain: socket.socket, address: str, security: Any) -> str:
    context = _client_context(address, security)
    plain.settimeout(_ANSWER_S)
    try:
        with context.wrap_socket(plain, server_hostname=None) as encrypted:
            encrypted.settimeout(_SETTLE_S)
            with suppress(TimeoutError):
                encrypted.recv(1)
            return ""
    except ssl.SSLCertVerificationError as error:
        raise RefusedError(
            f"the certificate of the Dask scheduler at {address} is refused: {error.verify_message}.",
            remedy="Give --secrets the folder that the scheduler was started with, or make a new one if "
            "it is out of date (`cryoscale engine secrets`).",
        ) from error
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            raise RefusedError(
                f"the Dask scheduler at {address} refuses our certificate ({error.reason}).",
                remedy="Give --secrets the folder that the scheduler was started with.",
            ) from error
        if "EOF" in (error.reason or ""):
            return "It hangs up during the TLS handshake."
        raise RefusedError(
            f"what listens at {address} does not speak TLS ({error.reason}).",
            remedy="Start the scheduler with the same --secrets, or correct the address.",
        ) from error
    except TimeoutError:
        return "It takes the connection but does not answer in TLS: is it a scheduler without certificates?"
    except OSError as error:
        return f"The connection broke ({error.strerror or error})."


def _client_context(address: str, security: Any) -> ssl.SSLContext:
    from distributed import Security

    context = (security or Security()).get_connection_args("client").get("ssl_context")
    if context is None:
        raise RefusedError(
            f"{address} asks for certificates, and none are given.",
            remedy="Add --secrets FOLDER with those of the cluster.",
        )
    return context  # type: ignore[no-any-return]
