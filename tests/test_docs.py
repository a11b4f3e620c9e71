"""What README and docs say is true: commands, options, keys, defaults, code blocks, links."""

from __future__ import annotations

import contextlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cryoscale import __version__
from cryoscale.cli import VERBS, group
from cryoscale.config import RunConfig, apply_settings, load_config
from cryoscale.data.clusters import parse_selection

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
N_CLUSTERS = 100  # the default; selections in the text name clusters below it

each_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```([a-z]*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    return [Block(language, text) for language, text in found]


def prose(page: Path) -> str:
    """Return the page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def command_lines(page: Path) -> list[list[str]]:
    """Return the words after `cryoscale`: of each line of shell blocks, and of whole commands in the text."""
    shell = [b.text.replace("\\\n", " ") for b in blocks(page) if b.language == "sh"]
    lines = [line for text in shell for line in text.splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`(cryoscale [^`]+)`", prose(page))]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if w and w[0] == "cryoscale"]


def command(verb: str) -> click.Command:
    found = group.get_command(click.Context(group), verb)
    assert found is not None, f"there is no verb '{verb}'"
    return found


def parsed(words: list[str]) -> dict[str, Any]:
    """Parse a command line as click would, without running it.

    A verb alone is its name in the text, and `--help` and `--version` end the parsing: they give no values.
    """
    made: click.Command = group if words[0].startswith("-") else command(words[0])
    if len(words) == 1 and made is not group:
        return {}
    with contextlib.suppress(click.exceptions.Exit):
        return made.make_context("cryoscale", words if made is group else words[1:]).params
    return {}


# -- commands ---------------------------------------------------------------------------------------------


@each_page
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in command_lines(page):
        try:
            values = parsed(words)
        except click.ClickException as error:
            pytest.fail(f"cryoscale {shlex.join(words)}: {error.format_message()}")
        apply_settings(RunConfig(), list(values.get("settings", ())))


def test_stages_and_fits_that_are_named_exist() -> None:
    from cryoscale.pipeline.order import steps_for

    steps = steps_for(RunConfig())
    for page in PAGES:
        for words in command_lines(page):
            values = parsed(words) if words[0] == "run" else {}
            assert values.get("until") in (None, *(step.name for step in steps)), words
            assert set(values.get("refit", ())) <= {step.name for step in steps if step.fit}, words
    text = (ROOT / "docs" / "commands.md").read_text()
    listed = re.search(r"^\| `--until STAGE` \| stop after this stage: (.*) \|$", text, flags=re.M)
    assert listed
    assert re.findall(r"`(\w+)`", listed[1]) == [step.name for step in steps]


def test_commands_page_has_every_verb_and_option() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S))
    by_stage = ("ingest", "pick", "encode", "cluster", "segment")
    for verb in VERBS:
        section = sections["Single stages" if verb in by_stage else verb]
        for option in command(verb).params:
            if isinstance(option, click.Option) and not option.hidden:
                assert f"`{option.opts[0]}" in section, f"{verb} {option.opts[0]}"
    named = {verb: set(re.findall(r"^\| `(--[a-z-]+)", sections[verb], flags=re.M)) for verb in sections}
    for verb, options in named.items():
        if options:
            assert options <= {name for option in command(verb).params for name in option.opts}, verb


# -- configuration ----------------------------------------------------------------------------------------


def keys_with_defaults() -> Iterator[tuple[str, str]]:
    """Yield each key of `run.toml` as `table.key`, with its default as the page writes it."""
    for name, field in RunConfig.model_fields.items():
        if (table := table_in(field)) is None:
            yield name, as_toml(field.default)
        else:
            yield from keys_of_table(name, table)


def keys_of_table(path: str, table: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for key, field in table.model_fields.items():
        if (inner := table_in(field)) is None:
            yield f"{path}.{key}", as_toml(field.default)
        else:
            yield from keys_of_table(f"{path}.{key}", inner)


def table_in(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a table, of an optional table, or of an array of tables."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def as_toml(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def test_configuration_page_lists_every_key_with_its_default_and_no_other() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z_.0-9]+)` \| ([^|]+?) \|", text, flags=re.M)
    assert len(dict(rows)) == len(rows), "a key is listed twice"
    assert dict(rows) == dict(keys_with_defaults())


@each_page
def test_keys_in_the_text_exist(page: Path) -> None:
    """`table.key` in backticks, with or without a value, names a key."""
    known = dict(keys_with_defaults())
    tables = {key.partition(".")[0] for key in known if "." in key}
    for table, key in re.findall(r"`([a-z]+)\.([a-z_.]+)(?: = [^`]*)?`", prose(page)):
        if table in tables and key not in ("toml", "csv"):
            assert f"{table}.{key}" in known, f"{page.name}: {table}.{key}"


# -- code and links ---------------------------------------------------------------------------------------


@each_page
def test_code_blocks_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(page), "exec")
        elif block.language == "toml":
            raw = tomllib.loads(block.text)
            if "classes" in raw:
                assert parse_selection(raw, N_CLUSTERS, origin=page.name) is not None
            else:
                load_config(block.text, origin=page.name)
        else:
            assert block.language in ("", "sh"), f"nobody checks blocks of '{block.language}'"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        assert place.is_relative_to(ROOT), f"{page.name}: {target} leaves the project"
        if anchor:
            assert anchor in anchors(place), f"{page.name}: {target}"


def test_pages_that_the_code_names_exist() -> None:
    for module in (ROOT / "cryoscale").rglob("*.py"):
        for name in re.findall(r"docs/[\w/.-]+\.md", module.read_text()):
            assert (ROOT / name).exists(), f"{module.name}: {name}"


def test_changelog_has_this_version() -> None:
    assert f"## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
