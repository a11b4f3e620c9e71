"""Densities: read the maps and structures that particles are made of, all on one scale."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from cryoscale.config.simulate import SimulateConfig
from cryoscale.data.access import Access
from cryoscale.errors import CryoscaleError
from cryoscale.stages.base import WholeStage
from cryoscale.stages.templates import LIST, keys_of, structure_cache, wanted


class DensitiesStage(WholeStage):
    """From maps (MRC), structures (mmCIF, PDB) and formulas to maps of one voxel size, resolution and scale.

    The run keeps them: it can go on where the folders that they came from are not at hand.
    """

    name = "densities"
    writes = "densities"

    def bytes_needed(self, access: Access) -> int:
        """Bound the largest map with what resampling it takes, by the sizes of the files."""
        files = [place for _, place in density_files(access.simulation()) if place]
        largest = max((os.path.getsize(place) for place in files), default=0)
        return 8 * largest + 256 * 2**20

    def compute(self, access: Access) -> dict[str, Any]:
        """Read, scale, low-pass, centre and write each density.

        Raises
        ------
        ConfigurationError
            One is missing, or several files could be meant.
        FormatError
            A file cannot be read.
        """
        from cryoscale.formats.mrc import write_mrc
        from cryoscale.simulate.structures import load_densities

        simulation = access.simulation()
        names = wanted(access)
        keys = keys_of(names)
        loaded = load_densities(
            names, simulation.densities, read_map=read_map, cache=structure_cache(),
            voxel_size_angstrom=simulation.scene.voxel_size_angstrom,
            resolution_angstrom=simulation.scene.resolution_angstrom,
        )  # fmt: skip
        folder = access.output()
        folder.delete()
        Path(folder.path()).mkdir(parents=True, exist_ok=True)
        listed, digest = {}, hashlib.sha256()
        for density, made in sorted(loaded.items()):
            key = keys[density]
            write_mrc(folder.path(f"{key}.mrc"), made.volume_ZYX, made.voxel_size_angstrom)
            listed[key] = {f.name: getattr(made, f.name) for f in fields(made) if f.name != "volume_ZYX"}
            digest.update(repr((key, sorted(listed[key].items()))).encode() + made.volume_ZYX.tobytes())
        folder.write_toml(LIST, listed)
        radii = {key: round(float(entry["radius_angstrom"]), 1) for key, entry in listed.items()}
        return {"hash": digest.hexdigest(), "radii_angstrom": radii}


def density_files(simulate: SimulateConfig) -> list[tuple[str, str | None]]:
    """Return each density that is a file, with its place; None where it is not found (any more)."""
    from cryoscale.simulate.shapes import KINDS
    from cryoscale.simulate.structures import find_density

    files: list[tuple[str, str | None]] = []
    for density in dict.fromkeys(p.density for p in simulate.scene.particles):
        place = None
        with contextlib.suppress(CryoscaleError):  # if it is needed the stage will say so
            source = find_density(density, simulate.densities, cache=structure_cache())
            place = str(source.path) if source.path is not None else None
        if place is not None or density not in KINDS:
            files.append((f"density {density}", place))
    return files


def read_map(path: Path) -> tuple[Any, float]:
    """Read a whole map: array (Z, Y, X) and voxel size, Å."""
    from cryoscale.errors import FormatError
    from cryoscale.formats.mrc import MrcVolume
    from cryoscale.geometry import Box

    with MrcVolume(path) as volume:
        size = volume.header.voxel_size_angstrom
        if size is None:
            raise FormatError(f"{path}: the voxel size is not set in the header.", remedy="Write it there.")
        return volume.read(Box.whole(volume.header.shape)), size
