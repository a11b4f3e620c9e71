"""The table `[simulate]` of `run.toml`: what simulated tomograms hold and how they are imaged.

Units are in the names. Distances from a membrane are from surface to surface: from the sphere around a
particle to the outside of the head groups.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cryoscale.config.sections import Count, Positive, Section, Seed

NotNegative = Annotated[float, Field(ge=0)]
Number = Annotated[int, Field(ge=0, le=1_000_000)]
Placement = Literal["free", "at", "near", "far"]
RESERVED = ("background", "membrane", "double_membrane", "microtubule", "actin", "carbon", "gold")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _is_a_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ValueError("a name of letters, digits, '.', '_' and '-' that begins with a letter or digit")
    return name


def file_stem(path: str) -> str:
    """Return a file's name without the endings of maps and structures."""
    name = path.rsplit("/", 1)[-1]
    return re.sub(r"(\.(mrc|map|ccp4|cif|mmcif|pdb|ent))?(\.(gz|bz2))?$", "", name, flags=re.IGNORECASE)


class ParticlesConfig(Section):
    """Copies of one density. Several entries may have one name: one class, placed in several ways."""

    density: str  # a procedural kind, a PDB id or file name in the folders of densities, or a path
    copies: Number
    name: str | None = None  # of the class; None: the density's own
    contrast: Positive = 1.0  # scattering relative to the other classes
    least_share: Annotated[float, Field(gt=0, le=1)] | None = None  # copies have this share of it or more
    placement: Placement = "free"

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return self.name or file_stem(self.density)

    @model_validator(mode="after")
    def _named(self) -> ParticlesConfig:
        if self.class_name in RESERVED or not re.fullmatch(NAME, self.class_name):
            raise ValueError(
                f"a class cannot be named '{self.class_name}'; give a name of letters, digits, '.', '_' and "
                f"'-' that is none of {', '.join(RESERVED)}"
            )
        return self


class MembraneConfig(Section):
    """Bilayers: two leaflets of head groups with the lipid's tails between them."""

    vesicles: Number = 0
    vesicle_radius_angstrom: tuple[Positive, Positive] = (200.0, 330.0)
    double_vesicles: Number = 0  # a vesicle within a vesicle
    planes: Number = 0  # planar single membranes through the whole tomogram
    double_planes: Number = 0  # planar double membranes
    double_gap_angstrom: Positive = 250.0  # between the middles of the two bilayers of a double membrane
    tilt_degrees: Annotated[float, Field(ge=0, le=90)] = 30.0  # most that a plane leans from the beam (z)
    contrast: Positive = 1.5  # of the head groups; darker than pure lipid: membranes carry proteins


class FilamentConfig(Section):
    """Microtubules (13 protofilaments) and actin (two strands), straight through the tomogram."""

    microtubules: Number = 0
    actin: Number = 0
    contrast: Positive = 1.0


class SurroundingsConfig(Section):
    """What else is in a tomogram: support film, fiducials, and empty ice above and below a lamella."""

    carbon_edge: bool = False  # amorphous carbon film at one side, thickness and hole as usual
    carbon_thickness_angstrom: Positive = 200.0
    carbon_contrast: Positive = 1.5
    gold_beads: Number = 0
    gold_diameter_angstrom: Positive = 100.0
    gold_contrast: Positive = 15.0
    border_angstrom: NotNegative = 0.0  # empty at either face in z, as beyond a lamella


class SceneConfig(Section):
    """What stands in a tomogram before any microscope."""

    shape: tuple[Count, Count, Count] = (64, 192, 192)  # z, y, x, voxels
    voxel_size_angstrom: Positive = 14.0
    resolution_angstrom: Positive | None = None  # low-pass of the densities; None: three voxels
    margin_angstrom: NotNegative = 112.0  # no centre of a particle is nearer to a face
    at_angstrom: Positive = 20.0  # a particle at a membrane is at most so far off its surface
    near_angstrom: Positive = 150.0  # one near it is farther than that and at most so far; far is beyond
    particles: tuple[ParticlesConfig, ...] = ()
    membranes: MembraneConfig = Field(default_factory=MembraneConfig)
    filaments: FilamentConfig = Field(default_factory=FilamentConfig)
    surroundings: SurroundingsConfig = Field(default_factory=SurroundingsConfig)

    @model_validator(mode="after")
    def _membranes_for_contacts(self) -> SceneConfig:
        m = self.membranes
        bound = [p for p in self.particles if p.placement in ("at", "near") and p.copies]
        if bound and not (m.vesicles or m.double_vesicles or m.planes or m.double_planes):
            raise ValueError(
                f"'{bound[0].class_name}' is placed {bound[0].placement} membranes, but there is no membrane"
            )
        if self.near_angstrom <= self.at_angstrom:
            raise ValueError("near_angstrom must be larger than at_angstrom")
        return self

    @property
    def particle_classes(self) -> tuple[str, ...]:
        """Names of the classes of particles, in the order of their first entry."""
        return tuple(dict.fromkeys(p.class_name for p in self.particles))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label value: background, the particles' classes, then what else there is."""
        m, f, s = self.membranes, self.filaments, self.surroundings
        others = {
            "membrane": m.vesicles or m.planes, "double_membrane": m.double_vesicles or m.double_planes,
            "microtubule": f.microtubules, "actin": f.actin,
            "carbon": s.carbon_edge, "gold": s.gold_beads,
        }  # fmt: skip
        return ("background", *self.particle_classes, *(name for name, there in others.items() if there))


class ImagingConfig(Section):
    """How a scene becomes a tomogram."""

    route: Literal["direct", "tilts"] = "direct"  # transfer functions in 3-D, or a tilt series reconstructed
    snr: Annotated[float, Field(gt=0, le=1e6)] = 0.1  # variance of the filtered signal over that of all noise
    tilt_min_degrees: Annotated[float, Field(ge=-90, le=90)] = -60.0
    tilt_max_degrees: Annotated[float, Field(ge=-90, le=90)] = 60.0
    tilt_step_degrees: Annotated[float, Field(gt=0, le=30)] = 1.0
    defocus_micrometre: Annotated[float, Field(gt=0, le=100)] | Literal["none"] = 5.0  # underfocus
    spherical_aberration_mm: NotNegative = 2.0
    voltage_kv: Annotated[float, Field(ge=20, le=2000)] = 300.0
    amplitude_contrast: Annotated[float, Field(ge=0, lt=1)] = 0.07
    envelope: Positive = 0.4  # where it has fallen to 1/e, as a fraction of Nyquist; paper: 0.4
    mtf_at_nyquist: Annotated[float, Field(gt=0, le=1)] = 0.637  # what the detector passes there: 2 / pi
    noise_before_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the noise, before the optics

    @model_validator(mode="after")
    def _rising(self) -> ImagingConfig:
        if self.tilt_min_degrees >= self.tilt_max_degrees:
            raise ValueError("tilt_min_degrees must be smaller than tilt_max_degrees")
        return self


class VariantConfig(Section):
    """Tomograms that differ from the others in these points."""

    name: str
    copies: Number | None = None  # of particles in all; None: as in `particles`, which gives the shares
    snr: Annotated[float, Field(gt=0, le=1e6)] | None = None

    _name = field_validator("name")(_is_a_name)


class SubtomogramsConfig(Section):
    """A training set cut from the tomograms: boxes around particles with their truth."""

    size_voxels: Annotated[int, Field(ge=4, le=256)] = 40
    count: Count = 3205  # of each variant, shared by its tomograms; drawn among those that lie inside
    split: tuple[NotNegative, NotNegative, NotNegative] = (0.8, 0.1, 0.1)  # training, validation, test


class SimulateConfig(Section):
    """A simulated data set."""

    recipe: str = ""  # the one that it was made from
    seed: Seed = 0
    tomograms: Count = 1  # of each variant; same number, same seed, so the same scene in each variant
    densities: tuple[str, ...] = ()  # folders of maps (MRC) and structures (mmCIF, PDB)
    variants: tuple[VariantConfig, ...] = (VariantConfig(name="cell"),)
    scene: SceneConfig = Field(default_factory=SceneConfig)
    imaging: ImagingConfig = Field(default_factory=ImagingConfig)
    subtomograms: SubtomogramsConfig | None = None

    @model_validator(mode="after")
    def _distinct(self) -> SimulateConfig:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"variants need different names, got {names}")
        if self.subtomograms is not None and self.subtomograms.count < self.tomograms:
            raise ValueError(
                f"{self.subtomograms.count} subtomograms cannot be shared by {self.tomograms} tomograms"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tomograms."""
        return tuple(
            f"{variant.name}_{number}" for variant in self.variants for number in range(1, self.tomograms + 1)
        )

    def number_of(self, tomogram: str) -> int:
        """Return the number of a tomogram within its variant, from 1: part of its seeds."""
        return int(tomogram.rpartition("_")[2])

    def for_tomogram(self, tomogram: str) -> SimulateConfig:
        """Return the settings of one tomogram, its variant applied."""
        name = tomogram.rpartition("_")[0]
        variant = next(v for v in self.variants if v.name == name)
        scene, imaging = self.scene, self.imaging
        if variant.copies is not None:
            scene = scene.model_copy(update={"particles": scaled(scene.particles, variant.copies)})
        if variant.snr is not None:
            imaging = imaging.model_copy(update={"snr": variant.snr})
        return self.model_copy(update={"variants": (variant,), "scene": scene, "imaging": imaging})


def scaled(particles: tuple[ParticlesConfig, ...], total: int) -> tuple[ParticlesConfig, ...]:
    """Scale copy numbers so that they add up to a total, by largest remainders."""
    now = sum(p.copies for p in particles)
    if not now:
        return particles
    exact = [p.copies * total / now for p in particles]
    counts = [int(e) for e in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return tuple(p.model_copy(update={"copies": n}) for p, n in zip(particles, counts, strict=True))
