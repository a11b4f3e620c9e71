"""What a stage may touch: exactly the artifacts that it declares, of one tomogram or of the fitted set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.config.simulate import SimulateConfig
from cryoscale.data.clusters import ClusterFolder, Selection
from cryoscale.data.fence import Fence
from cryoscale.data.folder import Folder
from cryoscale.data.ledger import ALL
from cryoscale.data.pyramid import Pyramid
from cryoscale.data.rows import Encodings, Picks, count_picks, read_assignments, read_pick_notes, read_picks
from cryoscale.data.run import Run
from cryoscale.data.subtomograms import Subtomograms
from cryoscale.data.tomogram import (
    VOXEL_SIZE_TOLERANCE,
    LabelVolume,
    Tomogram,
    TomogramFacts,
    common_voxel_size,
)
from cryoscale.data.truth import TRUTH_LABELS, Truth, read_truth
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError, StateError, UndeclaredAccessError

ARTIFACTS = frozenset(
    {
        "source", "tomogram", "picks", "encodings", "encoder", "clusters", "assignments",
        "review", "selection", "segmenter", "labels", "instances", "annotation", "classes",
        "densities", "truth", "scene", "tilts", "simulated", "truth_labels", "subtomograms",
    }
)  # fmt: skip


ANNOTATION = "annotation"  # the label volume that a person's drawing becomes


@dataclass(frozen=True)
class Access:
    """A picklable grant: the run, a tomogram (or several), and which artifacts may be read and written.

    Parameters
    ----------
    run : Run
        The run on storage.
    config : RunConfig
        All parameters, resolved when the driver started; of the inputs only the unit's own.
    tomogram : str
        Name of the tomogram that the unit works on; empty for whole-data-set stages.
    tomograms : tuple of str
        For whole-data-set stages: the tomograms to fit on, in order.
    reads, writes : frozenset of str, str
        Names of artifacts.
    key : str
        What the written artifact depends on.
    upstream : mapping
        Keys and hashes of what is read, to be recorded beside the result.
    earlier : str
        Hash of an earlier clustering whose ids a re-fit keeps; empty for none.
    chosen : Selection or None
        The person's selection, as it was read when the unit's key was made.
    reference : tuple of (str, float) or None
        Where no working voxel size is set: a tomogram that all must agree with, and its voxel size, Å.
    plan : str
        Hash of the cut into blocks; empty without one.
    fence : Fence or None
        Stands before all that is written, on workers.
    """

    run: Run
    config: RunConfig
    tomogram: str
    tomograms: tuple[str, ...]
    reads: frozenset[str]
    writes: str
    key: str
    upstream: Mapping[str, str] = field(default_factory=dict)
    earlier: str = ""
    chosen: Selection | None = None
    reference: tuple[str, float] | None = None
    plan: str = ""
    fence: Fence | None = None

    def of_plan(self, plan: str) -> Access:
        """Return the same grant, for one cut into blocks alone."""
        return replace(self, plan=plan)

    def fenced(self, stage: str, marker: str, *, until: str = "") -> Access:
        """Return the same grant, good while the ledger has `marker`, and no `until`, under the unit's key."""
        unit = self.run.ledger.child(stage, self.tomogram or ALL, self.key)
        return replace(self, fence=Fence(unit, marker, self.plan, until))

    def _own(self, folder: Folder) -> Folder:
        return replace(folder, fence=self.fence)

    def _may(self, artifact: str, *, write: bool = False) -> None:
        allowed = {self.writes} if write else {*self.reads, self.writes}
        if artifact not in allowed:
            verb = "write" if write else "read"
            raise UndeclaredAccessError(
                f"tried to {verb} '{artifact}', which is not declared (reads {sorted(self.reads)}, "
                f"writes '{self.writes}')"
            )

    def _name(self, tomogram: str | None) -> str:
        return self.tomogram if tomogram is None else tomogram

    def source(self) -> dict[str, Any]:
        """Return what `run.toml` says of the tomogram's source file; `place` is where the file is."""
        self._may("source")
        for source in self.config.inputs:
            if source.name == self.tomogram:
                return {**source.model_dump(), "place": self.run.source_path(source.path)}
        raise UndeclaredAccessError(f"the run has no input named '{self.tomogram}'")

    def given_voxel_size(self) -> float | None:
        """Return the voxel size, Å, that counts instead of the header's: this input's, or the whole run's."""
        return self.source()["voxel_size_angstrom"] or self.config.ingest.voxel_size_angstrom

    def open_tomogram(self, tomogram: str | None = None) -> Tomogram:
        """Open a tomogram for reading."""
        self._may("tomogram")
        return Tomogram(self.run.tomogram(self._name(tomogram)))

    def working_level(self, tomogram: str | None = None) -> int:
        """Return the pyramid level that stages work on.

        Raises
        ------
        ConfigurationError
            No level has the working voxel size; or none is set, and the tomogram's voxel size is another than
            that of the run's other tomograms.
        """
        facts = self.open_tomogram(tomogram).facts
        asked = self.config.run.working_voxel_size_angstrom
        if asked is None and self.reference is not None:
            self._check_agreement(facts, *self.reference)
        return facts.level_for(asked)

    def _check_agreement(self, facts: TomogramFacts, reference: str, size: float) -> None:
        mine = facts.levels[0].voxel_size_angstrom
        if abs(mine / size - 1) <= VOXEL_SIZE_TOLERANCE:
            return
        common = common_voxel_size([facts, self.open_tomogram(reference).facts])
        raise ConfigurationError(
            f"tomogram '{facts.name}' has a voxel size of {mine:g} Å, '{reference}' one of {size:g} Å, and "
            "run.working_voxel_size_angstrom is not set: patches of both would not show the same.",
            remedy="Put it into a run of its own."
            if common is None
            else f"Set run.working_voxel_size_angstrom = {common:g} (--set of init), or put it into a run of "
            "its own.",
        )

    def tomogram_folder(self) -> Folder:
        """Return the group of the tomogram that this stage writes."""
        self._may("tomogram", write=True)
        return self._own(self.run.tomogram(self.tomogram))

    def picks(self, tomogram: str | None = None) -> Picks:
        """Read the picks of a tomogram."""
        self._may("picks")
        return read_picks(self.run.picks, self._name(tomogram))

    def pick_notes(self, tomogram: str | None = None) -> dict[str, str]:
        """Read what was recorded beside the picks of a tomogram."""
        self._may("picks")
        return read_pick_notes(self.run.picks, self._name(tomogram))

    def pick_count(self, tomogram: str | None = None) -> int:
        """Return the number of picks of a tomogram, touching metadata only."""
        self._may("picks")
        return count_picks(self.run.picks, self._name(tomogram))

    def encodings(self, tomogram: str | None = None) -> Encodings:
        """Return the encodings of a tomogram."""
        self._may("encodings")
        folder = self.run.encodings(self._name(tomogram))
        return Encodings(self._own(folder) if self.writes == "encodings" else folder)

    def assignments(self, tomogram: str | None = None) -> Any:
        """Read cluster ids and distances of a tomogram's picks."""
        self._may("assignments")
        return read_assignments(self.run.assignments, self._name(tomogram))

    def clusters(self) -> ClusterFolder:
        """Return the folder of clusters."""
        if not {"clusters", "selection", "review"} & {*self.reads, self.writes}:
            self._may("clusters")
        folder = self.run.clusters.folder
        return ClusterFolder(self._own(folder) if self.writes in ("clusters", "review") else folder)

    def selection(self) -> Selection:
        """Return the person's selection of clusters.

        Raises
        ------
        StateError
            There was none when the unit's key was made.
        """
        self._may("selection")
        if self.chosen is None:
            raise StateError(
                "no clusters are selected.", remedy="Edit clusters/selection.toml, then run again."
            )
        return self.chosen

    def model(self, name: str) -> ModelFolder:
        """Return the folder of a model, "encoder" or "segmenter"."""
        self._may(name)
        folder = self.run.model(name).folder
        return ModelFolder(self._own(folder) if name == self.writes else folder)

    def label_volume(self, *, write: bool = False) -> LabelVolume:
        """Open the label volume named in the configuration."""
        self._may("labels", write=write)
        return LabelVolume(self._group(write=write), self.config.segment.labels, writable=write)

    def _group(self, tomogram: str | None = None, *, write: bool) -> Folder:
        folder = self.run.tomogram(self._name(tomogram))
        return self._own(folder) if write else folder

    def label_group(self) -> Folder:
        """Return the group of the tomogram whose label volumes and companions this stage writes."""
        self._may("labels", write=True)
        return self._group(write=True)

    def annotation(self, tomogram: str | None = None, *, write: bool = False) -> LabelVolume:
        """Open the label volume that a person drew, as it was taken into the run."""
        self._may("annotation", write=write)
        return LabelVolume(self._group(tomogram, write=write), ANNOTATION, writable=write)

    def drawn_labels(self, tomogram: str) -> LabelVolume:
        """Open the labels to train on: what a person drew, or what a simulated run knows."""
        if self.config.supervised.drawn is not None:
            return self.annotation(tomogram)
        self._may("truth_labels")
        return LabelVolume(self.run.tomogram(tomogram), TRUTH_LABELS)

    def subtomograms(self, tomogram: str) -> Subtomograms:
        """Open the boxes with truth that were cut from a simulated tomogram."""
        self._may("subtomograms")
        return Subtomograms(self.run.subtomograms(tomogram))

    def simulation(self) -> SimulateConfig:
        """Return what the tomogram is simulated from, its variant applied.

        Raises
        ------
        StateError
            The run is not simulated.
        """
        if self.config.simulate is None:
            raise StateError("the run has no table [simulate].")
        return self.config.simulate.for_tomogram(self.tomogram) if self.tomogram else self.config.simulate

    def truth(self) -> Truth:
        """Read what stands where in the tomogram."""
        self._may("truth")
        return read_truth(self.run.truth, self.tomogram)

    def densities(self) -> Folder:
        """Return the folder of densities."""
        self._may("densities")
        return self.run.densities

    def scene(self, name: str, *, write: bool = False) -> Pyramid:
        """Open the noise-free scene, "signal" or "labels"."""
        self._may("scene", write=write)
        folder = self.run.scene(self.tomogram).child(name)
        return Pyramid(self._own(folder) if write else folder, writable=write)

    def truth_labels(self, *, write: bool = False) -> LabelVolume:
        """Open the true label volume of a simulated tomogram."""
        self._may("truth_labels", write=write)
        return LabelVolume(self._group(write=write), TRUTH_LABELS, writable=write)

    def tilts(self, name: str, *, write: bool = False) -> Pyramid:
        """Open the imaged projections (tilt, y, x), "signal" or "noise"."""
        self._may("tilts", write=write)
        folder = self.run.tilts(self.tomogram).child(name)
        return Pyramid(self._own(folder) if write else folder, writable=write)

    def output(self) -> Folder:
        """Return the folder that tables of the written artifact go to."""
        folders = {
            "densities": self.run.densities,
            "truth": self.run.truth,
            "simulated": self.run.simulated,
            "subtomograms": self.run.subtomograms(self.tomogram),
            "picks": self.run.picks,
            "instances": self.run.instances,
            "classes": self.run.classes,
            "assignments": self.run.assignments,
            "review": self.run.folder.child("clusters", "review"),
        }
        self._may(self.writes, write=True)
        return self._own(folders[self.writes])

    def parts(self) -> Folder:
        """Return the folder of the parts that this stage's blocks leave for its seal."""
        return self._own(self.run.parts(self.writes, self.tomogram))
