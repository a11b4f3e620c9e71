"""The selection that a person edits: a commented template, or the suggestion taken as it is."""

from __future__ import annotations

import re
from typing import Any

import tomli_w

from cryoscale.data.clusters import SELECTION
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.report.collect import Choice

HEAD = """\
# Which clusters make up which class. Look at reports/clusters.html, then write one table for each class:
#
#   [classes.ribosome]         any name; quote it if it has blanks: [classes."cell wall"]
#   clusters = [3, 7, 12]      ids of clusters, {first} to {last}; a cluster belongs to one class at most
#   color = "#e69f00"          may be left out
#
# Classes get the values 1, 2, … in the order in which they stand here. Clusters in no class are background,
# but with segmenter.ignore_unselected = true (the default) objects in them are left out of the training.
# Save, then go on with: cryoscale run RUN

# The clustering that you looked at; leave this line as it is.
clustering = "{clustering}"
"""


def require_review(choice: Choice, run: Run) -> dict[str, Any]:
    """Return the suggestion; raises `StateError` before there is anything to choose from."""
    if not choice.clustered or not choice.reviewed or choice.suggestion is None:
        raise StateError(
            f"{run.folder.url} has no reviewed clusters to choose from yet.",
            remedy=f"Make them: cryoscale run {run.folder.url} --until review",
        )
    return choice.suggestion


def template(choice: Choice, suggestion: dict[str, Any]) -> str:
    """Return a `selection.toml` that chooses nothing, with the suggestion as comments."""
    text = HEAD.format(first=0, last=choice.n_clusters - 1, clustering=suggestion["clustering"])
    if not suggestion.get("classes"):
        return text + "\n# Nothing is suggested: no decoded centre looks like an object.\n"
    tables = _one_line_each(suggestion["classes"]).splitlines()
    comments = "".join(f"# {line}".rstrip() + "\n" for line in tables)
    heading = "\n# What the shapes of the decoded centres suggest; remove the # signs to take it:\n#\n"
    return text + heading + comments


def _one_line_each(classes: dict[str, Any]) -> str:
    """Write tables of classes as TOML with each list on one line, as a person would."""
    text = tomli_w.dumps({"classes": classes})
    return re.sub(
        r"clusters = \[[^\]]*\]",
        lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(", ]", "]"),
        text,
    )


def write_template(run: Run, choice: Choice) -> bool:
    """Write the template unless there is a `selection.toml`; say whether it was written."""
    suggestion = require_review(choice, run)
    if run.clusters.folder.exists(SELECTION):
        return False
    run.clusters.folder.write_bytes(SELECTION, template(choice, suggestion).encode())
    return True


def accept_suggestion(run: Run, choice: Choice) -> bool:
    """Write the suggestion as the selection; say whether that changed anything.

    A selection for an earlier clustering is kept beside it as `selection-earlier.toml`.

    Raises
    ------
    ConfigurationError
        A person chose otherwise for this clustering, or nothing is suggested.
    """
    suggestion = require_review(choice, run)
    folder = run.clusters.folder
    if not suggestion.get("classes"):
        raise ConfigurationError(
            "the suggestion selects no cluster: no decoded centre looks like an object.",
            remedy=f"Look at reports/clusters.html and edit {folder.path(SELECTION)} by hand.",
        )
    plain = {key: suggestion[key] for key in ("clustering", "classes")}
    suggested = [[name, table["clusters"]] for name, table in plain["classes"].items()]
    if choice.chosen is not None and choice.chosen.content == suggested:
        return False
    if choice.problem or choice.chosen is not None:
        raise ConfigurationError(
            choice.problem or f"{folder.path(SELECTION)} chooses other clusters than the suggestion.",
            remedy=f"To take the suggestion, move {folder.path(SELECTION)} away and try again.",
        )
    if choice.selection is not None:
        folder.write_bytes("selection-earlier.toml", folder.read_bytes(SELECTION))
    folder.write_toml(SELECTION, plain)
    return True
