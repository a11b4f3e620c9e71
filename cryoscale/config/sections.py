"""One model per table of `run.toml`. Every key carries its unit; an unknown key is an error.

Defaults come from the papers (see the field comments for which) or from measurements on simulated cells,
recorded in `docs/design/`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cryoscale.config.urls import REMEDY, has_credentials

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Extent = Annotated[int, Field(ge=4, le=256)]


class Section(BaseModel):
    """A table of `run.toml`: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before", check_fields=False)
    @classmethod
    def _without_credentials(cls, value: Any) -> Any:
        if isinstance(value, str) and has_credentials(value):
            raise PydanticCustomError(
                "credentials",
                "the address holds a password, key, token or signature. {remedy}",
                {"remedy": REMEDY},
            )
        return value


class IngestConfig(Section):
    """How MRC files become OME-Zarr."""

    voxel_size_angstrom: Positive | None = (
        None  # of all inputs without one of their own; None: their headers'
    )
    contrast: Literal["auto", "dark", "bright"] = "auto"
    chunk: Annotated[int, Field(ge=8, le=512)] = 64  # voxels per side, what Zarr reads
    shard: Annotated[int, Field(ge=8, le=2048)] = 256  # voxels per side, what Zarr writes
    levels: Annotated[int, Field(ge=1, le=8)] | None = None  # None: until the largest side is at most 64
    ome_zarr: Literal["0.5"] = "0.5"

    @model_validator(mode="after")
    def _shard_of_chunks(self) -> IngestConfig:
        if self.shard % self.chunk:
            raise ValueError(f"shard = {self.shard} must be a multiple of chunk = {self.chunk}")
        return self


class PickConfig(Section):
    """Difference-of-Gaussians picking, by radius or by the voxels of Zeng et al.; or imported positions."""

    radius_angstrom: Positive | None = None  # narrow sigma of the whole filter = r / sqrt 3
    smooth_sigma_voxels: Annotated[float, Field(ge=0)] | None = None  # paper: 2
    sigma_voxels: Positive | None = None  # paper: 5
    ratio: Annotated[float, Field(gt=1, le=10)] = 1.1  # paper: K = 1.1
    min_distance_angstrom: Positive | None = None  # None: 2 sigma (paper); by radius 2 r / sqrt 3
    threshold: float = 3.0  # paper: t = 3 of the range rule
    threshold_rule: Literal["range", "noise", "score"] = "range"
    max_picks: Count | None = None
    mask: str | None = None  # MRC file, non-zero where picks are wanted; {tomogram} stands for the name
    z_range: tuple[int, int] | Literal["all", "auto"] = "all"  # voxels of level 0, half open
    positions: str | None = None  # import instead of picking; {tomogram} stands for the name
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_recipe(self) -> PickConfig:
        by_radius = self.radius_angstrom is not None
        by_voxels = self.smooth_sigma_voxels is not None or self.sigma_voxels is not None
        if by_radius and by_voxels:
            raise ValueError("give radius_angstrom, or sigma_voxels and smooth_sigma_voxels, not both")
        if isinstance(self.z_range, tuple) and not 0 <= self.z_range[0] < self.z_range[1]:
            raise ValueError(f"z_range must be two voxel indices, first < second, got {self.z_range}")
        return self

    @model_validator(mode="after")
    def _imported_as_they_are(self) -> PickConfig:
        limits = {"mask": self.mask, "z_range": self.z_range != "all", "max_picks": self.max_picks}
        given = [key for key, value in limits.items() if value]
        if self.positions and given:
            raise ValueError(
                f"positions and {given[0]} cannot be given together: positions are taken as they are; "
                f"take {given[0]} away, or leave those positions out of the file"
            )
        return self


class PatchConfig(Section):
    """The box around each pick that the networks see."""

    size_voxels: Extent | tuple[Extent, Extent, Extent] = 32  # paper: 32; at the working voxel size
    smooth_sigma_voxels: Annotated[float, Field(ge=0, le=20)] = 1.0  # paper: 2; 1 tells more kinds apart

    @property
    def box(self) -> tuple[int, int, int]:
        """Extent (z, y, x), voxels."""
        size = self.size_voxels
        return (size, size, size) if isinstance(size, int) else size

    @model_validator(mode="after")
    def _divides_by_four(self) -> PatchConfig:
        if any(side % 4 for side in self.box):
            raise ValueError(f"size_voxels = {self.size_voxels}: sides must divide by 4 (two poolings)")
        return self


class TrainingConfig(Section):
    """What the trainings share."""

    epochs: Count = 100
    patience: Count = 20  # papers: 20
    batch_size: Count = 32  # paper: 8; see docs/design/001-encoder-defaults.md
    learning_rate: Positive = 1e-3  # papers: Adam 1e-3, betas (0.9, 0.99)
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # papers: 90/10
    max_patches: Count = 20_000  # a capped, seeded sample over all tomograms, held in memory
    augment: bool = False  # rotations and flips
    seed: Seed = 0
    threads: Count | None = None  # None: all cores of the worker
    precision: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # bfloat16 (autocast) where the hardware multiplies in it; see docs/design/011-training.md
    )


class EncoderConfig(TrainingConfig):
    """Autoencoder3D and its training."""

    augment: bool = True  # the paper's own wish; without it the code of a few hundred patches overfits
    dimension: Count = 32
    channels: Count = 32
    code: Literal["relu", "linear", "leaky_relu"] = "linear"
    invariant_weight: Annotated[float, Field(ge=0, le=100)] = 2.0  # 0: the code alone, as in the paper
    l1: Annotated[float, Field(ge=0)] = 0.0  # paper: 1e-4 with a ReLU code, most of whose units die
    inference_precision: Literal["float32", "bfloat16"] = "float32"  # of encoding and decoding
    weights: str | None = None  # a model folder of another run: encode with it, train nothing


class ClusterConfig(Section):
    """K-means over the encodings."""

    n_clusters: Annotated[int, Field(ge=2)] = 100  # paper: 100
    engine: Literal["lloyd", "dask-ml"] = "lloyd"  # what iterates over all encodings
    max_iterations: Count = 300
    restarts: Count = 10
    sample_rows: Count = 100_000  # rows on which the initial centres are chosen
    seed: Seed = 0
    standardise: bool = False  # divide each feature by its sd; off: all by one number, which scores better


class ReviewConfig(Section):
    """What the contact sheets show."""

    members_shown: Annotated[int, Field(ge=1, le=64)] = 8
    members_averaged: Count = 200
    smooth_sigma_voxels: Annotated[float, Field(ge=0, le=20)] = 3.0  # paper: 3


class SegmenterConfig(TrainingConfig):
    """EDSS3D, trained on masks made of decoded members of the selected clusters."""

    model: Literal["edss3d"] = "edss3d"
    channels: Count = 32
    batch_size: Count = 128  # paper: 128
    max_patches: Count = 5_000
    level: Annotated[float, Field(lt=0)] | None = None  # None: from the histogram of decoded members
    background_share: Annotated[float, Field(ge=0, le=10)] = 1.0  # background patches per object patch
    shift: Annotated[float, Field(ge=0, le=0.5)] = (
        0.5  # show objects off centre, by up to this share of the box
    )
    ignore_unselected: bool = True  # objects in background patches are left out of the loss, not background
    weights: str | None = None  # a model folder of another run


SupervisedModel = Literal[
    "edss3d", "ssn3d-ed", "ssn3d-fcn", "dsrf3d-v2", "dsm-net", "unet2d", "cnn2d-chen", "unet3d"
]
Augmenting = Literal["turns", "half-turns", "flips", "rotations", "intensity", "wedge"]
IN_SLICES = frozenset({"unet2d", "cnn2d-chen"})  # networks that see slices, not boxes


class SupervisedConfig(Section):
    """A network trained on what a person drew, or on subtomograms with their truth.

    With a model the run goes from picks straight to this training; without one, by way of clusters. Keys that
    are unset take the numbers of the model's paper.
    """

    model: SupervisedModel | None = None
    truth: Literal["labels", "subtomograms"] = "labels"
    labels: str = "truth"  # drawn volumes, {tomogram} for the name; "truth": what a simulated run knows
    classes: tuple[str, ...] = ()  # names of the label values 1, 2, …; none: those of the files, or numbers
    tomograms: tuple[str, ...] = ()  # those with labels; none: all
    subtomograms: str | None = None  # a table of boxes with their truth; None: those of a simulated run
    heads: tuple[Literal["cls", "seg", "rec"], ...] = ()  # of dsm-net; none: all that the truth allows
    loss_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()  # of those heads; none: 1, 10, 1
    channels: Count | None = None
    batch_norm: bool | None = None
    axis: Literal["z", "y", "x"] = "z"  # networks in slices: what slices are stacked along
    tile_voxels: Annotated[int, Field(ge=32, le=2048)] | None = None  # their side; None: of the paper
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0  # slices on each side that unet2d sees as channels
    epochs: Count | None = None
    patience: Count | None = None
    batch_size: Count | None = None
    learning_rate: Positive | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_patches: Count = 5_000
    object_share: Annotated[float, Field(ge=0, le=1)] = 0.7  # of boxes and tiles that lie about an object
    augment: tuple[Augmenting, ...] = ()  # none: the paper's, which are rotations for cnn2d-chen alone
    class_weighting: Literal["none", "inverse", "sqrt"] | None = None
    seed: Seed = 0
    threads: Count | None = None
    workers: Count = 1  # devices, or processes, that share a training
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    weights: str | None = None  # a model folder of another run: apply it, train nothing

    @model_validator(mode="after")
    def _as_many_weights_as_heads(self) -> SupervisedConfig:
        if self.heads and self.model not in (None, "dsm-net"):
            raise ValueError(f"heads are of dsm-net; {self.model} has its own")
        if self.loss_weights and len(self.loss_weights) != len(self.heads or (1, 2, 3)):
            raise ValueError(
                f"{len(self.loss_weights)} loss_weights for {len(self.heads or (1, 2, 3))} heads"
            )
        return self

    @field_validator("classes")
    @classmethod
    def _are_names(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) > 254 or len(set(classes)) < len(classes) or not all(map(str.strip, classes)):
            raise ValueError("at most 254 names, each of them once, none of them empty")
        return classes

    @property
    def normalises_batches(self) -> bool:
        """Whether a training takes statistics of batches: each of several workers has its own."""
        return self.model in ("unet2d", "unet3d") if self.batch_norm is None else self.batch_norm

    @property
    def drawn(self) -> str | None:
        """Where drawn label volumes are that the run takes in, if any; `{tomogram}` stands for the name."""
        wanted = self.model is not None and self.weights is None and self.truth == "labels"
        return self.labels if wanted and self.labels != "truth" else None

    @property
    def classifies(self) -> bool:
        """Whether the network says of which class a whole box is."""
        return self.model == "dsrf3d-v2" or (
            self.model == "dsm-net" and (not self.heads or "cls" in self.heads)
        )

    @property
    def segments(self) -> bool:
        """Whether the network says of which class each voxel is."""
        if self.model is None or self.model == "dsrf3d-v2":
            return False
        return self.model != "dsm-net" or not self.heads or "seg" in self.heads


class SegmentConfig(Section):
    """How label volumes are made."""

    mode: Literal["picks", "dense", "decoded"] = "dense"
    class_of: Literal["cluster", "network"] = "cluster"  # mode picks: what says of which class an object is
    windows: Literal["tiles", "box"] | None = None  # mode dense; None: tiles if the box has 32 voxels or more
    overlap_voxels: Annotated[int, Field(ge=0)] | None = None  # windows "box"; None: half the box
    labels: str = "classes"  # name of the label volume
    volumes: Literal["merged", "features", "both"] = "merged"  # of a supervised network
    probabilities: bool = False  # of a supervised network: one float16 volume per class
    densities: bool = False  # of dsm-net: the recovered density around each pick, embedded

    @field_validator("labels")
    @classmethod
    def _is_a_name(cls, labels: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", labels):
            raise ValueError("a name of letters, digits, '.', '_' and '-' that begins with a letter or digit")
        if labels in ("annotation", "truth"):
            raise ValueError("'annotation' is what was drawn and 'truth' what is known; take another name")
        return labels


class InstancesConfig(Section):
    """From label volumes to one row per object."""

    min_voxels: Count = 20


class RunSection(Section):
    """What holds for the whole run."""

    working_voxel_size_angstrom: Positive | None = None  # None: level 0, if all tomograms agree on it
    fit_tomograms: tuple[str, ...] = ()  # train and cluster on these only; none: on all of the run


class ExecutionConfig(Section):
    """Where and how; nothing here changes a result."""

    block_voxels: Annotated[int, Field(ge=32)] = 256
    memory_budget: str | None = None  # per worker, for example "4GB"; None: the machine's, shared fairly
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    pauses: Annotated[int, Field(ge=0, le=1000)] = 6  # how often to wait for space, permission, connection
    pause_seconds: Positive = 2.0  # the first wait; each further one is twice as long
    dask_workers: Count | None = None
    ray_workers: Count | None = None
    ray_threads: Count | None = None
    ray_gpus_per_worker: Annotated[float, Field(ge=0, le=8)] | None = None  # None: 1 if the cluster has GPUs
    idle_release_s: Positive = 300.0  # model workers of a cluster without work for so long are given back
    start_timeout_s: Positive = 300.0
    no_progress_timeout_s: Positive = 21600.0  # a training is one task: leave hours
