"""What the papers report, in percent, and what is known to differ between their data and ours.

Liu, Zeng, Wang, Guo, Xu 2018, "Multi-task Learning for Macromolecule Classification, Segmentation and Coarse
Structural Recovery in Cryo-Tomography", arXiv:1805.06332: its tables 1 to 3. The paper on SSN3D-ED
(arXiv:1802.04087) is the source of the comparison with SSN3D-FCN and of the structures left out of training.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Pixel accuracy, mIoU and object accuracy, percent; None where the paper has none.

    `converged` is False where the paper marks a training as not converging.
    """

    pixel: float | None = None
    miou: float | None = None
    object_: float | None = None
    converged: bool = True


FAILED = Published(converged=False)

PUBLISHED: dict[tuple[str, str], Published] = {
    ("A", "DSRF3D-v2"): FAILED,
    ("A", "Cls"): Published(object_=76.24),
    ("A", "SSN3D-ED"): Published(98.99, 84.68),
    ("A", "Seg"): Published(99.03, 87.07),
    ("A", "Cls+Rec 1:1"): Published(object_=81.56),
    ("A", "Cls+Rec 1:10"): Published(object_=81.87),
    ("A", "Cls+Seg 1:10"): Published(99.22, 88.70, 84.37),
    ("A", "Cls+Seg 1:100"): Published(99.23, 88.63, 82.81),
    ("A", "DSM-Net"): Published(99.21, 89.00, 93.75),
    ("B", "DSRF3D-v2"): FAILED,
    ("B", "SSN3D-ED"): Published(98.15, 76.43),
    ("B", "Cls"): Published(object_=43.75),
    ("B", "Seg"): Published(98.37, 79.70),
    ("B", "DSM-Net"): Published(98.59, 81.40, 53.12),
    ("C", "DSRF3D-v2"): FAILED,
    ("C", "SSN3D-ED"): Published(95.24, 58.93),
    ("C", "Cls"): FAILED,
    ("C", "Seg"): Published(96.01, 60.38),
    ("C", "DSM-Net"): Published(95.80, 61.26, 100.00),
}
"""By data and row."""

AIMS = {"A": (89.00, 93.75), "B": (81.40, 53.12)}
"""mIoU and object accuracy of DSM-Net that a model of the user's choice is to beat."""

ABOUT_THE_PAPER = (
    "The papers' data sets were never released, and neither was code of DSM-Net. They tested on 320 boxes, "
    "so every object accuracy of theirs is a multiple of 1/320, and give one number per row, without a "
    "spread over trainings.",
    "A and B of the paper are 22 structures of the Protein Data Bank in a tomogram of 600 x 600 x 300 "
    "voxels of 1 nm with 10,000 particles; 3205 boxes of 40 voxels. The SNR is defined by the simulator "
    "that was used; ours divides the variance of the filtered signal by that of all noise, as realised.",
    "C of the paper is real: 400 ribosomes and 386 proteasomes of rat neurons, whose masks are aligned "
    "templates and so not exact; that alone bounds the mIoU there. Ours is simulated, with exact masks: "
    "numbers of C do not compare.",
    "All networks in the tables of A, B and C have the budget of the DSM-Net paper (its section 3.2: Adam "
    "1e-3, betas 0.9 and 0.99, batches of 64, at most 100 epochs, patience 15 on the validation loss), "
    'SSN3D-ED too; only DSRF3D-v2 keeps its own optimiser. The series over SNR, SSN3D-FCN beside "SSN3D-ED, '
    'own recipe", and the structures left out have the recipe of the SSN3D paper (betas 0.9 and 0.999, '
    "batches of 128, at most 150 epochs, patience 20 on the validation accuracy, by 1e-4 at least).",
    "Masks are where a particle's density exceeds 0.2 of its maximum; the paper does not say how it made "
    "its own.",
    "The density that recovery learns is scaled to standard deviation 1 over all boxes, so that its loss "
    "is of the order of the others, as the paper wants it; its own units are not known.",
)
"""What differs whatever the size; `report` adds what the size changes."""
