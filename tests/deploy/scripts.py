"""Runs the scripts of `deploy/` beside stand-ins for Slurm, ssh and cryoscale, and reads what was called."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
STANDINS = Path(__file__).with_name("standins")
PATIENCE_S = 60.0

# One address: what `ip` and `hostname` of the machine say must not matter.
IP = """#!/usr/bin/env bash
case "$*" in
    *"route get"*) echo "10.0.0.1 dev eth0 src 10.0.0.2 uid 0" ;;
    *"dev fast0"*) echo "4: fast0    inet 10.9.0.1/16 scope global fast0" ;;
    *"dev "*) ;;
    *"scope global"*) echo "2: eth0    inet 10.0.0.1/24 brd 10.0.0.255 scope global eth0" ;;
    *)
        echo "2: eth0    inet 10.0.0.1/24 scope global eth0"
        [[ -z ${STANDIN_IB:-} ]] || echo "3: ib0    inet 10.8.0.1/24 scope global ib0"
        ;;
esac
"""


@dataclass
class Script:
    """A script of `deploy/` in a folder of its own."""

    name: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        tools = self.folder / "tools"
        tools.mkdir()
        (tools / "ip").write_text(IP)
        (tools / "hostname").write_text("#!/bin/sh\necho 10.0.0.${PWD##*host}\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self.log.touch()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "CRYOSCALE"))}
        self.environment = {
            **kept,
            "PATH": f"{tools}:{STANDINS}:{os.environ['PATH']}",
            "STANDIN_LOG": str(self.log),
            **self.environment,
        }

    @property
    def log(self) -> Path:
        return self.folder / "calls"

    def start(self, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            ["bash", DEPLOY / self.name, *words],
            env={**self.environment, **environment}, cwd=self.folder, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and what it said. Nothing of it may be left."""
        assert self.process is not None
        try:
            said, _ = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"{self.name} did not end:\n{self.process.communicate()[0]}\n{self.log.read_text()}")
        return self.process.returncode, said

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        self.start(*words, **environment)
        return self.end()

    def term(self) -> None:
        """Ask the script itself to stop, as Slurm does with `--signal=B:TERM`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def await_call(self, start: str) -> None:
        """Wait until a call that begins so was written down."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.calls(start):
            assert time.monotonic() < deadline, f"no '{start}' in:\n{self.log.read_text()}"
            assert self.process is None or self.process.poll() is None, self.end()
            time.sleep(0.02)

    def calls(self, start: str = "") -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]
