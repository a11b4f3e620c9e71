"""The rows of the tables: which network learns what, on which data, by which recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

Heads = tuple[str, ...]
FIRST = ("DSM-Net", "SSN3D-ED", "Seg")
OWN = "SSN3D-ED, own recipe"
GROUPS = {
    "paper": "The papers' rows",
    "ratios": "Ratios of the losses",
    "fcn": "SSN3D-ED beside SSN3D-FCN",
    "left-out": "Structures left out of training",
    "improved": "Improvements on the papers' recipes, each alone and all together",
    "plain": "Plain alternatives",
}
"""Headings of the report."""


@dataclass(frozen=True)
class Row:
    """One line of a table: one training per seed.

    Attributes
    ----------
    data : str
        "A", "B", "C" or "D".
    name : str
        As in the papers, where it is of them.
    model : str
        In the registry; "monai-unet" is MONAI's.
    groups : tuple of str
        The tables it stands in, of `GROUPS`; the first gives it its place in the order.
    heads : tuple of str
        Of `dsm-net`; empty: the network's own.
    weights : dict
        Of the losses, by head; empty: those of the recipe.
    improved : tuple of str
        Improvements on the paper's recipe, as `cryoscale.learn.recipes` names them.
    left_out : bool
        Train without some of the classes, test on these alone.
    budget : str
        The network of whose recipe optimiser, batch, epochs and stopping are taken; empty: its own.
    """

    data: str
    name: str
    model: str
    groups: tuple[str, ...] = ("paper",)
    heads: Heads = ()
    weights: dict[str, float] = field(default_factory=dict)
    improved: tuple[str, ...] = ()
    left_out: bool = False
    budget: str = ""

    @property
    def key(self) -> str:
        """What `--rows` selects by, and results are filed under."""
        return f"{self.data}/{self.name}"


def _dsm(data: str, name: str, *heads: str, groups: tuple[str, ...] = ("paper",), **weights: float) -> Row:
    return Row(data, name, "dsm-net", groups, heads, weights)


def _papers(data: str) -> list[Row]:
    """Return the rows that stand in the tables for every data set."""
    return [
        _dsm(data, "DSM-Net", "cls", "seg", "rec"),
        Row(data, "SSN3D-ED", "ssn3d-ed", budget="dsm-net"),  # its section 3.2: one budget for all
        _dsm(data, "Seg", "seg"),
        _dsm(data, "Cls", "cls"),
        Row(data, "DSRF3D-v2", "dsrf3d-v2"),
    ]


def _improved(data: str, names: Sequence[str]) -> list[Row]:
    """Return DSM-Net with each improvement alone, then the networks with all of them."""
    without = tuple(name for name in names if name != "batch_norm")  # our U-Net has it anyway
    alone = [Row(data, f"DSM-Net, {name}", "dsm-net", ("improved",), improved=(name,)) for name in names]
    together = [
        Row(data, "DSM-Net, all", "dsm-net", ("improved",), improved=tuple(names)),
        Row(data, "SSN3D-ED, all", "ssn3d-ed", ("improved",), improved=tuple(names), budget="dsm-net"),
        Row(data, "unet3d, all", "unet3d", ("improved", "plain"), improved=without, budget="dsm-net"),
    ]  # fmt: skip
    return together + alone


def all_rows() -> list[Row]:
    """List all rows, in the order in which they are trained.

    DSM-Net, SSN3D-ED and Seg on A and B come first, then what could beat them, then the rest.
    """
    from cryoscale.learn.recipes import IMPROVEMENTS

    papers = {data: _papers(data) for data in "ABC"}
    first = [row for data in "AB" for row in papers[data] if row.name in FIRST]
    rest = [row for data in "ABC" for row in papers[data] if row not in first]
    plain = [
        Row(data, name, model, ("plain",), budget="dsm-net")
        for data in "AB" for name, model in (("unet3d", "unet3d"), ("MONAI U-Net", "monai-unet"))
    ]  # fmt: skip
    ratios = [
        _dsm("A", "Cls+Rec 1:10", "cls", "rec", groups=("paper", "ratios"), cls=1, rec=10),
        _dsm("A", "Cls+Seg 1:10", "cls", "seg", groups=("paper", "ratios"), cls=1, seg=10),
        _dsm("A", "Cls+Rec 1:1", "cls", "rec", groups=("ratios",), cls=1, rec=1),
        _dsm("A", "Cls+Seg 1:100", "cls", "seg", groups=("ratios",), cls=1, seg=100),
    ]
    fcn = [
        Row("A", OWN, "ssn3d-ed", ("fcn",)),
        Row("A", "SSN3D-FCN", "ssn3d-fcn", ("fcn",)),
        Row("B", OWN, "ssn3d-ed", ("fcn",)),
        Row("B", "SSN3D-FCN", "ssn3d-fcn", ("fcn",)),
        Row("D", OWN, "ssn3d-ed", ("fcn",)),
        Row("D", "SSN3D-FCN", "ssn3d-fcn", ("fcn",)),
    ]
    left_out = [
        Row("A", "SSN3D-ED, left out", "ssn3d-ed", ("left-out",), left_out=True),
        Row("A", "SSN3D-FCN, left out", "ssn3d-fcn", ("left-out",), left_out=True),
        Row("A", "Seg, left out", "dsm-net", ("left-out",), ("seg",), left_out=True),
    ]
    names = tuple(IMPROVEMENTS)
    improved = {data: _improved(data, names) for data in "AB"}
    best = [row for data in "AB" for row in improved[data] if row.name.endswith(", all")]
    others = [row for data in "AB" for row in improved[data] if row not in best]
    return [*first, *best, *plain, *ratios, *rest, *fcn, *left_out, *others]


def chosen(patterns: Sequence[str]) -> list[Row]:
    """Return the rows whose keys fit one of the patterns; all of them without any.

    An unknown one ends the program.
    """
    rows = all_rows()
    for pattern in patterns:
        if not any(fnmatch.fnmatch(row.key, pattern) for row in rows):
            raise SystemExit(f"no row is called {pattern!r}; `python -m benchmarks.dsm_net list` names them")
    return [row for row in rows if not patterns or any(fnmatch.fnmatch(row.key, p) for p in patterns)]
