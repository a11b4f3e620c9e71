"""The whole configuration of a run, and which tables each stage depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, model_validator

from cryoscale.config.sections import (
    ClusterConfig,
    EncoderConfig,
    ExecutionConfig,
    IngestConfig,
    InstancesConfig,
    PatchConfig,
    PickConfig,
    Positive,
    ReviewConfig,
    RunSection,
    Section,
    SegmentConfig,
    SegmenterConfig,
    SupervisedConfig,
)
from cryoscale.config.simulate import SimulateConfig


class SourceConfig(Section):
    """One input file, as `init` or `--watch` found it."""

    name: str
    path: str
    voxel_size_angstrom: Positive | None = None  # counts instead of the header's; `init --voxel-size` sets it
    content_id: str | None = None  # SHA-256; filled in at ingest when None
    size: int | None = None
    modified: float | None = None


class RunConfig(Section):
    """Everything in `run.toml`."""

    version: int = 1
    run: RunSection = Field(default_factory=RunSection)
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    pick: PickConfig = Field(default_factory=PickConfig)
    patch: PatchConfig = Field(default_factory=PatchConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    review: ReviewConfig = Field(default_factory=ReviewConfig)
    segmenter: SegmenterConfig = Field(default_factory=SegmenterConfig)
    supervised: SupervisedConfig = Field(default_factory=SupervisedConfig)
    segment: SegmentConfig = Field(default_factory=SegmentConfig)
    instances: InstancesConfig = Field(default_factory=InstancesConfig)
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig)
    simulate: SimulateConfig | None = None  # only where the tomograms are simulated

    @model_validator(mode="after")
    def _inputs_are_simulated(self) -> RunConfig:
        """Name the files that are simulated, relative to the run: it can be moved as a whole."""
        if self.simulate is not None:
            names = sorted(self.simulate.names)
            made = tuple(SourceConfig(name=name, path=f"simulated/{name}.mrc") for name in names)
            self.__dict__["inputs"] = made  # frozen for everybody else
        return self

    @model_validator(mode="after")
    def _supervised_has_its_truth(self) -> RunConfig:
        asked, segment = self.supervised, self.segment
        if asked.model is None:
            wanted = {"volumes": segment.volumes != "merged", "probabilities": segment.probabilities,
                      "densities": segment.densities}  # fmt: skip
            if given := [f"segment.{key}" for key, value in wanted.items() if value]:
                raise ValueError(f"{given[0]} is for a network of [supervised]; set supervised.model")
            return self
        if segment.mode == "decoded":
            raise ValueError(
                'segment.mode = "decoded" is of clusters; supervised networks know "dense", "picks"'
            )
        if asked.weights is not None:
            return self
        known = {source.name for source in self.inputs}
        if unknown := [name for name in asked.tomograms if known and name not in known]:
            raise ValueError(
                f"supervised.tomograms names '{unknown[0]}', which the run does not have; "
                f"it has {', '.join(sorted(known)[:20])}"
            )
        own = self.simulate is not None
        if asked.truth == "labels" and asked.labels == "truth" and not own:
            raise ValueError(
                'supervised.labels = "truth" is what a simulated run knows; name the files of drawn labels, '
                "with {tomogram} for the name"
            )
        cut = self.simulate is not None and self.simulate.subtomograms is not None
        if asked.truth == "subtomograms" and asked.subtomograms is None and not cut:
            raise ValueError("supervised.subtomograms: this run has none of its own; name a table of boxes")
        return self

    inputs: tuple[SourceConfig, ...] = ()


def parameters_key(*parts: Any) -> str:
    """Hash what something depends on into 16 hexadecimal digits.

    Parameters
    ----------
    *parts
        Models, strings, numbers, or nested containers of them. Models are hashed by their values, so a
        default written out and a default left out give the same key.
    """
    plain = [part.model_dump(mode="json") if isinstance(part, Section) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
