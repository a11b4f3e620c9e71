"""A support bundle: what somebody needs who is to find out why a run fails, and no secret.

Three lines of defence. Things are on an allow-list: known keys of `run.toml`, known variables, sizes of files
and never what is in them. Every text then loses what is known to be a secret of this process, and what looks
like one. And each part stands alone: what cannot be read is left out, and the bundle says so.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
import tempfile
import time
import tomllib
import typing
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

import cryoscale
from cryoscale.config import RunConfig
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.pipeline.logs import drives
from cryoscale.runtime.redaction import Redactor, known_secrets
from cryoscale.runtime.worker_log import utc

LOG_BYTES = 2 * 2**20  # of one drive: its first line and its end
PART_BYTES = 4 * 2**20  # of any other part
SHOWN_UNITS = 500  # of a stage that are not done
SHOWN_FILES, LISTED_FOLDERS = 40, 1000  # files of one folder that are named; folders that are looked into
REMOVED = "<removed: unknown>"

# Variables that say how numbers are computed; all others lose their value.
SHOWN_VARIABLES = re.compile(
    r"(?:OMP|MKL|OPENBLAS|BLIS|NUMEXPR|VECLIB|BLOSC)_\w+|GOMP_SPINCOUNT|CUDA_VISIBLE_DEVICES|"
    r"ZARR_\w+|CRYOSCALE_LOG|SLURM_(?:JOB_NUM_NODES|NTASKS|CPUS_PER_TASK|GPUS)|PYTHON(?:HASHSEED|UNBUFFERED)"
)
SHOWN_VALUE = re.compile(r"[\d.,:-]{0,24}|(?i:true|false|passive|active|json|close|spread|none|all)")
NAMED_VARIABLES = re.compile(
    r"(?:CRYOSCALE|DASK|RAY|SLURM|KUBERNETES|AWS|GOOGLE|AZURE|FSSPEC|CUDA|NVIDIA)_\w{0,60}"
)


@dataclass
class Bundle:
    """What was put into a bundle, and what was not.

    Parameters
    ----------
    parts : dict of str to int
        Name and bytes.
    left_out : list of str
        What is not in it, and why.
    """

    parts: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


ALWAYS_LEFT_OUT = (
    "the contents of tomograms, picks, encodings, weights, labels and reports: sizes alone",
    "comments and unknown keys of run.toml",
    "values of all environment variables but a few that hold numbers of threads and devices",
    "names of people, passwords, tokens, keys, signatures and queries of URLs, long random words: <removed…>",
)


def make_bundle(
    place: str, target: str | os.PathLike[str], *, last: int = 5, secrets: str | None = None
) -> Bundle:
    """Write a ZIP file with what is known of a run; nothing in the run changes.

    Parameters
    ----------
    place : str
        The run; it may be going on, be broken, or be readable only.
    target : path
        The file to write, readable by its owner only; must not exist.
    last : int
        Of how many drives the logs are taken.
    secrets : str, optional
        Folder of the clusters' secrets, to be sure that none of them is in the bundle.

    Raises
    ------
    StateError
        There is nothing at this place.
    ConfigurationError
        The target exists, or cannot be written.
    """
    run = Run.at(place)
    if not run.folder.exists():
        raise StateError(f"there is nothing at {run.folder.url}.", remedy="Check the path of the run.")
    if Path(target).exists():
        raise ConfigurationError(f"{target} exists.", remedy="Choose another name for the bundle.")
    if last < 0:
        raise ConfigurationError(f"--last {last}: give 0 or more.")
    redactor = Redactor(known_secrets(secrets), strict=True)
    bundle = Bundle()
    try:
        handle, temporary = tempfile.mkstemp(dir=Path(target).absolute().parent, prefix=".support-")
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}.") from error
    try:
        with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in _parts(run, redactor, last, bundle):
                data = _cut(redactor.text(name), text, bundle).encode()
                archive.writestr(redactor.text(name), data)
                bundle.parts[redactor.text(name)] = len(data)
            archive.writestr("README.txt", _contents(run, bundle, redactor))
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return bundle


def _parts(run: Run, redactor: Redactor, last: int, bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Yield name and text of each part, free of secrets; what cannot be made goes to what is left out."""

    def as_json(value: Any) -> str:
        return json.dumps(redactor.value(value), indent=1)

    makers: list[tuple[str, Callable[[], str]]] = [
        ("doctor.json", lambda: as_json(_doctor())),
        ("environment.json", lambda: json.dumps(_environment(), indent=1)),
        ("run.toml", lambda: _run_toml(run, redactor)),
        ("status.json", lambda: as_json(_trimmed(_status(run)))),
        ("plan.json", lambda: as_json(_plan(run))),
        ("ledger.json", lambda: as_json(_ledger(run))),
        ("engines.json", lambda: as_json(_engines(run, last))),
        (
            "failures.csv",
            lambda: _failures(run, redactor),
        ),
        ("files.txt", lambda: redactor.text("\n".join(_files(run)))),
    ]
    for name in _tried(lambda: run.folder.names("models"), "models", bundle, redactor) or []:
        makers += [
            (card, functools.partial(_card, run, card, redactor))
            for card in (f"models/{name}/model.toml", f"models/{name}/progress.json")
            if run.folder.exists(card)
        ]
    if not run.folder.exists("failures.csv"):
        makers = [maker for maker in makers if maker[0] != "failures.csv"]
    known = _tried(lambda: drives(run, last), "logs", bundle, redactor) or {}
    makers += [
        (f"logs/events-{drive}.jsonl", functools.partial(_log, run, names, redactor))
        for drive, names in known.items()
    ]
    for name, make in makers:
        text = _tried(make, name, bundle, redactor)
        if text is not None:
            yield name, text


def _tried(make: Callable[[], Any], name: str, bundle: Bundle, redactor: Redactor) -> Any:
    try:
        return make()
    except Exception as error:  # a broken run is what this is for
        text = redactor.text(f"{type(error).__name__}: {error}")[:500]
        bundle.left_out.append(f"{redactor.text(name)}: {text}")
        return None


def _cut(name: str, text: str, bundle: Bundle) -> str:
    limit = LOG_BYTES * 2 if name.startswith("logs/") else PART_BYTES
    if len(text) <= limit:
        return text
    bundle.left_out.append(f"{name}: all beyond {limit} characters")
    return text[:limit]


def _contents(run: Run, bundle: Bundle, redactor: Redactor) -> str:
    """Say what is in the bundle and what is not."""
    lines = [
        f"Support bundle of cryoscale {cryoscale.__version__}, {utc(time.time())}",
        f"of the run {redactor.text(run.folder.url)}",
        "", "In it:", *(f"  {name} ({size} bytes)" for name, size in bundle.parts.items()),
        "", "Left out because it could not be read or was too long:",
        *([f"  {text}" for text in bundle.left_out] or ["  nothing"]),
        "", "Never in it:", *(f"  {text}" for text in ALWAYS_LEFT_OUT), "",
    ]  # fmt: skip
    return "\n".join(lines)


# -- the parts ----------------------------------------------------------------------------------------------


def _doctor() -> dict[str, Any]:
    from cryoscale.runtime.devices import describe

    return describe()


def _environment() -> dict[str, Any]:
    """Values of a few variables whose values say nothing about anybody, and names of those of our engines."""
    shown = {
        name: value
        for name, value in sorted(os.environ.items())
        if SHOWN_VARIABLES.fullmatch(name) and SHOWN_VALUE.fullmatch(value)
    }
    named = sorted(name for name in os.environ if NAMED_VARIABLES.fullmatch(name) and name not in shown)
    return {"values": shown, "set": named, "others": len(os.environ) - len(shown) - len(named)}


def _run_toml(run: Run, redactor: Redactor) -> str:
    """Write `run.toml` anew from what it means: without comments, and known keys alone."""
    text = run.folder.read_bytes("run.toml").decode(errors="replace")
    try:
        known = _known_keys(tomllib.loads(text), RunConfig)
    except tomllib.TOMLDecodeError as error:
        where = "".join(re.findall(r"\(at line \d+, column \d+\)", str(error)))
        return f"# run.toml is no valid TOML {where}; {len(text.splitlines())} lines, left out\n"
    return tomli_w.dumps(redactor.value(known))


def _known_keys(raw: Any, model: Any) -> Any:
    """Keep what the model knows; an unknown key loses its name and its value."""
    fields = getattr(model, "model_fields", None)
    if fields is None or not isinstance(raw, Mapping):
        return _plain(raw)
    kept: dict[str, Any] = {}
    for key, value in raw.items():
        if key in fields:
            inner = _model_in(fields[key].annotation)
            if isinstance(value, list):
                kept[key] = [_known_keys(item, inner) for item in value]
            else:
                kept[key] = _known_keys(value, inner)
    if unknown := len(raw) - len(kept):
        kept["unknown_keys"] = unknown
    return kept


def _plain(raw: Any) -> Any:
    """Keep numbers, words, and lists of them; a table where none belongs is unknown."""
    if isinstance(raw, list):
        return [_plain(item) for item in raw]
    return raw if isinstance(raw, (str, int, float, bool)) else REMOVED


def _model_in(annotation: Any) -> Any:
    """Return the model of a table, of an optional table, or of a list of tables; None where there is none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((m for part in typing.get_args(annotation) if (m := _model_in(part)) is not None), None)


def _status(run: Run) -> dict[str, Any]:
    from cryoscale.pipeline.status import status_of

    return status_of(run, with_disk=False)


def _trimmed(status: dict[str, Any]) -> dict[str, Any]:
    """Leave out units that are done, and most of very many: counts say the same."""
    for stage in status["stages"]:
        due = [unit for unit in stage["units"] if unit["state"] not in ("done", "empty", "planned")]
        for unit in due:
            unit["facts"] = {}
        stage["units_left_out"] = len(stage["units"]) - len(due[:SHOWN_UNITS])
        stage["units"] = due[:SHOWN_UNITS]
    status["failures_left_out"] = max(0, len(status["failures"]) - 10 * SHOWN_UNITS)
    status["failures"] = status["failures"][: 10 * SHOWN_UNITS]
    return status


def _plan(run: Run) -> dict[str, Any]:
    """Numbers of blocks by stage as they are planned, and what workers may take."""
    from cryoscale.pipeline.engines import EngineChoice, local_workers, memory_budgets

    config, choice = run.config, EngineChoice()
    stages = {}
    for stage in _status(run)["stages"]:
        planned = sorted(unit["blocks"]["planned"] for unit in stage["units"] if unit["blocks"]["planned"])
        middle = planned[len(planned) // 2] if planned else None
        stages[stage["stage"]] = {
            "tomograms": len(planned), "blocks": sum(planned), "fewest": min(planned, default=None),
            "median": middle, "most": max(planned, default=None),
        }  # fmt: skip
    return {
        "stages": stages,
        "memory_budget_bytes_here": memory_budgets(config, choice),
        "workers_here": {kind: local_workers(config, kind) for kind in choice.kinds.values()},
    }


def _ledger(run: Run) -> dict[str, Any]:
    """Count units and objects by stage."""
    stages: dict[str, Any] = {}
    for stage in run.ledger.names():
        units = run.ledger.names(stage)
        stages[stage] = {"units": len(units), "of_one": {}}
        for unit in units[:3]:  # what the records of one look like: an odd one shows here
            keys = run.ledger.names(f"{stage}/{unit}")
            stages[stage]["of_one"][unit] = {k: run.ledger.names(f"{stage}/{unit}/{k}") for k in keys[:3]}
    folder = run.folder.child("ledger")
    return {
        "stages": stages,
        "refits": folder.read_json("refits.json") if folder.exists("refits.json") else {},
    }


def _engines(run: Run, last: int) -> dict[str, Any]:
    """Say which engines the last drives asked for, and who holds the lock; hosts stay."""
    started = []
    for names in drives(run, last).values():
        first = run.folder.read_bytes(f"logs/{names[0]}").partition(b"\n")[0]
        started.append(json.loads(first))
    folder = run.folder.child("ledger")
    lock = folder.read_json("driver.json") if folder.exists("driver.json") else None
    return {"drives": started, "lock": lock}


def _card(run: Run, name: str, redactor: Redactor) -> str:
    text = run.folder.read_bytes(name).decode()
    if name.endswith(".json"):
        return json.dumps(redactor.value(json.loads(text)), indent=1)
    return tomli_w.dumps(redactor.value(tomllib.loads(text)))


def _log(run: Run, names: list[str], redactor: Redactor) -> str:
    """Return the first line of a drive's log, and its end; every line is read, and written anew."""
    pieces: list[bytes] = []
    for name in reversed(names):
        pieces.insert(0, run.folder.read_bytes(f"logs/{name}"))
        if sum(map(len, pieces)) > LOG_BYTES:
            break
    whole = len(pieces) == len(names)
    end = b"".join(pieces)
    lines = end[-LOG_BYTES:].splitlines()[0 if len(end) <= LOG_BYTES else 1 :]
    if not whole or len(end) > LOG_BYTES:
        first = run.folder.read_bytes(f"logs/{names[0]}").partition(b"\n")[0]
        lines = [first, b'{"event": "LinesLeftOut"}', *lines]
    kept = []
    for line in lines:
        try:
            kept.append(json.dumps(redactor.value(json.loads(line))))
        except ValueError:
            kept.append('{"event": "TornLine"}')
    return "\n".join(kept) + "\n"


def _failures(run: Run, redactor: Redactor) -> str:
    """Write `failures.csv` anew, cell by cell: quotes that are doubled hide what stands between them."""
    text = run.folder.read_bytes("failures.csv").decode(errors="replace")
    stream = io.StringIO()
    rows = csv.reader(io.StringIO(text[:PART_BYTES]))
    csv.writer(stream, lineterminator="\n").writerows([redactor.text(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _files(run: Run) -> Iterator[str]:
    """List files with their sizes, folder by folder; of many in one folder the first and a count."""
    due, seen = [""], 0
    while due and seen < LISTED_FOLDERS:
        under, seen = due.pop(0), seen + 1
        files, folders, whole = run.folder.sizes(under, limit=20_000)
        place = f"{under}/" if under else ""
        yield f"{place or '.'}  {len(files)} files, {sum(size for _, size in files)} bytes" + (
            "" if whole else ", and more"
        )
        yield from (f"  {size:>14}  {place}{name}" for name, size in files[:SHOWN_FILES])
        if len(files) > SHOWN_FILES:
            yield f"  … and {len(files) - SHOWN_FILES} more"
        due += [f"{place}{name}" for name in folders[:SHOWN_UNITS]]
        if len(folders) > SHOWN_UNITS:
            yield f"  … and {len(folders) - SHOWN_UNITS} more folders"
    if due:
        yield f"… and {len(due)} folders that were not looked into"
