"""Contact sheets as plain pictures: slices of small volumes side by side, without axes or words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave

GAP = 2  # pixels between tiles


def scaled(volume: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale an array to 0..255 by its smallest and largest value; a constant one becomes mid-grey."""
    low, high = float(volume.min()), float(volume.max())
    if not high > low:
        return np.full(volume.shape, 128, np.uint8)
    grey: npt.NDArray[np.uint8] = np.rint((volume - low) * (255.0 / (high - low))).astype(np.uint8)
    return grey


def slices_of(volume_ZYX: npt.NDArray[Any], most: int = 12) -> list[npt.NDArray[np.uint8]]:
    """Return at most `most` evenly spaced z slices of a volume, on one grey scale, in order of z."""
    tiles = scaled(volume_ZYX)
    chosen = np.unique(np.linspace(0, len(tiles) - 1, min(most, len(tiles))).round().astype(int))
    return [tiles[z] for z in chosen]


def central_slice(volume_ZYX: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the middle z slice, scaled by the whole volume."""
    middle: npt.NDArray[np.uint8] = scaled(volume_ZYX)[len(volume_ZYX) // 2]
    return middle


def strip(tiles: Sequence[npt.NDArray[np.uint8]], side: int = 48) -> npt.NDArray[np.uint8]:
    """Put tiles of equal shape side by side, enlarged by a whole factor to about `side` pixels.

    Rows are turned over, so that y goes upwards as in the slices of tomograms.
    """
    factor = max(1, round(side / max(tiles[0].shape)))
    large = [np.kron(tile[::-1], np.ones((factor, factor), np.uint8)) for tile in tiles]
    gap = np.full((large[0].shape[0], GAP), 255, np.uint8)
    parts = [part for tile in large for part in (tile, gap)]
    return np.concatenate(parts[:-1], axis=1)


def gray_png(image_YX: npt.NDArray[np.uint8]) -> bytes:
    """Encode a grey picture; the same picture gives the same bytes."""
    stream = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None}  # None: leave the version of matplotlib out
    imsave(stream, image_YX, format="png", cmap="gray", vmin=0, vmax=255, metadata=metadata, origin="upper")
    return stream.getvalue()
