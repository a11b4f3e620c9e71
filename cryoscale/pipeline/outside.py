"""Files and folders that a unit reads beside the run's own artifacts."""

from __future__ import annotations

from typing import Any

from cryoscale.data.folder import Folder
from cryoscale.data.weights import ModelFolder, identity_of
from cryoscale.formats.inputs import source_exists, source_stamp
from cryoscale.formats.labels import labels_stamp


def content_of(place: str) -> Any:
    """Name what a file or a folder holds: size and time, of a model its weights' hash; None when gone."""
    model = ModelFolder(Folder.of(place))
    if model.exists:
        return identity_of(model.card)
    return list(source_stamp(place)) if source_exists(place) else labels_stamp(place)
