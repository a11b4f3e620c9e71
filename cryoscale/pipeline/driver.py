"""The driver of a run: lock, engines, events, failures, and the exit code."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.data.clusters import SELECTION, SUGGESTION
from cryoscale.data.ledger import ALL, UnitLedger, forget_all_quarantined, recorded_failures
from cryoscale.data.lock import DriverLock
from cryoscale.data.run import Run
from cryoscale.data.weights import identity_of
from cryoscale.errors import ConfigurationError, CryoscaleError, OvertakenError, SurroundingsError
from cryoscale.pipeline.addresses import check_addresses
from cryoscale.pipeline.attempts import Limits
from cryoscale.pipeline.controller import AFTER_SELECTION, NO_SELECTION, Controller
from cryoscale.pipeline.engines import EngineChoice, Engines, local_workers, memory_budgets
from cryoscale.pipeline.observe import check_metrics, heartbeat, observed
from cryoscale.pipeline.order import steps_for, upto
from cryoscale.pipeline.presence import Presence
from cryoscale.pipeline.units import UnitGraph, unfinished
from cryoscale.runtime.events import Event, EventBus, MemoryWarning, Message
from cryoscale.runtime.signals import raise_again, take_back

REFITS = "refits.json"


@dataclass(frozen=True)
class Options:
    """Where and how to run; nothing here changes a result.

    Parameters
    ----------
    executor : str
        "auto" (Dask for the CPU stages, Ray for the model stages), "serial", "dask" or "ray".
    dask, ray : str or None
        Addresses of running clusters; None starts embedded ones.
    secrets : Path or None
        Folder with the certificates and the token of those clusters.
    metrics : str or None
        HOST:PORT where Prometheus may ask how the run goes; None listens nowhere.
    wait_for_driver_s : float
        How long to wait for another driver of this run to end, before refusing.
    until : str or None
        Last stage to do.
    retry_quarantined : bool
        Try blocks again that were given up.
    accept_suggestions : bool
        Take the suggested selection where a person made none.
    refit : tuple of str
        Fits to renew: "train_encoder", "cluster", "train_segmenter".
    trace : bool
        Write a Chrome trace to `logs/`.
    """

    executor: str = "auto"
    dask: str | None = None
    ray: str | None = None
    secrets: Path | None = None
    metrics: str | None = None
    wait_for_driver_s: float = 0.0
    until: str | None = None
    retry_quarantined: bool = False
    accept_suggestions: bool = False
    refit: tuple[str, ...] = ()
    trace: bool = True


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Parameters
    ----------
    failures : list of dict
        stage, tomogram, block, reason.
    waiting : bool
        Whether a person has to select clusters before the rest can go on.
    sealed : dict of str to int
        Units done per stage.
    problem : str
        Why the selection that there is cannot be used; empty when there simply is none yet.
    """

    failures: list[dict[str, Any]]
    waiting: bool
    sealed: dict[str, int]
    problem: str = ""

    @property
    def exit_code(self) -> int:
        """0 done, 1 some work failed, 2 a selection that cannot be used."""
        if self.problem:
            return 2
        return 1 if self.failures else 0


def run_pipeline(
    run: Run, options: Options, *, listeners: tuple[Callable[[Event], None], ...] = ()
) -> RunResult:
    """Do what is due of a run, and nothing twice.

    Raises
    ------
    SurroundingsError
        Disk, network or workers did not mend in time, nothing can be written into the run, or another
        driver did not end in `options.wait_for_driver_s`; finished work is kept.
    OvertakenError
        Another driver took the run over.
    ConfigurationError
        The configuration, the selection, or a memory plan cannot be used.
    """
    config = run.config
    if not config.inputs:
        raise ConfigurationError(
            f"{run.folder.url} has no inputs.", remedy="Add files: cryoscale init RUN 'recon/*.mrc'"
        )
    _check_fit_tomograms(config)
    check_metrics(options)
    choice = EngineChoice(options.executor, options.dask, options.ray, options.secrets)
    absent = check_addresses(choice)
    bus = EventBus()
    for listener in listeners:
        bus.listen(listener)
    bus.listen(MemoryWarning(bus.emit))
    steps = steps_for(config)
    presence = Presence(
        run.folder.child("ledger"), {step.name: choice.kinds[step.stage.engine] for step in steps}
    )
    bus.listen(presence)
    run.require_writable()
    with (
        _wrapped_os_errors(run),
        run.locked(options.wait_for_driver_s, lambda text: bus.emit(Message(text=text))) as lock,
        presence.shown(lock.beside),
        observed(run, bus, options) as metrics,
        Engines(config, choice, run.folder, bus.emit) as e,
    ):
        for told in absent:
            bus.emit(Message(text=told, level="warning"))
        generations = _generations(run, config, options)
        graph = UnitGraph(run, config, upto(steps, options.until), generations)
        if options.retry_quarantined:
            forget_all_quarantined(run.ledger)
        controller = Controller(
            graph,
            {"cpu": lambda: e.get("cpu"), "model": lambda: e.get("model")},
            bus,
            limits_for(config, choice),
            on_gate=lambda: _accept(run, bus) if options.accept_suggestions else None,
            heartbeat=heartbeat(lambda: _beat(lock), metrics, lambda: controller, e),
            prepare=e.prepare,
        )
        try:
            controller.run()
        except OvertakenError:  # another driver took the run over: its failures are its own
            raise
        except BaseException:
            _write_failures(run, config, graph)
            raise
        _write_failures(run, config, graph)
    return _result(graph, failures_of(graph))


def _beat(lock: DriverLock) -> None:
    """Look whether the run is still ours; and keep our signals, which engines take away again or lose."""
    take_back()
    raise_again()
    lock.heartbeat()


def _check_fit_tomograms(config: RunConfig) -> None:
    """Refuse names that no tomogram has: a fit on nothing, or on less than was asked, would follow."""
    names = {source.name for source in config.inputs}
    for name in config.run.fit_tomograms:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(names)[:20])}."
            raise ConfigurationError(f"run.fit_tomograms names '{name}', which is no tomogram; {hint}")


def _write_failures(run: Run, config: RunConfig, graph: UnitGraph) -> None:
    """Write what failed now, and what is on record of stages that were not looked at."""
    later = [step.name for step in steps_for(config) if step.name not in graph.by_step]
    known = recorded_failures(run.ledger, later, set(graph.tomograms))
    run.write_failures([*failures_of(graph), *known])


def limits_for(config: RunConfig, choice: EngineChoice) -> Limits:
    """Translate the `[execution]` table."""
    execution = config.execution
    budgets = memory_budgets(config, choice)
    workers = {engine: local_workers(config, kind) for engine, kind in choice.kinds.items()}
    return Limits(execution.attempts, execution.pauses, execution.pause_seconds, budgets, workers)


def failures_of(graph: UnitGraph) -> list[dict[str, Any]]:
    """List what failed: each quarantined block, and each unit that failed for another reason."""
    rows: list[dict[str, Any]] = []
    for unit in graph.units.values():
        where = {"stage": unit.step.name, "tomogram": "" if unit.tomogram == ALL else unit.tomogram}
        rows += [{**where, "block": mark.block, "reason": mark.reason} for mark in unit.quarantined]
        if unit.state == "failed" and not unit.quarantined:
            rows.append({**where, "block": "", "reason": unit.reason})
    return rows


def _result(graph: UnitGraph, failures: list[dict[str, Any]]) -> RunResult:
    sealed = {
        step.name: sum(u.state == "sealed" for u in graph.units.values() if u.step is step)
        for step in graph.steps
    }
    waiting = [unit for unit in unfinished(graph) if unit.state == "waiting"]
    problems = [unit.reason for unit in waiting if unit.step.chosen and unit.reason != NO_SELECTION]
    problem = next((text for text in problems if text != AFTER_SELECTION), "")
    return RunResult(failures, bool(waiting), sealed, problem)


def _accept(run: Run, bus: EventBus) -> None:
    """Take the suggested selection where a person made none for this clustering."""
    clusters = run.clusters
    if not clusters.exists or not clusters.folder.exists(SUGGESTION):
        return
    if clusters.chosen() is not None:
        return
    suggestion = clusters.folder.read_toml(SUGGESTION)
    if suggestion.get("clustering") != clusters.card["centers_sha256"]:
        return
    plain = {key: suggestion[key] for key in ("clustering", "classes")}
    if not plain["classes"]:
        raise ConfigurationError(
            "the suggestion selects no cluster: no decoded centre looks like an object.",
            remedy="Look at the contact sheets and write clusters/selection.toml by hand.",
        )
    if clusters.folder.exists(SELECTION):  # a person's work for another clustering
        clusters.folder.write_bytes("selection-earlier.toml", clusters.folder.read_bytes(SELECTION))
    clusters.folder.write_toml(SELECTION, plain)
    bus.emit(Message(text="took the suggested selection (clusters/suggestion.toml)"))


def _generations(run: Run, config: RunConfig, options: Options) -> dict[str, Any]:
    """Read how often each fit was renewed; renew those asked for, keeping cluster ids if that makes sense.

    A request is one until all its fits are sealed: given again after a kill, it goes on where it was.
    """
    folder = run.folder.child("ledger")
    known: dict[str, Any] = folder.read_json(REFITS) if folder.exists(REFITS) else {}
    fits = [step.name for step in steps_for(config) if step.fit]
    asked = sorted(set(options.refit))
    for name in asked:
        if name not in fits:
            raise ConfigurationError(f"'{name}' cannot be re-fitted; the fits are {', '.join(fits)}.")
    sealed = {name: _sealed_keys(run, name) for name in asked}
    pending = {
        name for name in asked if name in known and sealed[name] <= set(known[name].get("replaces", ()))
    }
    if pending and all(known.get(name, {}).get("together") == asked for name in asked):
        return known
    for name in asked:
        if name not in pending:
            known[name] = {
                "generation": known.get(name, {}).get("generation", 0) + 1,
                "replaces": sorted(sealed[name]),
                **(_kept_ids(run) if name == "cluster" else {}),
            }
        known[name]["together"] = asked
    if asked:
        folder.write_json(REFITS, known)
    return known


def _kept_ids(run: Run) -> dict[str, str]:
    """Put the present clustering aside for a renewed one, with the encoder whose latent space it is of."""
    if not run.clusters.exists:
        return {}
    space = run.clusters.card.get("encoder", "")
    if not space and run.model("encoder").exists:  # a card that does not say
        space = identity_of(run.model("encoder").card)
    return {"earlier": run.clusters.keep_earlier(), "space": str(space)}


def _sealed_keys(run: Run, name: str) -> set[str]:
    """Return the keys under which a fit is sealed: one, or none."""
    keys = run.ledger.names(f"{name}/{ALL}")
    return {key for key in keys if UnitLedger(run.ledger, name, ALL, key).sealed is not None}


@contextlib.contextmanager
def _wrapped_os_errors(run: Run) -> Iterator[None]:
    """Say what the system's refusal means for the run; a traceback helps nobody there."""
    try:
        yield
    except CryoscaleError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise SurroundingsError(
            f"{error.filename or run.folder.url}: {error.strerror}.",
            remedy="The run stopped with its work kept; mend this, then give the same command again.",
        ) from error
