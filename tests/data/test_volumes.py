"""Volumes beside a label volume: their names, what makes them readable, and what goes with a new result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Level
from cryoscale.data.volumes import ImageVolume, drop_companions, file_names, image_volumes
from cryoscale.errors import StateError
from cryoscale.geometry import Box, Zyx

if TYPE_CHECKING:
    from pathlib import Path

LEVEL = Level(Zyx(8, 8, 8), 20.0, 5.0)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["ribosome", "double membrane"], ["ribosome", "double-membrane"]),
        (["a b", "a-b", "A b"], ["a-b-1", "a-b-2", "A-b-3"]),
        (["../up", "///", "μ"], ["up", "class-2", "class-3"]),
    ],
)
def test_file_names(names: list[str], files: list[str]) -> None:
    assert file_names(names) == files


def test_an_image_is_there_when_it_is_published(tmp_path: Path) -> None:
    tomogram = Folder.of(str(tmp_path))
    image = ImageVolume(tomogram, "probabilities", "classes", "rod", writable=True)
    image.create(LEVEL, np.float16, chunk=8, shard=8)
    values = np.linspace(0, 1, 512, dtype=np.float16).reshape(LEVEL.shape)
    image.pyramid.write(0, Box.whole(LEVEL.shape), values)
    assert image_volumes(tomogram, "probabilities", "classes") == []
    with pytest.raises(StateError):
        image.notes  # noqa: B018
    image.publish(LEVEL, {"class_name": "rod"})
    (found,) = image_volumes(tomogram, "probabilities", "classes")
    assert (found.name, found.notes["class_name"]) == ("probabilities/classes/rod", "rod")
    np.testing.assert_array_equal(found.pyramid.read(0, Box.whole(LEVEL.shape)), values)
    density = ImageVolume(tomogram, "densities", "classes", writable=True)
    density.create(LEVEL, np.float32, chunk=8, shard=8)
    density.publish(LEVEL, {})
    assert [image.name for image in image_volumes(tomogram, "densities", "classes")] == ["densities/classes"]
    drop_companions(tomogram, "other")
    assert image_volumes(tomogram, "densities", "classes")
    drop_companions(tomogram, "classes")
    assert not image_volumes(tomogram, "densities", "classes")
    assert not image_volumes(tomogram, "probabilities", "classes")
