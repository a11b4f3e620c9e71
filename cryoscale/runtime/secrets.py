"""Certificates for Dask and the token for Ray: made once, kept in a folder that only its owner may read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CA, CERTIFICATE, KEY, TOKEN = "ca.pem", "cert.pem", "key.pem", "ray-token"


@dataclass(frozen=True)
class Secrets:
    """A folder with `ca.pem`, `cert.pem`, `key.pem` and `ray-token`."""

    folder: Path
