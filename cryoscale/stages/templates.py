"""The densities of a simulated run, as the stages that place and paint them need them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoscale.data.access import Access
from cryoscale.data.truth import density_key
from cryoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from cryoscale.simulate.densities import Density
    from cryoscale.simulate.templates import Template

LIST = "densities.toml"


def keys_of(densities: list[str]) -> dict[str, str]:
    """Return the key of each density.

    Raises
    ------
    ConfigurationError
        Two different densities would get the same one.
    """
    keys: dict[str, str] = {}
    for density in densities:
        for other, key in keys.items():
            if other != density and key == density_key(density):
                raise ConfigurationError(
                    f"the densities '{other}' and '{density}' would both be named '{key}'.",
                    remedy="Rename one of the files.",
                )
        keys[density] = density_key(density)
    return keys


def wanted(access: Access) -> list[str]:
    """Return the densities that the run's particles are made of, each once."""
    return list(dict.fromkeys(p.density for p in access.simulation().scene.particles))


def entries_of(access: Access) -> dict[str, dict[str, Any]]:
    """Return what is recorded of each density, by the words of the configuration."""
    recorded: Mapping[str, Any] = access.densities().read_toml(LIST)
    return {density: dict(recorded[density_key(density)]) for density in wanted(access)}


def load_densities(access: Access) -> dict[str, Density]:
    """Load all densities of the run, by the words of the configuration."""
    from cryoscale.formats.mrc import MrcVolume
    from cryoscale.geometry import Box
    from cryoscale.simulate.densities import Density

    loaded = {}
    folder = access.densities()
    for density, entry in entries_of(access).items():
        with MrcVolume(Path(folder.path(f"{density_key(density)}.mrc"))) as volume:
            entry["volume_ZYX"] = volume.read(Box.whole(volume.header.shape))
        loaded[density] = Density(**{**entry, "centre_zyx_angstrom": tuple(entry["centre_zyx_angstrom"])})
    return loaded


def open_templates(access: Access) -> dict[str, Template]:
    """Load all densities of the run, ready to be stamped, by the words of the configuration."""
    from cryoscale.simulate.templates import Template

    return {density: Template(loaded) for density, loaded in load_densities(access).items()}


def stamp_bytes(access: Access) -> int:
    """Bound the bytes that the densities take when they are ready to be stamped, from their headers alone.

    Before there are any, 64 voxels are assumed along the side of each.
    """
    from cryoscale.formats.mrc import read_header

    folder = access.densities()
    if not folder.exists(LIST):
        sides = [64] * len(wanted(access))
    else:
        sides = [
            read_header(folder.path(f"{density_key(density)}.mrc")).shape.z for density in wanted(access)
        ]
    return sum(160 * (side + 4) ** 3 for side in sides)  # a map three times as fine, and places of its voxels


def structure_cache() -> Path:
    """Return the folder that `cryoscale simulate structures` downloads to unless told otherwise."""
    from cryoscale.simulate.download import structures_folder

    return structures_folder()
