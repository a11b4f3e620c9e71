"""Who takes connections on a host of `cryoscale.testing.hosts`: every listening socket, with its owner."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from cryoscale.testing.hosts import Host

_LISTEN = "0A"  # state of a socket in /proc/net/tcp


@dataclass(frozen=True)
class Listener:
    """A socket that takes connections: where, and whose it is."""

    ip: str
    port: int
    pid: int
    command: str

    @property
    def loopback(self) -> bool:
        """Whether only the host itself can reach it."""
        return self.ip.startswith("127.") or self.ip in ("::1", "::ffff:127.0.0.1")


def listening(host: Host) -> list[Listener]:
    """List the sockets of a host that take TCP connections, with their owners."""
    owners: dict[str, int] = {}
    for pid in host.processes():
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    owners[os.readlink(f"/proc/{pid}/fd/{descriptor}")] = pid
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTEN:
                ip, port = _address(words[1])
                pid = owners.get(f"socket:[{words[9]}]", 0)
                found.append(Listener(ip, port, pid, _command(pid)))
    return sorted(found, key=lambda one: (one.port, one.ip))


def _address(word: str) -> tuple[str, int]:
    """Read `0100007F:1F90`, the kernel's way to write an address: words of 32 bits, least byte first."""
    digits, port = word.split(":")
    raw = b"".join(struct.pack("<I", int(digits[n : n + 8], 16)) for n in range(0, len(digits), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw), int(port, 16)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
