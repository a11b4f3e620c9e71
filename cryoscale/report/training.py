"""The page of trained models: curves, the share of dead code units, and the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cryoscale.data.run import Run
from cryoscale.data.weights import CHECKPOINT
from cryoscale.errors import CryoscaleError, StateError
from cryoscale.report.figures import png_bytes, training_curves
from cryoscale.report.tomogram import Picture

MODELS = ("encoder", "segmenter")
DEAD_WARNING = 0.25  # share of dead code units from which the page warns
STOPPED = {
    "epochs": "it ended with the last of the epochs asked for",
    "patience": "it ended because it got no better",
}
LIST_SHOWN = 8  # entries of a list or table on a card


@dataclass(frozen=True)
class ModelSection:
    """One model on the page; `state` is "trained", "training" or "missing"; `title` is what people read."""

    name: str
    state: str
    problem: str = ""
    card: tuple[tuple[str, str], ...] = ()
    picture: Picture | None = None
    epochs: int = 0
    best_epoch: int | None = None
    stopped: str = ""
    imported: str = ""
    dead_share: float | None = None
    title: str = ""
    scores: tuple[tuple[str, str], ...] = ()

    @property
    def many_dead(self) -> bool:
        """Whether so many code units are dead that clusters suffer."""
        return self.dead_share is not None and self.dead_share >= DEAD_WARNING


TESTED = {
    "test_boxes": "test boxes", "test_object_accuracy": "object accuracy",
    "test_pixel_accuracy": "pixel accuracy", "test_miou": "mIoU by sample",
    "test_miou_pooled": "mIoU", "test_recovery_error": "recovery error",
}  # fmt: skip
"""What a training on subtomograms measured on those that it kept for the end, by its name on the card."""


def make_models(
    run: Run, save: Callable[[str, bytes], None], *, supervised: str | None = None
) -> list[ModelSection]:
    """Draw the curves of the run's models.

    Parameters
    ----------
    save : callable
        Takes the name of a picture and its bytes.
    supervised : str, optional
        The network of a run without clusters: it has no encoder.
    """
    if supervised is None:
        return [_model(run, name, save) for name in MODELS]
    return [replace(_model(run, "segmenter", save), title=supervised)]


def _model(run: Run, name: str, save: Callable[[str, bytes], None]) -> ModelSection:
    model = run.model(name)
    if not model.exists:
        return ModelSection(name, "training" if model.folder.exists(CHECKPOINT) else "missing")
    try:
        card = model.card
    except CryoscaleError as error:
        return ModelSection(name, "missing", problem=str(error))
    training = card.get("training", {})
    best = training.get("best_epoch")
    stopped = str(training.get("stopped", ""))
    picture, epochs, problem = None, 0, ""
    try:
        history = model.history
    except StateError as error:
        problem = str(error)
    else:
        epochs = len(history.get("epoch", ()))
        if epochs:
            picture = _curves(name, history, best, save)
    return ModelSection(
        name, "trained", problem, tuple(flat_card(card)), picture, epochs, best,
        STOPPED.get(stopped, stopped), str(card.get("imported_from", "")),
        card.get("metrics", {}).get("dead_code_share"), "", tuple(_tested(card.get("metrics", {}))),
    )  # fmt: skip


def _tested(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the scores on boxes that the training kept for the end, in the order of the papers' tables."""
    return [
        (words, f"{metrics[key]:.4g}")
        for key, words in TESTED.items()
        if isinstance(metrics.get(key), (int, float))
    ]


def _curves(
    name: str, history: Mapping[str, Any], best: int | None, save: Callable[[str, bytes], None]
) -> Picture:
    figure, shown = training_curves(history, best)
    file = f"training/{name}.png"
    save(file, png_bytes(figure))
    last = {part: float(history[f"validation_{part}"][-1]) for part in shown}
    words = ", ".join(f"{part} {value:.4g}" for part, value in last.items())
    alt = f"Curves of the {name} over {len(history['epoch'])} epochs"
    return Picture(file, alt, f"Validation at the last epoch: {words}.")


def flat_card(card: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested tables into rows with dotted keys; long lists and tables are cut, and say so."""
    rows: list[tuple[str, str]] = []
    for key, value in card.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and key == "upstream":
            entries = [f"{what} {digest[:16]}" for what, digest in value.items()]
            rows.append((name, _cut(entries)))
        elif isinstance(value, Mapping):
            rows += flat_card(value, f"{name}.")
        elif isinstance(value, list):
            rows.append((name, _cut([str(item) for item in value])))
        else:
            rows.append((name, f"{value:.5g}" if isinstance(value, float) else str(value)))
    return rows


def _cut(entries: list[str]) -> str:
    more = f", … ({len(entries)} in all)" if len(entries) > LIST_SHOWN else ""
    return ", ".join(entries[:LIST_SHOWN]) + more
