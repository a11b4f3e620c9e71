"""The graph of a run's units: which is ready, what its key is, and with what grant its stage works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.config.run import SourceConfig, parameters_key
from cryoscale.data.access import Access
from cryoscale.data.clusters import Selection
from cryoscale.data.ledger import ALL, UnitLedger
from cryoscale.data.ledger_index import LedgerIndex
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError
from cryoscale.formats.inputs import source_exists, source_stamp
from cryoscale.pipeline.order import Step
from cryoscale.pipeline.outside import content_of
from cryoscale.pipeline.unit import TERMINAL, Unit

MEASURED, COMPARED = "ingest", "pick"  # where voxel sizes become known; the first step that needs them alike
MOST_LOOKED_AT = 32  # tomograms with picks of which one is looked for whose picks still hold


class UnitGraph:
    """All units of a run, and the rules that say when one is ready and what its key is.

    Parameters
    ----------
    run : Run
        The run on storage.
    config : RunConfig
        Resolved parameters.
    steps : list of Step
        In order.
    generations : mapping
        How often each fit was renewed on request, and what it keeps from the earlier one.
    """

    def __init__(
        self, run: Run, config: RunConfig, steps: list[Step], generations: Mapping[str, Any]
    ) -> None:
        self.run, self.config, self.steps = run, config, steps
        self.generations = generations
        self.by_step = {step.name: step for step in steps}
        self.sources: dict[str, SourceConfig] = {source.name: source for source in config.inputs}
        self.tomograms = sorted(self.sources)
        self.units: dict[tuple[str, str], Unit] = {}
        for step in steps:
            for tomogram in self.tomograms if step.scope == "tomogram" else [ALL]:
                self.units[step.name, tomogram] = Unit(step, tomogram)
        self._looked_for_picks = False
        self._reference: tuple[str, float] | None = None
        self._reference_settled = False
        self._reference_told = False
        self._selection: Selection | None = None  # as it was when the first unit passed the gate
        self.records = LedgerIndex(run.ledger)  # a driver lists it, nobody else may write there then
        self._fits_before: dict[str, list[str]] = {}
        self._not_ended: dict[str, list[Unit]] = {}
        self._not_frozen: dict[str, tuple[str, ...]] = {}

    # -- readiness ------------------------------------------------------------------------------------------

    def inputs_of(self, unit: Unit) -> list[Unit]:
        """List the units that this one reads from."""
        found = []
        for name in unit.step.after:
            if self.by_step[name].scope == "all":
                found.append(self.units[name, ALL])
            elif unit.step.scope == "tomogram":
                found.append(self.units[name, unit.tomogram])
            else:
                found += [self.units[name, tomogram] for tomogram in self.fit_set(unit.step)]
        return found

    def dependents(self, unit: Unit) -> list[Unit]:
        """List the pending units whose readiness may change when this one ends."""
        found = []
        for step in self.steps:
            direct = unit.step.name in (*step.after, *step.behind)
            # A fit that stands already under its key needs only the fits before it, not their tomograms.
            frozen = step.fit and unit.step.scope == "all"
            if not (direct or frozen):
                continue
            if step.scope == "all":
                found.append(self.units[step.name, ALL])
            elif unit.tomogram != ALL:
                found.append(self.units[step.name, unit.tomogram])
            else:
                found += [self.units[step.name, tomogram] for tomogram in self.tomograms]
        if unit.step.name == MEASURED and not self._reference_told and self.reference_settled:
            self._reference_told = True
            found += [self.units[COMPARED, name] for name in self.tomograms if (COMPARED, name) in self.units]
        return [other for other in found if other.state == "pending"]

    def fit_set(self, step: Step) -> list[str]:
        """List the tomograms that a whole-data-set step looks at."""
        chosen = set(step.only(self.config) or self.config.run.fit_tomograms) if step.fit else set()
        return [name for name in self.tomograms if not chosen or name in chosen]

    def frozen(self, unit: Unit) -> bool:
        """Whether a fit stands already under the key that it would have now."""
        if not unit.step.fit:
            return False
        fits = [self.units[name, ALL] for name in self._upstream_fits(unit.step)]
        if any(u.state != "sealed" for u in fits):
            return False
        behind = tuple(u.identity for u in fits)
        if self._not_frozen.get(unit.step.name) == behind:  # as it was after the last tomogram
            return False
        self._not_frozen[unit.step.name] = behind
        chosen = None
        if unit.step.chosen:
            try:
                chosen = self._selection or self.run.clusters.chosen()
            except ConfigurationError:  # the unit's own gate says so
                return False
        key = self.key_of(unit, chosen) if chosen or not unit.step.chosen else ""
        if not key or self.records.sealed(*unit.name, key) is None:
            return False
        del self._not_frozen[unit.step.name]
        self._selection = chosen or self._selection
        return True

    def _upstream_fits(self, step: Step) -> list[str]:
        if step.name not in self._fits_before:
            names: list[str] = []
            for name in step.after:
                other = self.by_step[name]
                names += [name] if other.scope == "all" else self._upstream_fits(other)
            self._fits_before[step.name] = names
        return self._fits_before[step.name]

    def ready(self, unit: Unit) -> str:
        """Say "yes", "no", or "blocked" for a pending unit."""
        if self.frozen(unit):
            return "yes"
        if any(self.units[name, ALL].state not in TERMINAL for name in unit.step.behind):
            return "no"
        shared = [self.units[name, ALL] for name in unit.step.after if self.by_step[name].scope == "all"]
        if any(u.state in ("failed", "blocked", "waiting") for u in shared):
            return "blocked"
        if unit.step.scope == "tomogram":
            return self._ready_alone(unit)
        if not self._own_ended(unit) or any(u.state != "sealed" for u in shared):
            return "no"
        reads_tomograms = any(self.by_step[name].scope == "tomogram" for name in unit.step.after)
        return "blocked" if reads_tomograms and not self.usable(unit) else "yes"

    def _ready_alone(self, unit: Unit) -> str:
        """Say the same of a unit of one tomogram, no fit before which has failed."""
        inputs = self.inputs_of(unit)
        if any(u.state in ("failed", "blocked", "waiting") for u in inputs):
            return "blocked"
        if any(u.state != "sealed" for u in inputs):
            return "no"
        if unit.step.name != COMPARED or self.reference_settled:
            return "yes"
        return "yes" if self.records.sealed(*unit.name, self.key_of(unit)) else "no"

    def _own_ended(self, unit: Unit) -> bool:
        """Whether all tomograms' units that a whole-data-set unit reads have ended; none is asked again."""
        name = unit.step.name
        if name not in self._not_ended:
            self._not_ended[name] = [u for u in self.inputs_of(unit) if u.step.scope == "tomogram"]
        left = self._not_ended[name]
        while left and left[-1].state in TERMINAL:
            left.pop()
        return not left

    def usable(self, unit: Unit) -> list[str]:
        """Tomograms whose inputs for a whole-data-set unit are all there."""
        good = []
        for tomogram in self.fit_set(unit.step):
            own = [n for n in unit.step.after if self.by_step[n].scope == "tomogram"]
            if all(self.units[n, tomogram].state == "sealed" for n in own):
                good.append(tomogram)
        return good

    # -- voxel size -----------------------------------------------------------------------------------------

    @property
    def reference_settled(self) -> bool:
        """Whether it is known which tomogram's voxel size counts where no working voxel size is set.

        It is that of the first tomogram by name whose picks stand already, else of the first that can be
        ingested. So it depends on what stands and on names, not on what is done first.
        """
        if self._reference_settled:
            return True
        if self.config.run.working_voxel_size_angstrom is not None or COMPARED not in self.by_step:
            self._reference_settled = self._reference_told = True
        elif not self._looked_for_picks:
            self._looked_for_picks = True
            self._reference = self._standing_reference()
            self._reference_settled = self._reference_told = self._reference is not None
        return self._reference_settled or self._settle_by_name()

    def _settle_by_name(self) -> bool:
        for name in self.tomograms:
            unit = self.units[MEASURED, name]
            if unit.state not in TERMINAL:
                return False
            if unit.state == "sealed" and (size := unit.value.get("voxel_size_angstrom")):
                self._reference = (name, float(size))
                break
        self._reference_settled = True
        return True

    def _standing_reference(self) -> tuple[str, float] | None:
        """Return a tomogram whose picks stand under its present key, and its voxel size."""
        known = set(self.run.ledger.names(COMPARED))
        steps = self.steps[: self.steps.index(self.by_step[COMPARED]) + 1]
        for name in [name for name in self.tomograms if name in known][:MOST_LOOKED_AT]:
            alone = self.config.model_copy(update={"inputs": (self.sources[name],)})
            graph = UnitGraph(self.run, alone, steps, self.generations)
            if all(map(graph._take_sealed, graph.units.values())):
                return name, float(graph.units[MEASURED, name].value["voxel_size_angstrom"])
        return None

    def _take_sealed(self, unit: Unit) -> bool:
        """Take over what the ledger says of a unit whose inputs stand; say whether it is sealed."""
        unit.key = self.key_of(unit)
        sealed = UnitLedger(self.run.ledger, *unit.name, unit.key).sealed
        if sealed is None:
            return False
        unit.state, unit.value = "sealed", sealed["value"]
        unit.identity = str(unit.value.get("hash", unit.key))
        return True

    # -- keys -----------------------------------------------------------------------------------------------

    def key_of(self, unit: Unit, selection: Selection | None = None) -> str:
        """Hash what the unit's artifact depends on; its inputs must be sealed (fits: only earlier fits).

        A unit that needs a selection takes the one given, else the run's.

        Raises
        ------
        ConfigurationError
            The unit needs a selection, and that of the run cannot be used.
        """
        step = unit.step
        if step.name == "identify" and (known := self._known_key(unit.tomogram)):
            return known
        parts: list[Any] = [step.name, step.stage.version, step.parameters(self.config)]
        if unit.tomogram != ALL and (own := step.own(self.config, unit.tomogram)):
            parts.append(own)
        parts.append(self._generation(step.name))
        if outside := self._outside(unit):
            parts.append(outside)
        if step.chosen or step.fit:
            chosen = selection or self.selection() if step.chosen else None
            parts.append(chosen.content if chosen else None)
        if step.fit:
            parts += [self._chain(name) for name in step.after]
            return parameters_key(parts)
        for source in self.inputs_of(unit):
            if source.state == "sealed":
                parts.append(
                    [source.step.name, source.tomogram if step.scope == "all" else "", source.identity]
                )
        if step.name == "identify":
            parts.append(self._source_stamp(unit.tomogram))
        if step.name == MEASURED and (given := self.sources[unit.tomogram].voxel_size_angstrom):
            parts.append(given)
        return parameters_key(parts)

    def _generation(self, name: str) -> dict[str, Any]:
        """Return how often a fit was renewed and the clustering whose ids it keeps.

        Ids are kept only within one latent space: centres of two encoders cannot be compared.
        """
        entry = dict(self.generations.get(name, {}))
        space = entry.get("space")
        kept = {key: entry[key] for key in ("generation", "earlier") if key in entry}
        if not space or space != self.units["train_encoder", ALL].identity:
            kept.pop("earlier", None)
        return kept

    def _chain(self, name: str) -> str:
        """Hash the parameters of a step and of all before it: what a fit depends on beside its tomograms."""
        step = self.by_step[name]
        if step.scope == "all" and step.fit:
            return self.units[name, ALL].identity
        parts: list[Any] = [name, step.stage.version, step.parameters(self.config)]
        return parameters_key(parts, [self._chain(earlier) for earlier in step.after])

    def _source_stamp(self, tomogram: str) -> list[Any]:
        source = self.sources[tomogram]
        try:
            return [source.path, *source_stamp(self.run.source_path(source.path))]
        except OSError:
            return [source.path]  # gone: `identify` will say so, under a key of its own

    def _known_key(self, tomogram: str) -> str | None:
        """Return the sealed key of a source that is gone but was ingested before: nothing is lost then."""
        source = self.sources[tomogram]
        if source_exists(self.run.source_path(source.path)):
            return None
        for key in self.run.ledger.names(f"identify/{tomogram}"):
            ingested = self.records.sealed("identify", tomogram, key) is not None
            if ingested and self.run.tomogram(tomogram).exists("zarr.json"):
                return key
        return None

    def _outside(self, unit: Unit) -> dict[str, Any]:
        """Recognise the files that a unit reads beside the run; one that is gone is what it was when used.

        So a mask, positions, or given weights may go once they were used, as sources may.
        """
        named = [(p, p) if isinstance(p, str) else p for p in unit.step.outside(self.config) if p]
        unit.outside = {
            name: place and content_of(place.replace("{tomogram}", unit.tomogram)) for name, place in named
        }
        if None in unit.outside.values():
            for key in self.run.ledger.names("/".join(unit.name)):
                sealed = UnitLedger(self.run.ledger, *unit.name, key).sealed
                last = sealed["value"].get("outside", {}) if sealed else {}
                unit.outside = {p: last.get(p) if c is None else c for p, c in unit.outside.items()}
        return unit.outside

    def selection(self) -> Selection | None:
        """Return the person's selection if it fits the present clustering; None otherwise.

        Once there is one it stays the same for as long as this graph is at work, whatever a person edits
        meanwhile: keys and results of all units that need it are of one selection.

        Raises
        ------
        ConfigurationError
            It is for the present clustering and cannot be used.
        """
        if self._selection is None:
            self._selection = self.run.clusters.chosen()
        return self._selection

    def stands(self, unit: Unit) -> bool:
        """Return whether what a sealed unit made is still there, where it is known what to look for."""
        product = unit.step.product
        return product is None or product(self.run, unit.tomogram).exists()

    def forget(self, name: tuple[str, str]) -> None:
        """Remove all marks of a step of a tomogram, whatever their key."""
        if self.records.names(*name) != []:
            self.run.ledger.delete("/".join(name))
        self.records.drop(*name)

    # -- access ---------------------------------------------------------------------------------------------

    def access_for(self, unit: Unit) -> Access:
        """Make the grant with which a unit's stage works; small, since it travels with every task.

        Raises
        ------
        ConfigurationError
            The unit needs a selection, none was read yet, and that of the run cannot be used.
        """
        stage, whole = unit.step.stage, unit.tomogram == ALL
        read = self.inputs_of(unit)
        if unit.step.fit:
            direct = {u.step.name for u in read}
            behind = set(self._upstream_fits(unit.step)) - direct
            read += [self.units[name, ALL] for name in sorted(behind)]
        upstream = {
            f"{u.step.name}/{u.tomogram}" if u.tomogram != ALL else u.step.name: u.identity
            for u in read
            if u.state == "sealed"
        }
        inputs = () if whole else (self.sources[unit.tomogram],)
        return Access(
            run=self.run,
            config=self.config.model_copy(update={"inputs": inputs}),
            tomogram="" if whole else unit.tomogram,
            tomograms=tuple(self.usable(unit)) if whole else (),
            reads=stage.reads,
            writes=stage.writes,
            key=unit.key,
            upstream=upstream,
            earlier=str(self._generation(unit.step.name).get("earlier", "")),
            chosen=self.selection() if unit.step.chosen else None,
            reference=self._reference if self.reference_settled else None,
        )


def unfinished(graph: UnitGraph) -> list[Unit]:
    """List the units that did not end sealed, in order."""
    return [unit for unit in graph.units.values() if unit.state in TERMINAL - {"sealed"}]
