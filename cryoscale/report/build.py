"""Write the report of a run to `RUN/reports/`; pages of tomograms that did not change are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoscale import __version__
from cryoscale.config import RunConfig
from cryoscale.config.run import parameters_key
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.report.clusters import make_sheets, read_all_assignments
from cryoscale.report.collect import StageName, Summary, summarise
from cryoscale.report.groups import Groups, groups_for
from cryoscale.report.html import environment, page_names, render
from cryoscale.report.tomogram import make_page, open_artifacts
from cryoscale.report.training import make_models

if TYPE_CHECKING:
    from jinja2 import Environment

MADE = "made.json"  # which page was made of what
MOST_TOMOGRAMS = 50


@dataclass(frozen=True)
class ReportOptions:
    """How much to draw.

    Parameters
    ----------
    most_tomograms : int
        Tomograms that get a page with pictures, the first by name.
    tomograms : tuple of str
        Tomograms that get one in any case.
    clusters_only : bool
        Draw no tomogram: the pages that stand are kept as they are.
    """

    most_tomograms: int = MOST_TOMOGRAMS
    tomograms: tuple[str, ...] = ()
    clusters_only: bool = False


@dataclass
class Images:
    """Saves pictures under `images/` and can remove those of an earlier report."""

    folder: Folder
    saved: set[str] = field(default_factory=set)

    def save(self, name: str, data: bytes) -> None:
        """Save one picture; `name` is relative to `images/`."""
        self.folder.write_bytes(f"images/{name}", data)
        self.saved.add(name)

    def prune(self, under: str) -> None:
        """Delete the pictures of a folder that were not saved this time."""
        for name in self.folder.names(f"images/{under}"):
            if f"{under}/{name}" not in self.saved:
                self.folder.delete(f"images/{under}/{name}")


@dataclass(frozen=True)
class _Builder:
    run: Run
    config: RunConfig
    summary: Summary
    options: ReportOptions
    env: Environment
    images: Images
    made: dict[str, str]

    @property
    def folder(self) -> Folder:
        return self.images.folder

    def write(self, name: str, template: str, /, **values: Any) -> None:
        root = "../" if "/" in name else ""
        common = {
            "root": root,
            "summary": self.summary,
            "title_of_run": self.summary.place.rsplit("/", 1)[-1],
        }
        self.folder.write_bytes(name, render(self.env, template, **common, **values))


def write_report(
    run: Run,
    stages: Sequence[StageName] = (),
    options: ReportOptions | None = None,
    to: Folder | None = None,
) -> str:
    """Write the report and return the path of its first page.

    Parameters
    ----------
    run : Run
        At any stage of its work; sections appear when their artifacts exist.
    stages : sequence of StageName
        The stages in order, so that those not begun are shown too.
    options : ReportOptions, optional
        How much to draw.
    to : Folder, optional
        Where to write, in place of `RUN/reports`.

    Raises
    ------
    ConfigurationError
        `options.tomograms` names a tomogram that the run does not have.
    """
    options = options or ReportOptions()
    config = run.config
    folder = to or run.folder.child("reports")
    summary = summarise(run, config, stages)
    _check_names(options, summary)
    b = _Builder(run, config, summary, options, environment(), Images(folder), _read_made(folder))
    folder.delete(MADE)  # a report that is killed half-way is made anew
    groups = _write_clusters(b)
    pages = _write_tomograms(b, groups)
    models = make_models(run, b.images.save, supervised=config.supervised.model)
    b.images.prune("training")
    b.write("training.html", "training", models=models)
    shown = [name for name in summary.tomograms if name in pages]
    thumbs = [name for name in shown if folder.exists(f"images/{pages[name][:-5]}/thumb.png")]
    b.write(
        "index.html", "index", pages=pages, shown=shown, thumbs=thumbs, most=options.most_tomograms,
        discoveries=_discoveries(run),
    )  # fmt: skip
    folder.write_json(MADE, b.made)
    return folder.path("index.html")


def _discoveries(run: Run) -> list[str]:
    """List the folders in which `cryoscale discover` left a page."""
    found = run.folder.child("discovery")
    return [name for name in found.names() if found.exists(f"{name}/index.html")]


def _check_names(options: ReportOptions, summary: Summary) -> None:
    for name in options.tomograms:
        if name not in summary.tomograms:
            raise ConfigurationError(
                f"{summary.place} has no tomogram '{name}'.",
                remedy="Its names stand in run.toml, under inputs.",
            )


def _read_made(folder: Folder) -> dict[str, str]:
    """Read what the pages were made of; anything unreadable means that all are made anew."""
    try:
        made = folder.read_json(MADE)
    except (FileNotFoundError, StateError):
        return {}
    return {str(k): str(v) for k, v in made.items()} if isinstance(made, Mapping) else {}


def _templates_key() -> str:
    templates = Path(__file__).with_name("templates")
    return parameters_key([path.read_text() for path in sorted(templates.iterdir())])


def _write_clusters(b: _Builder) -> Groups | None:
    """Write the page of clusters and return the colours of picks."""
    choice = b.summary.choice
    if not choice.clustered:
        b.made.pop("clusters", None)
        b.write("clusters.html", "clusters", sheets=[], groups=None, assigned=0)
        return None
    assignments = read_all_assignments(b.run, b.summary.tomograms, choice.n_clusters)
    groups = groups_for(choice, assignments.counts_TK.sum(axis=0))
    units = sorted(u for u in b.summary.units if u[0] in ("pick", "assign", "review"))
    ended = [[*unit, b.summary.units[unit].key, b.summary.units[unit].finished] for unit in units]
    key = parameters_key([_templates_key(), __version__, str(choice), ended, assignments.tomograms])
    if b.made.get("clusters") == key and b.folder.exists("clusters.html"):
        return groups
    b.made["clusters"] = key
    sheets = make_sheets(b.run, choice, assignments, groups, b.images.save)
    b.images.prune("clusters")
    b.write("clusters.html", "clusters", sheets=sheets, groups=groups, assigned=len(assignments.tomograms))
    return groups


def _write_tomograms(b: _Builder, groups: Groups | None) -> dict[str, str]:
    """Write the pages of the chosen tomograms and return the address of each."""
    names = page_names(b.summary.tomograms)
    chosen = _chosen(b, names)
    templates = _templates_key()
    for name in sorted(set(names) - set(chosen)):
        if b.made.pop(f"tomogram {name}", None):
            b.folder.delete(f"tomograms/{names[name]}.html")
            b.folder.delete(f"images/tomograms/{names[name]}")
    for place, name in enumerate(chosen):
        before = chosen[place - 1] if place else ""
        after = chosen[place + 1] if place + 1 < len(chosen) else ""
        near = {"before": names.get(before, ""), "after": names.get(after, "")}
        key = parameters_key([templates, __version__, near, _facts_of(b, name, groups)])
        stands = b.folder.exists(f"tomograms/{names[name]}.html")
        if stands and (b.options.clusters_only or b.made.get(f"tomogram {name}") == key):
            continue
        b.made[f"tomogram {name}"] = (
            key if _write_tomogram(b, name, names[name], near, groups) else "problems"
        )
    return {name: f"tomograms/{names[name]}.html" for name in chosen}


def _chosen(b: _Builder, names: Mapping[str, str]) -> list[str]:
    """List the tomograms that get a page: ingested ones, those asked for and then the first by name."""
    there = [name for name in names if b.run.tomogram(name).exists("zarr.json")]
    if b.options.clusters_only:
        return [name for name in there if b.folder.exists(f"tomograms/{names[name]}.html")]
    first = [name for name in there if name not in b.options.tomograms][: b.options.most_tomograms]
    wanted = {*first, *b.options.tomograms}
    return [name for name in there if name in wanted]


def _facts_of(b: _Builder, name: str, groups: Groups | None) -> list[Any]:
    """Return what the page of a tomogram depends on."""
    units = [(stage, u.key, u.finished) for (stage, unit), u in b.summary.units.items() if unit == name]
    failures = [(f.stage, f.reason) for f in b.summary.failures if f.tomogram == name]
    colors = [groups.what, groups.names, groups.colors, groups.group_K.tolist()] if groups else []
    return [sorted(units), failures, colors, b.config.pick, b.config.patch.box, b.config.segment.labels]


def _write_tomogram(
    b: _Builder, name: str, file: str, near: Mapping[str, str], groups: Groups | None
) -> bool:
    """Write one page; say whether all of it could be drawn."""
    unit = b.summary.units.get(("pick", name))
    artifacts = open_artifacts(b.run, b.config, name, unit.value if unit else {})
    if artifacts is None:
        b.write(f"tomograms/{file}.html", "tomogram", page=None, name=name, near=near)
        return False
    page = make_page(name, f"tomograms/{file}", artifacts, b.config, groups, b.images.save)
    b.images.prune(f"tomograms/{file}")
    b.write(f"tomograms/{file}.html", "tomogram", page=page, name=name, near=near)
    return not page.problems
