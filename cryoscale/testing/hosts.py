"""Several machines on one: hosts as Linux namespaces on a bridge of their own, with shared folders.

::

    this process
      '-- switchboard: own network, mounts and process ids; the bridge is here
            |-- host1 10.77.0.1: own network, name, process ids, /tmp, /dev/shm, /etc/hosts
            |-- host2 10.77.0.2
            '-- host3 10.77.0.3

Nothing reaches the machine's own network, and nothing outlives this process: each namespace has a first
process that reads a pipe from here, and with it the kernel ends all others. Linux as root only; `obstacle`
says what is missing.

The file is also run by path, as that first process: so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NETWORK = "10.77.0"
_READY = b"ready\n"
_PATIENCE_S = 30.0
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_TOOLS = ("ip", "unshare", "nsenter", "mount")


def obstacle() -> str:
    """Say why hosts cannot be made here; empty if they can."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (iproute2, util-linux)"
    words = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
    tried = subprocess.run(
        [*words, "sh", "-c", "ip link add br0 type bridge && ip link add port1 type veth peer name port2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no namespaces: {tried.stderr.strip()[-200:]}" if tried.returncode else ""


class HostProcess(subprocess.Popen[str]):
    """A process inside a host; `signal` reaches it, not the messenger that started it."""

    @property
    def inner(self) -> int:
        """The process id as seen from here; 0 if it has ended."""
        children = _children(self.pid)
        return children[0] if children else 0

    def signal(self, number: int) -> None:
        """Send a signal to the process inside; nothing if it has ended."""
        if self.poll() is None and (pid := self.inner):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Host:
    """One machine.

    Parameters
    ----------
    number : int
        Counted from 1; the address ends in it.
    """

    hosts: Hosts
    number: int
    pid: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    _first: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """What the machine calls itself."""
        return f"host{self.number}"

    @property
    def ip(self) -> str:
        """Its address on the bridge."""
        return f"{NETWORK}.{self.number}"

    def start(self) -> None:
        """Switch it on, also again after `kill`."""
        words = [
            "unshare",
            "--net",
            "--uts",
            "--mount",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        plan = {"number": self.number, "count": self.hosts.count, "keep": list(self.hosts.keep)}
        self._first, self.pid = _first_process(
            [*_enter(self.hosts.pid, "nmp"), *words], ["host", json.dumps(plan)]
        )
        port = f"port{self.number}"
        self.hosts.outside(
            "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid)
        )
        self.hosts.outside("ip", "link", "set", port, "master", "br0", "up")
        self.inside("ip", "addr", "add", f"{self.ip}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")

    def popen(self, words: Sequence[str], **options: Any) -> HostProcess:
        """Start a process in it; output as text, with pipes unless told otherwise.

        Parameters
        ----------
        words : sequence of str
            The command; no shell.
        **options
            Of `subprocess.Popen`; `env` is added to this process's and the host's variables, `cwd` is inside.
        """
        env = {**os.environ, "HOME": "/root", **self.environment, **(options.pop("env", None) or {})}
        there = ["sh", "-c", 'cd "$0" && exec "$@"', str(options.pop("cwd", "/"))]
        pipes = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            **options,
        }
        process = HostProcess([*_enter(self.pid), *there, *map(str, words)], env=env, text=True, **pipes)
        self.hosts.started.append(process)
        return process

    def run(
        self, words: Sequence[str], timeout: float = 120.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end; standard error is in `stdout`.

        Raises
        ------
        subprocess.TimeoutExpired
            With what it had said; it is killed.
        """
        process = self.popen(words, **options)
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.signal(signal.SIGKILL)
            said, _ = process.communicate()
            raise subprocess.TimeoutExpired(list(words), timeout, said) from error
        return subprocess.CompletedProcess(list(words), process.returncode, said)

    def inside(self, *words: str) -> str:
        """Run a short command that must succeed, and return what it says."""
        done = self.run(words, timeout=_PATIENCE_S)
        if done.returncode:
            raise OSError(f"{self.name}: {' '.join(words)}: {done.stdout.strip()}")
        return done.stdout

    def cut(self) -> None:
        """Take it off the network, without a word to anyone: packets vanish in both directions."""
        self.hosts.outside("ip", "link", "set", f"port{self.number}", "nomaster")

    def mend(self) -> None:
        """Put it on the network again after `cut`."""
        self.hosts.outside("ip", "link", "set", f"port{self.number}", "master", "br0")

    def kill(self) -> None:
        """Take its power away: every process of it ends at once, with SIGKILL, and its network is gone."""
        first, self._first = self._first, None
        if first is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.hosts.forget(first)
        self.pid = 0

    def hide(self, path: str | Path, size: str = "64m") -> None:
        """Put an empty file system of its own over a folder: what is not shared with this host."""
        self.inside("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path))

    def read_only(self, path: str | Path) -> None:
        """Let this host read a folder and not write it."""
        self.inside("mount", "--bind", str(path), str(path))
        self.inside("mount", "-o", "remount,bind,ro", str(path))

    def processes(self) -> list[int]:
        """List its processes, by their ids as seen from here."""
        mine = _family_of(self.pid)
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _family_of(pid) == mine]


class Hosts:
    """A switchboard with hosts on it; a context manager.

    Parameters
    ----------
    count : int
        Hosts to start, up to 250.
    keep : sequence of path
        Folders below /tmp that all hosts share; each has a /tmp of its own otherwise. This interpreter and
        this package are always among them.
    small_disk : (path, str) or None
        A folder that all hosts share and that holds only so much, as "6m"; `resize` changes it.

    Raises
    ------
    OSError
        Where namespaces cannot be made; ask `obstacle` first.
    """

    def __init__(
        self, count: int, *, keep: Sequence[str | Path] = (), small_disk: tuple[str | Path, str] | None = None
    ) -> None:
        package = Path(__file__).resolve().parents[2]
        places = (sys.prefix, sys.base_prefix, package, *keep)
        self.count = count
        self.keep = tuple(dict.fromkeys(str(Path(place).absolute()) for place in places))
        self.pid = 0
        self.started: list[HostProcess] = []
        self._switchboard: subprocess.Popen[bytes] | None = None
        self._disk = small_disk
        self._hosts = [Host(self, number) for number in range(1, count + 1)]

    def __getitem__(self, number: int) -> Host:
        """Return a host by its number, from 1."""
        return self._hosts[number - 1]

    def __iter__(self) -> Iterator[Host]:
        """Go through all hosts."""
        return iter(self._hosts)

    def __enter__(self) -> Self:
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._switchboard, self.pid = _first_process(words, ["switchboard", "{}"])
        try:
            if self._disk is not None:
                self.outside(
                    "mount", "-t", "tmpfs", "-o", f"size={self._disk[1]}", "none", str(self._disk[0])
                )
            for host in self._hosts:
                host.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything at once; safe to call again."""
        switchboard, self._switchboard = self._switchboard, None
        if switchboard is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.forget(switchboard)
        for host in self._hosts:
            host.pid, first, host._first = 0, host._first, None
            if first is not None:
                self.forget(first)
        while self.started:
            self.forget(self.started.pop())

    def outside(self, *words: str) -> str:
        """Run a short command at the switchboard, which must succeed."""
        # Not in its process ids: those of hosts are given as they are here.
        done = subprocess.run([*_enter(self.pid, "nm"), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"switchboard: {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def resize(self, size: str) -> None:
        """Change what the small disk holds."""
        if self._disk is None:
            raise ValueError("there is no small disk")
        self.outside("mount", "-o", f"remount,size={size}", str(self._disk[0]))

    def path(self, path: str | Path) -> Path:
        """Return where a path of the switchboard (the small disk above all) can be read from here."""
        return Path(f"/proc/{self.pid}/root{Path(path).absolute()}")

    @staticmethod
    def forget(first: subprocess.Popen[Any]) -> None:
        """Wait for a process that was told to end, and close its pipes."""
        for pipe in (first.stdin, first.stdout, first.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        first.wait(_PATIENCE_S)


def _family_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _enter(pid: int, namespaces: str = "numpi") -> list[str]:
    return ["nsenter", "-t", str(pid), *(f"-{letter}" for letter in namespaces), "--"]


def _first_process(words: Sequence[str], arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the first process of a namespace; return it with the process id that it has here."""
    program = [sys.executable, "-I", "-S", os.path.abspath(__file__), *arguments]
    started = subprocess.Popen(
        [*words, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = started.stdout.readline() if started.stdout else b""
    if said != _READY:
        Hosts.forget(started)
        raise OSError(f"a namespace did not start: {said.decode(errors='replace').strip()}")
    pid = started.pid
    while below := _children(pid):
        pid = below[0]
    return started, pid


# -- what runs inside: the first process of the switchboard and of each host --------------------------------


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Call mount(2): the command of that name follows links which by then lead elsewhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if word is None else word.encode() for word in (source, target, kind, data)]
    if libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _furnish(plan: Mapping[str, Any]) -> None:
    """Give a host its name, a /tmp, shared memory and a list of its neighbours."""
    socket.sethostname(f"host{plan['number']}")
    kept = [(path, os.open(path, os.O_PATH)) for path in plan["keep"] if path.startswith("/tmp/")]
    _mount("none", "/tmp", "tmpfs", 0, "mode=1777")
    for path, handle in kept:
        if not os.path.isdir(path):  # one kept folder may lie in another
            os.makedirs(path)
            _mount(f"/proc/self/fd/{handle}", path, None, _MS_BIND | _MS_REC)
        os.close(handle)
    _mount("none", "/dev/shm", "tmpfs", 0, "mode=1777")
    lines = ["127.0.0.1 localhost", *(f"{NETWORK}.{n} host{n}" for n in range(1, plan["count"] + 1))]
    Path("/tmp/.hosts").write_text("\n".join(lines) + "\n")
    _mount("/tmp/.hosts", "/etc/hosts", None, _MS_BIND)


def main(role: str, plan: Mapping[str, Any]) -> None:
    """Furnish a namespace, then live until the pipe closes; as process 1 its end is everybody's."""
    if role == "host":
        _furnish(plan)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if role == "switchboard":
        subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
        subprocess.run(["ip", "link", "set", "br0", "up"], check=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are ours: let the kernel bury them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(1, _READY)
    while os.read(0, 1):
        pass


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
