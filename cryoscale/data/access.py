"""What a stage may touch: exactly the artifacts that it declares, of one tomogram or of the fitted set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.data.clusters import ClusterFolder
from cryoscale.data.folder import Folder
from cryoscale.data.rows import Encodings, Picks, count_picks, read_assignments, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import UndeclaredAccessError

ARTIFACTS = frozenset(
    {
        "source", "facts", "tomogram", "picks", "encodings", "encoder", "clusters", "assignments",
        "review", "selection", "segmenter", "labels", "instances",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Access:
    """A picklable grant: the run, a tomogram (or several), and which artifacts may be read and written.

    Parameters
    ----------
    run : Run
        The run on storage.
    config : RunConfig
        All parameters, resolved when the driver started.
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
        """Return what `run.toml` says of the tomogram's source file."""
        self._may("source")
        for source in self.config.inputs:
            if source.name == self.tomogram:
                return source.model_dump()
        raise UndeclaredAccessError(f"the run has no input named '{self.tomogram}'")

    def open_tomogram(self, tomogram: str | None = None) -> Tomogram:
        """Open a tomogram for reading."""
        self._may("tomogram")
        return Tomogram(self.run.tomogram(self._name(tomogram)))

    def working_level(self, tomogram: str | None = None) -> int:
        """Return the pyramid level that stages work on."""
        facts = self.open_tomogram(tomogram).facts
        return facts.level_for(self.config.run.working_voxel_size_angstrom)

    def tomogram_folder(self) -> Folder:
        """Return the group of the tomogram that this stage writes."""
        self._may("tomogram", write=True)
        return self.run.tomogram(self.tomogram)

    def picks(self, tomogram: str | None = None) -> Picks:
        """Read the picks of a tomogram."""
        self._may("picks")
        return read_picks(self.run.picks, self._name(tomogram))

    def pick_count(self, tomogram: str | None = None) -> int:
        """Return the number of picks of a tomogram, touching metadata only."""
        self._may("picks")
        return count_picks(self.run.picks, self._name(tomogram))

    def encodings(self, tomogram: str | None = None) -> Encodings:
        """Return the encodings of a tomogram."""
        self._may("encodings")
        return Encodings(self.run.encodings(self._name(tomogram)))

    def assignments(self, tomogram: str | None = None) -> Any:
        """Read cluster ids and distances of a tomogram's picks."""
        self._may("assignments")
        return read_assignments(self.run.assignments, self._name(tomogram))

    def clusters(self) -> ClusterFolder:
        """Return the folder of clusters."""
        if not {"clusters", "selection", "review"} & {*self.reads, self.writes}:
            self._may("clusters")
        return self.run.clusters

    def model(self, name: str) -> ModelFolder:
        """Return the folder of a model, "encoder" or "segmenter"."""
        self._may(name)
        return self.run.model(name)

    def label_volume(self, *, write: bool = False) -> LabelVolume:
        """Open the label volume named in the configuration."""
        self._may("labels", write=write)
        return LabelVolume(self.run.tomogram(self.tomogram), self.config.segment.labels, writable=write)

    def output(self) -> Folder:
        """Return the folder that tables of the written artifact go to."""
        folders = {
            "picks": self.run.picks,
            "instances": self.run.instances,
            "assignments": self.run.assignments,
            "review": self.run.folder.child("clusters", "review"),
        }
        self._may(self.writes, write=True)
        return folders[self.writes]

    def parts(self) -> Folder:
        """Return the folder of the parts that this stage's blocks leave for its seal."""
        return self.run.parts(self.writes, self.tomogram)
