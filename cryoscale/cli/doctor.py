"""`cryoscale doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor_command(as_json: bool) -> int:
    """Say what engines, devices and versions there are. Exit 1 when something is missing or broken."""
    from cryoscale.runtime.devices import describe

    found = describe()
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(_lines(found)))
    return 1 if found["problems"] else 0


def _lines(found: dict[str, Any]) -> Iterator[str]:
    from cryoscale.runtime.memory import format_bytes

    yield f"cryoscale {found['cryoscale']}, Python {found['python']} ({found['executable']})"
    yield f"{found['platform']}"
    yield (
        f"{found['cores']} cores, {format_bytes(found['memory_available_bytes'])} of memory available, "
        f"{format_bytes(found['scratch_free_bytes'])} free for temporary files"
    )
    engines = [f"{name} {'yes' if there else 'no'}" for name, there in found["engines"].items()]
    yield f"engines: {', '.join(engines)}"
    devices = [f"{d['name']}, {format_bytes(d['bytes'])}, {d['capability']}" for d in found["cuda"]]
    yield f"CUDA: {'; '.join(devices) or 'none: the networks run on the CPU'}"
    yield f"OpenVINO: {', '.join(found['openvino']) or 'none'}"
    packages = [f"{name} {number}" for name, number in found["packages"].items() if number]
    yield f"packages: {', '.join(packages)}"
    yield from (f"could be better: {sentence}" for sentence in found["suggestions"])
    yield from (f"PROBLEM: {sentence}" for sentence in found["problems"])
    if not found["problems"]:
        yield "nothing is missing."
