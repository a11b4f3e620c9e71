"""The order of stages: the only place that names one.

A step is a stage with its place: what it comes after, whether it runs once per tomogram or once for the data
set, and which parameters its result depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cryoscale.config import RunConfig
from cryoscale.config.sections import IN_SLICES
from cryoscale.config.simulate import SimulateConfig
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError
from cryoscale.formats.labels import labels_stamp
from cryoscale.stages.annotate import AnnotateStage
from cryoscale.stages.apply import ApplyStage
from cryoscale.stages.assign import AssignStage
from cryoscale.stages.base import Stage
from cryoscale.stages.classify import ClassifyStage
from cryoscale.stages.cluster import ClusterStage
from cryoscale.stages.densities import DensitiesStage, density_files
from cryoscale.stages.encode import EncodeStage
from cryoscale.stages.identify import IdentifyStage
from cryoscale.stages.image import ImageStage
from cryoscale.stages.ingest import IngestStage
from cryoscale.stages.instances import InstancesStage
from cryoscale.stages.paint import PaintStage
from cryoscale.stages.pick import PickStage
from cryoscale.stages.place import PlaceStage
from cryoscale.stages.project import ProjectStage
from cryoscale.stages.reconstruct import ReconstructStage
from cryoscale.stages.review import ReviewStage
from cryoscale.stages.segment import SegmentStage
from cryoscale.stages.subtomograms import SubtomogramsStage
from cryoscale.stages.train_encoder import TrainEncoderStage
from cryoscale.stages.train_segmenter import TrainSegmenterStage
from cryoscale.stages.train_supervised import TrainSupervisedStage
from cryoscale.stages.truth_labels import TruthLabelsStage

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
        `{tomogram}` in a path stands for the name. A pair is a name and where it is found now, if anywhere.
    own : callable
        From the configuration and a tomogram's name to what only this tomogram's result depends on. Fits do
        not see it: another tomogram, or another variant of one, does not renew them.
    rivals : tuple of str
        Steps of other configurations that write the same artifact: once this one begins, theirs is gone.
    only : callable
        From the configuration to the tomograms that a fit looks at; none: `run.fit_tomograms`, or all.
    product : callable
        From run and tomogram to an object that stands as long as the result does, for results that people may
        delete; None where nothing is looked at.
    """

    stage: Stage
    after: tuple[str, ...]
    parameters: Callable[[RunConfig], list[Any]]
    scope: Scope = "tomogram"
    fit: bool = False
    chosen: bool = False
    behind: tuple[str, ...] = ()
    outside: Callable[[RunConfig], Sequence[str | tuple[str, str | None] | None]] = lambda c: []
    own: Callable[[RunConfig, str], list[Any]] = lambda c, tomogram: []
    rivals: tuple[str, ...] = ()
    only: Callable[[RunConfig], tuple[str, ...]] = lambda c: ()
    product: Callable[[Run, str], Folder] | None = None

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name


_HOW_NOT_WHAT = {"threads", "weights"}  # keys that do not change what a fit is; weights enter by their hash
_FROM_OUTSIDE = {"labels", "tomograms", "subtomograms"}  # files enter by what they hold
_OF_SLICES = {"axis", "tile_voxels", "neighbours"}  # keys of [supervised] that networks on boxes do not know
_SUPERVISED_ONLY = {"volumes", "probabilities", "densities"}  # keys of [segment] that clusters do not know


def simulation_steps(simulate: SimulateConfig) -> list[Step]:
    """List the steps from settings to a tomogram's file; none of it is there for real tomograms."""
    scene, imaging, seed = simulate.scene, simulate.imaging, simulate.seed

    def crowd(_: RunConfig, tomogram: str) -> list[Any]:
        return [simulate.number_of(tomogram), simulate.for_tomogram(tomogram).scene.particles]

    def noise(_: RunConfig, tomogram: str) -> list[Any]:
        return [simulate.number_of(tomogram), simulate.for_tomogram(tomogram).imaging.snr]

    names = sorted({p.density for p in scene.particles})
    maps = [names, scene.voxel_size_angstrom, scene.resolution_angstrom]
    steps = [
        Step(
            DensitiesStage(),
            (),
            lambda c: [maps],
            scope="all",
            outside=lambda c: density_files(simulate),
        ),
        Step(PlaceStage(), ("densities",), lambda c: [scene, seed], own=crowd),
        Step(
            PaintStage(),
            ("densities", "place"),
            lambda c: [scene, seed],
            product=lambda run, tomogram: run.scene(tomogram),
        ),
    ]
    if imaging.route == "direct":
        image = Step(
            ImageStage(), ("paint",), lambda c: [imaging, seed], own=noise, rivals=("reconstruct",),
            product=_simulated_file,
        )  # fmt: skip
        return [*steps, image]
    project = Step(
        ProjectStage(), ("paint",), lambda c: [imaging, seed], own=noise,
        product=lambda run, tomogram: run.tilts(tomogram),
    )  # fmt: skip
    reconstruct = Step(
        ReconstructStage(), ("project",), lambda c: [], rivals=("image",), product=_simulated_file
    )
    return [*steps, project, reconstruct]


def _simulated_file(run: Run, tomogram: str) -> Folder:
    return run.simulated.child(f"{tomogram}.mrc")


def truth_steps(simulate: SimulateConfig) -> list[Step]:
    """List the steps that put the truth beside an ingested tomogram."""
    steps = [Step(TruthLabelsStage(), ("ingest", "place", "paint"), lambda c: [])]
    if simulate.subtomograms is not None:
        after = ("ingest", "densities", "place", "truth_labels")
        drawn = [simulate.subtomograms, simulate.tomograms, simulate.seed]
        steps.append(Step(SubtomogramsStage(), after, lambda c: [drawn]))
    return steps


def steps_for(config: RunConfig) -> list[Step]:
    """List the steps that a configuration asks for, in order."""
    simulated = simulation_steps(config.simulate) if config.simulate else []
    known = truth_steps(config.simulate) if config.simulate else []
    given_encoder = config.encoder.weights is not None
    patch = config.patch
    encoder = config.encoder.weights or config.encoder.model_dump(
        mode="json", exclude={*_HOW_NOT_WHAT, "inference_precision"}
    )
    segmenter = config.segmenter.weights or config.segmenter.model_dump(mode="json", exclude=_HOW_NOT_WHAT)
    steps = [
        *simulated,
        Step(IdentifyStage(), tuple(step.name for step in simulated[-1:]), lambda c: []),
        Step(IngestStage(), ("identify",), lambda c: [c.ingest]),
        *known,
        Step(
            PickStage(),
            ("ingest",),
            lambda c: [c.pick, c.run.working_voxel_size_angstrom, patch],
            outside=lambda c: [c.pick.mask, c.pick.positions],
        ),
    ]
    if config.supervised.model is not None:
        return [*steps, *_supervised_steps(config)]
    steps += [
        Step(
            TrainEncoderStage(),
            () if given_encoder else ("pick",),
            lambda c: [encoder] if given_encoder else [encoder, patch, c.run.fit_tomograms],
            scope="all",
            fit=True,
            outside=lambda c: [c.encoder.weights],
        ),
        Step(EncodeStage(), ("pick", "train_encoder"), lambda c: [patch, c.encoder.inference_precision]),
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
    return [*steps, *_labelling_steps(config, segmenter)]


def _labelling_steps(config: RunConfig, segmenter: Any) -> list[Step]:
    """List the steps from clusters to objects; `segmenter` is what its training depends on."""
    given_segmenter, drawn = config.segmenter.weights is not None, config.segment.mode == "decoded"
    patch, steps = config.patch, []
    if not drawn:
        steps.append(
            Step(
                TrainSegmenterStage(),
                () if given_segmenter else ("assign", "train_encoder"),
                lambda c: [segmenter] if given_segmenter else [segmenter, patch, c.run.fit_tomograms],
                scope="all",
                fit=True,
                rivals=("train_supervised",),
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
            lambda c: [
                c.segment.model_dump(mode="json", exclude=_SUPERVISED_ONLY),
                patch,
                *([c.segmenter.level] if drawn else []),
            ],
            chosen=not (given_segmenter and config.segment.mode == "dense"),
            behind=("review",) if drawn else (),
        ),
        Step(InstancesStage(), ("segment",), lambda c: [c.instances, c.segment.labels]),
    ]
    return steps


def _supervised_steps(config: RunConfig) -> list[Step]:
    """List the steps from picks to what a supervised network says: no clusters, and nobody has to choose."""
    asked, patch = config.supervised, config.patch
    steps: list[Step] = []
    after: tuple[str, ...] = ()
    outside: list[str | None] = [asked.weights]
    if asked.weights is not None:
        pass  # nothing is trained, so nothing is read
    elif asked.drawn is not None:
        steps.append(
            Step(
                AnnotateStage(), ("ingest",), lambda c: [c.supervised.classes, c.supervised.tomograms],
                outside=lambda c: [c.supervised.drawn],
            )
        )  # fmt: skip
        after, outside = ("pick", "annotate"), [*_drawn_files(config)]
    elif asked.truth == "labels":
        after = ("pick", "truth_labels")
    elif asked.subtomograms is None:
        after = ("pick", "subtomograms")
    else:
        outside = [asked.subtomograms]
    steps.append(
        Step(
            TrainSupervisedStage(), after, _of_training, scope="all", fit=True,
            outside=lambda c: outside, only=lambda c: c.supervised.tomograms, rivals=("train_segmenter",),
        )
    )  # fmt: skip
    behind = ("pick", "train_supervised")
    if asked.classifies:
        steps.append(Step(ClassifyStage(), behind, lambda c: [patch]))
    if asked.segments:
        how = [asked.axis] if asked.model in IN_SLICES else []
        wanted = config.segment.model_dump(mode="json", exclude={"class_of"})
        steps.append(Step(ApplyStage(), behind, lambda c: [wanted, patch, how]))
        if config.segment.volumes != "features":  # objects are found in the merged volume
            steps.append(Step(InstancesStage(), ("segment",), lambda c: [c.instances, c.segment.labels]))
    return steps


def _drawn_files(config: RunConfig) -> list[str]:
    """List the files that hold what was drawn: corrected labels are a new training."""
    asked = config.supervised
    pattern, every = asked.drawn or "", [source.name for source in config.inputs]
    found = [(name, pattern.replace("{tomogram}", name)) for name in asked.tomograms or every]
    return [path for name, path in found if asked.tomograms or labels_stamp(path) is not None]


def _of_training(config: RunConfig) -> list[Any]:
    """Return what a training depends on beside its truth; of given weights, what they must suit."""
    asked, patch = config.supervised, config.patch
    if asked.weights is not None:
        return [asked.weights, asked.model, asked.heads, asked.channels, asked.batch_norm, patch]
    left_out = {*_HOW_NOT_WHAT, *_FROM_OUTSIDE}
    if asked.model not in IN_SLICES:
        left_out |= _OF_SLICES
    if not asked.normalises_batches:
        left_out.add("workers")  # they do what one does, to rounding
    parts: list[Any] = [asked.model_dump(mode="json", exclude=left_out), patch, config.run.fit_tomograms]
    if asked.drawn is None:
        parts.append(asked.tomograms)
    if asked.truth == "subtomograms" and asked.subtomograms is not None:
        parts.append(config.ingest.contrast)  # says how the boxes look
    return parts


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
