"""Particle STAR files of RELION-5, RELION-4 and Warp, and RELION's ``tomograms.star``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoscale.errors import ConfigurationError, FormatError
from cryoscale.formats.points_table import (
    CENTRED,
    CORNER,
    Convention,
    Positions,
    Table,
    Target,
    TomogramGeometry,
    centre_of,
)
from cryoscale.geometry import Zyx

if TYPE_CHECKING:
    import os

_PIXEL_SIZES = ("rlnTomoTiltSeriesPixelSize", "rlnMicrographOriginalPixelSize")


def star_blocks(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return the blocks of a STAR file as columns."""
    import starfile

    path.open("rb").close()  # so that a missing file is the same error as elsewhere
    try:
        blocks = starfile.read(path, always_dict=True, parse_as_string=["rlnTomoName", "rlnMicrographName"])
    except Exception as error:  # the parser raises whatever it stumbles over
        raise FormatError(f"{path} is not a STAR file that can be read ({error}).") from error
    result = {}
    for name, block in blocks.items():
        simple = isinstance(block, dict)
        result[str(name)] = {str(k): [v] if simple else list(v) for k, v in block.items()}
    if not any(result.values()):
        raise FormatError(f"{path} holds no table.", remedy="Check that it is a STAR file.")
    return result


def read_star_positions(path: Path, target: Target, convention: Convention) -> Positions:
    """Read a particle STAR file of RELION-5, RELION-4 or Warp."""
    blocks = star_blocks(path)
    found = [b for b in blocks.values() if all(c in b for c in CENTRED) or all(c in b for c in CORNER)]
    if not found:
        raise FormatError(
            f"{path} has no table with {CENTRED[2]} or {CORNER[2]} and the like.",
            remedy="Give a particle STAR file of RELION-5, RELION-4 or Warp.",
        )
    table = Table(path, found[0]).rows_of(target.name)
    if convention == "auto":
        convention = _star_convention(path, table, blocks, target)
    if convention == "relion5":
        return _centred(table, target)
    if not table.has(CORNER):
        raise FormatError(f"{path} has no columns {', '.join(CORNER[::-1])} to read as '{convention}'.")
    if convention in ("warp", "voxels"):
        text = f"{convention} ({target.voxel_size_angstrom:g} Å voxels of the tomogram)"
        return table.positions(table.numbers(CORNER) * target.voxel_size_angstrom, text)
    if convention == "angstrom":
        return table.positions(table.numbers(CORNER), "angstrom")
    pixel = target.pixel_size_angstrom or _pixel_size(blocks)
    if pixel is None:
        raise ConfigurationError(
            f"{path} does not say the pixel size of its tilt series.", remedy="Give pixel_size_angstrom."
        )
    return table.positions(table.numbers(CORNER) * pixel, f"relion4 ({pixel:g} Å pixels of the tilt series)")


def _star_convention(
    path: Path, table: Table, blocks: dict[str, dict[str, list[Any]]], target: Target
) -> Convention:
    """Decide by the columns; refuse to guess between tilt-series pixels and tomogram voxels."""
    if table.has(CENTRED):
        return "relion5"
    micrographs = table.first(["rlnMicrographName"])
    if micrographs and all(m.endswith(".tomostar") for m in micrographs):
        return "warp"
    if target.pixel_size_angstrom or _pixel_size(blocks):
        return "relion4"
    raise ConfigurationError(
        f"{path} has {CORNER[2]} but nothing says whether it counts pixels of the tilt series or voxels of "
        "the tomogram.",
        remedy="Give convention 'voxels', or 'relion4' with the pixel size of the tilt series.",
    )


def _pixel_size(blocks: dict[str, dict[str, list[Any]]]) -> float | None:
    """Return the pixel size of the tilt series from whichever table has it."""
    for block in blocks.values():
        for name in _PIXEL_SIZES:
            values = {float(v) for v in block.get(name, [])}
            if len(values) == 1:
                return values.pop()
    return None


def _centred(table: Table, target: Target) -> Positions:
    """Turn Å from the tomogram's centre into Å from its first voxel; the centre is size / 2."""
    if not table.has(CENTRED):
        raise FormatError(f"{table.path} has no columns {', '.join(CENTRED[::-1])} to read as 'relion5'.")
    centre_3 = centre_of(target.shape, target.voxel_size_angstrom, target.unbinned)
    text = f"relion5 (centre at z, y, x = {', '.join(f'{c:g}' for c in centre_3)} Å)"
    return table.positions(table.numbers(CENTRED) + centre_3, text)


def read_tomograms_star(path: str | os.PathLike[str]) -> dict[str, TomogramGeometry]:
    """Read RELION's ``tomograms.star``: name to unbinned size and pixel size.

    Raises
    ------
    FormatError
        A column is missing.
    """
    path = Path(path)
    needed = ("rlnTomoName", "rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ", "rlnTomoTiltSeriesPixelSize")
    for block in star_blocks(path).values():
        if all(name in block for name in needed):
            rows = zip(*(block[name] for name in needed), strict=True)
            return {
                str(name): TomogramGeometry(Zyx(int(z), int(y), int(x)), float(pixel))
                for name, x, y, z, pixel in rows
            }
    raise FormatError(
        f"{path} has no table with {', '.join(needed)}.", remedy="Give RELION's tomograms.star."
    )
