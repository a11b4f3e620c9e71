"""The demo: simulated cells with known truth, through every stage, scored beside what chance would reach.

The person who chooses clusters is played by the truth of the first cell alone; the scores are those of the
others, which had no part in the choice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.clusters import PALETTE, SELECTION, Selection
from cryoscale.data.rows import read_assignments, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.errors import NothingToDoError
from cryoscale.evaluate.picks import classes_of_picks, cluster_margins, near_label
from cryoscale.evaluate.segmentation import SegmentationScores, confusion, pooled_scores
from cryoscale.geometry import Box

if TYPE_CHECKING:
    from cryoscale.simulate.cells import Cell

SETTINGS = [
    "patch.size_voxels=16",
    "patch.smooth_sigma_voxels=1",
    "pick.radius_angstrom=97",
    "pick.threshold_rule=score",
    "pick.threshold=0",
    "encoder.epochs=15",
    "encoder.max_patches=1000",
    "encoder.batch_size=16",
    "cluster.n_clusters=50",
    "segmenter.epochs=40",
    "segmenter.channels=16",
    "segmenter.batch_size=16",
    "segmenter.max_patches=400",
    "segmenter.background_share=0.5",
]
MATCH_VOXELS = 5  # a pick belongs to a particle within this distance
MEMBRANE_VOXELS = 2  # a pick lies on a membrane within this distance of it
MAJORITY = 0.5  # a cluster is given to the class that more than this share of its picks belongs to
LEAST_PICKS = 3


def write_cells(folder: Path, n: int, seed: int) -> dict[str, Cell]:
    """Simulate cells and write them as MRC files; return them by the name that their tomograms will have."""
    from cryoscale.formats.mrc import write_mrc
    from cryoscale.simulate.cells import demo_cells

    folder.mkdir(parents=True, exist_ok=True)
    cells = {}
    for number, cell in enumerate(demo_cells(n=n, seed=seed), start=1):
        name = f"cell{number}"
        write_mrc(folder / f"{name}.mrc", cell.volume_ZYX, cell.voxel_size_angstrom)
        cells[name] = cell
    return cells


def true_classes(run: Run, name: str, cell: Cell) -> npt.NDArray[np.int64]:
    """Return the label value that each pick of a cell truly belongs to; 0 for none."""
    picks = read_picks(run.picks, name)
    size = cell.voxel_size_angstrom
    classes = classes_of_picks(picks.positions_N3, cell.positions_N3, cell.picks["kind"], MATCH_VOXELS * size)
    for value, kind in enumerate(cell.class_names):
        if kind.startswith("membrane"):
            on = near_label(picks.positions_N3 / size, cell.labels_ZYX, value, MEMBRANE_VOXELS)
            classes[on & (classes == 0)] = value
    return classes


def choose_by_truth(run: Run, name: str, cell: Cell) -> Selection:
    """Write the selection that a person with perfect eyes would make from one cell.

    Raises
    ------
    NothingToDoError
        No cluster belongs mainly to one kind.
    """
    card = run.clusters.card
    ids, _ = read_assignments(run.assignments, name)
    counts = np.zeros((int(card["n_clusters"]), len(cell.class_names)))
    np.add.at(counts, (ids, true_classes(run, name, cell)), 1)
    best = counts.argmax(axis=1)
    sure = counts.max(axis=1) > MAJORITY * counts.sum(axis=1)
    sure &= counts.max(axis=1) >= LEAST_PICKS
    classes, colors = [], []
    for value, kind in enumerate(cell.class_names):
        clusters = tuple(int(k) for k in np.flatnonzero(sure & (best == value)))
        if value and clusters:
            classes.append((kind, clusters))
            colors.append(PALETTE[(value - 1) % len(PALETTE)])
    if not classes:
        raise NothingToDoError("no cluster of the demo belongs mainly to one kind of particle.")
    selection = Selection(str(card["centers_sha256"]), tuple(classes), tuple(colors))
    run.clusters.folder.write_toml(SELECTION, selection.to_toml())
    return selection


def score_cells(run: Run, cells: dict[str, Cell], chosen_on: str) -> dict[str, Any]:
    """Score picks, clusters and label volumes of the cells that had no part in the choice."""
    others = {name: cell for name, cell in cells.items() if name != chosen_on}
    n_clusters = int(run.clusters.card["n_clusters"])
    rows = []
    for name, cell in others.items():
        picks = read_picks(run.picks, name)
        ids, _ = read_assignments(run.assignments, name)
        kinds = {
            kind: cell.positions_of(kind) for kind in cell.class_names[1:] if len(cell.positions_of(kind))
        }
        margins = cluster_margins(
            picks.positions_N3, picks.scores_N, ids, kinds, MATCH_VOXELS * cell.voxel_size_angstrom,
            n_clusters=n_clusters,
        )  # fmt: skip
        rows += [
            {
                "tomogram": name, "class": m.name, "recall": m.recall, "picker_f1": m.threshold.best_f1,
                "clusters_f1": m.selection.f1, "shuffled_f1": m.chance_f1,
            }
            for m in margins
        ]  # fmt: skip
    scores = label_scores(run, others)
    return {"clusters": rows, "labels": _label_rows(scores, next(iter(cells.values())))}


def label_scores(run: Run, cells: dict[str, Cell]) -> SegmentationScores:
    """Compare label volumes with the truth, voxel by voxel, class names matched."""
    counts = []
    for name, cell in cells.items():
        volume = LabelVolume(run.tomogram(name), run.config.segment.labels)
        table = [0, *(cell.class_names.index(kind) for kind in volume.facts.class_names)]
        found = np.array(table, np.uint8)[volume.read(0, Box.whole(cell.labels_ZYX.shape))]
        counts.append(confusion(cell.labels_ZYX, found, len(cell.class_names)))
    return pooled_scores(counts)


def _label_rows(scores: SegmentationScores, cell: Cell) -> list[dict[str, Any]]:
    chance = scores.by_chance()
    return [
        {
            "class": kind, "dice": float(scores.dice_C[value]), "iou": float(scores.iou_C[value]),
            "shuffled_dice": float(chance.dice_C[value]),
        }
        for value, kind in enumerate(cell.class_names)
    ]  # fmt: skip


def as_text(scores: dict[str, Any]) -> str:
    """Lay the scores out as two small tables."""
    lines = [
        "",
        "picks of each kind, F1 of the best choice with the truth in hand (an upper bound for both):",
    ]
    lines.append(f"  {'tomogram':<10}{'kind':<12}{'recall':>8}{'picker':>8}{'clusters':>10}{'shuffled':>10}")
    lines += [
        f"  {row['tomogram']:<10}{row['class']:<12}{row['recall']:>8.2f}{row['picker_f1']:>8.2f}"
        f"{row['clusters_f1']:>10.2f}{row['shuffled_f1']:>10.2f}"
        for row in scores["clusters"]
    ]
    lines += ["", "label volumes against the truth, Dice per class (1 is perfect):"]
    lines.append(f"  {'class':<12}{'Dice':>8}{'IoU':>8}{'shuffled labels':>18}")
    lines += [
        f"  {row['class']:<12}{row['dice']:>8.2f}{row['iou']:>8.2f}{row['shuffled_dice']:>18.2f}"
        for row in scores["labels"]
    ]
    return "\n".join(lines)
