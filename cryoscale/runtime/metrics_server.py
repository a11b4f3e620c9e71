"""Where Prometheus asks: HTTP on loopback, or TLS with certificates on both sides."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from cryoscale.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

    from prometheus_client import CollectorRegistry

LOOPBACK = "127.0.0.1"
PATIENCE_S = 10.0  # for a client that connects and says nothing
AT_ONCE = 8  # connections; further ones are closed


@dataclass(frozen=True)
class Place:
    """Where to listen; port 0 takes any that is free."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Place:
        """Read `[HOST:]PORT`; an IPv6 address stands in brackets. Raises `ConfigurationError`."""
        host, _, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]") or LOOPBACK
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ConfigurationError(
                f"--metrics {text} has no port from 0 to 65535.", remedy="Give PORT, or HOST:PORT."
            )
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can ask there."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False


def check(text: str, secrets: Path | None) -> Place:
    """Return where to listen; raises `ConfigurationError` where others could ask without a certificate."""
    place = Place.of(text)
    if not place.is_loopback and secrets is None:
        raise ConfigurationError(
            f"--metrics {text}: other machines may ask only with certificates.",
            remedy="Add --secrets FOLDER (`cryoscale engine secrets`), or give the port alone for loopback.",
        )
    return place


@contextlib.contextmanager
def served(registry: CollectorRegistry, text: str, secrets: Path | None = None) -> Iterator[str]:
    """Answer Prometheus as long as this is open; yields the URL.

    Parameters
    ----------
    registry : CollectorRegistry
        What is told.
    text : str
        `[HOST:]PORT`. On loopback it is plain HTTP; on any other host TLS, and a client without a
        certificate of the same CA is refused.
    secrets : path, optional
        Folder with the certificates.

    Raises
    ------
    ConfigurationError
        The address cannot be, is taken, or needs certificates that are not there.
    """
    from prometheus_client import make_wsgi_app

    place = check(text, secrets)
    context = None if place.is_loopback else _tls(secrets)
    server = _listen(place, context)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="cryoscale-metrics", daemon=True
    )
    thread.start()
    shown = f"[{place.host}]" if ":" in place.host else place.host
    try:
        yield f"{'https' if context else 'http'}://{shown}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tls(secrets: Path | None) -> ssl.SSLContext:
    from cryoscale.runtime.secrets import Secrets

    assert secrets is not None
    context: ssl.SSLContext = Secrets.open(secrets).tls_context(server=True)
    return context


def _listen(place: Place, context: ssl.SSLContext | None) -> _Server:
    try:
        infos = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        return _Server(infos[0][0], infos[0][4], context)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be told at {place.host}:{place.port}: {error.strerror or error}.",
            remedy="Choose another port, or an address of this machine.",
        ) from error


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, a few at once. It does the TLS handshake too, so no client holds up others."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, family: int, address: Any, context: ssl.SSLContext | None) -> None:
        self.address_family = family
        self._context = context
        self._room = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Without the look-up of this machine's name that the library does: name servers may not answer.
        if os.name != "nt":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(PATIENCE_S)
            if self._context is not None:
                request = self._context.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:  # no certificate, a wrong one, or plain HTTP: refused, and nobody else's matter
            self.shutdown_request(request)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is no event of the run."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: one line per scrape helps nobody."""
