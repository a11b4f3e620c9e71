"""The order of stages: the only place that names one.

A step is a stage with its place: what it comes after, whether it runs once per tomogram or once for the data
set, and which parameters its result depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cryoscale.config import RunConfig
from cryoscale.errors import ConfigurationError
from cryoscale.stages.assign import AssignStage
from cryoscale.stages.base import Stage
from cryoscale.stages.cluster import ClusterStage
from cryoscale.stages.encode import EncodeStage
from cryoscale.stages.identify import IdentifyStage
from cryoscale.stages.ingest import IngestStage
from cryoscale.stages.instances import InstancesStage
from cryoscale.stages.pick import PickStage
from cryoscale.stages.review import ReviewStage
from cryoscale.stages.segment import SegmentStage
from cryoscale.stages.train_encoder import TrainEncoderStage
from cryoscale.stages.train_segmenter import TrainSegmenterStage

Scope = Literal["tomogram", "all"]


@dataclass(frozen=True)
class Step:
    """A stage and its place in the order.

    Parameters
    ----------
    stage : Stage
        What is done.
    after : tuple of str
        Names of the steps whose artifacts it reads.
    parameters : callable
        From the configuration to what the result depends on.
    scope : str
        Once per tomogram, or once for all.
    fit : bool
        Whether the result is frozen once made: tomograms added later do not renew it.
    chosen : bool
        Whether it needs a selection of clusters by a person.
    behind : tuple of str
        Names of whole-data-set steps that must have ended first, without being read: what a person looks at
        before choosing.
    outside : callable
        From the configuration to files and model folders that it reads beside the run's own artifacts;
        `{tomogram}` in a path stands for the name.
    """

    stage: Stage
    after: tuple[str, ...]
    parameters: Callable[[RunConfig], list[Any]]
    scope: Scope = "tomogram"
    fit: bool = False
    chosen: bool = False
    behind: tuple[str, ...] = ()
    outside: Callable[[RunConfig], list[str | None]] = lambda c: []

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name


_HOW_NOT_WHAT = {"threads", "weights"}  # keys that do not change what a fit is; weights enter by their hash


def steps_for(config: RunConfig) -> list[Step]:
    """List the steps that a configuration asks for, in order."""
    given_encoder = config.encoder.weights is not None
    given_segmenter = config.segmenter.weights is not None
    patch = config.patch
    encoder = config.encoder.weights or config.encoder.model_dump(mode="json", exclude=_HOW_NOT_WHAT)
    segmenter = config.segmenter.weights or config.segmenter.model_dump(mode="json", exclude=_HOW_NOT_WHAT)
    drawn = config.segment.mode == "decoded"
    steps = [
        Step(IdentifyStage(), (), lambda c: []),
        Step(IngestStage(), ("identify",), lambda c: [c.ingest]),
        Step(
            PickStage(),
            ("ingest",),
            lambda c: [c.pick, c.run.working_voxel_size_angstrom, patch],
            outside=lambda c: [c.pick.mask, c.pick.positions],
        ),
        Step(
            TrainEncoderStage(),
            () if given_encoder else ("pick",),
            lambda c: [encoder] if given_encoder else [encoder, patch, c.run.fit_tomograms],
            scope="all",
            fit=True,
            outside=lambda c: [c.encoder.weights],
        ),
        Step(EncodeStage(), ("pick", "train_encoder"), lambda c: [patch]),
        Step(
            ClusterStage(),
            ("encode",),
            lambda c: [c.cluster, c.run.fit_tomograms],
            scope="all",
            fit=True,
        ),
        Step(AssignStage(), ("encode", "cluster"), lambda c: []),
        Step(ReviewStage(), ("assign",), lambda c: [c.review, patch], scope="all"),
    ]
    if not drawn:
        steps.append(
            Step(
                TrainSegmenterStage(),
                () if given_segmenter else ("assign", "train_encoder"),
                lambda c: [segmenter] if given_segmenter else [segmenter, patch, c.run.fit_tomograms],
                scope="all",
                fit=True,
                chosen=not given_segmenter,
                behind=() if given_segmenter else ("review",),
                outside=lambda c: [c.segmenter.weights],
            )
        )
    # What a mode does not read it does not wait for: dense prediction needs no clusters of its own tomogram.
    segment_after = {
        "dense": ("pick", "train_segmenter"),
        "picks": ("assign", "train_segmenter"),
        "decoded": ("assign", "train_encoder"),
    }[config.segment.mode]
    steps += [
        Step(
            SegmentStage(),
            segment_after,
            lambda c: [c.segment, patch, *([c.segmenter.level] if drawn else [])],
            chosen=not (given_segmenter and config.segment.mode == "dense"),
            behind=("review",) if drawn else (),
        ),
        Step(InstancesStage(), ("segment",), lambda c: [c.instances, c.segment.labels]),
    ]
    return steps


def upto(steps: list[Step], until: str | None) -> list[Step]:
    """Keep the steps up to and including one.

    Raises
    ------
    ConfigurationError
        No step has this name.
    """
    if until is None:
        return steps
    names = [step.name for step in steps]
    if until not in names:
        raise ConfigurationError(f"there is no stage '{until}'; the stages are {', '.join(names)}.")
    return steps[: names.index(until) + 1]
