"""Addresses with a password, key or signature in them are refused: they would be stored and shown."""

from __future__ import annotations

import re

from cryoscale.errors import ConfigurationError

REMEDY = (
    "Take it out, and give credentials as the storage's own client takes them: variables of the environment, "
    "~/.aws/credentials, or a file in ~/.config/fsspec."
)

# A colon in what stands before the host, unless it is a port: S3 keys hold slashes, and people paste them as
# they are. A query with a signature or a token opens what it names to anybody.
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s:]*:(?!\d+(?:/|$))[^@\s]*@")
_SIGNED = re.compile(
    r"(?i)([a-z][a-z0-9+.-]*://[^?\s]*)\?(?:\S*&)?(?:x-(?:amz|goog)-\w+|sig|signature|token|access_?token|"
    r"aws_?access_?key_?id|googleaccessid|api_?key|key|secret|password)="
)


def has_credentials(text: str) -> bool:
    """Whether an address holds a password, a key, a token or a signature."""
    return "://" in text and bool(_PASSWORD.search(text) or _SIGNED.search(text))


def refuse_credentials(text: str) -> None:
    """Raise `ConfigurationError` when an address holds credentials; the message does not."""
    if has_credentials(text):
        scheme = text.partition("://")[0]
        raise ConfigurationError(
            f"an address {scheme}://… holds a password, key, token or signature, and run.toml, logs and "
            "messages would show it.",
            remedy=REMEDY,
        )
