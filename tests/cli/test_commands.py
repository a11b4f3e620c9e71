"""The command line as people and scripts know it: verbs, options, exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cryoscale import __version__
from cryoscale.cli import VERBS, group, run_command
from cryoscale.cli.simulate import WORDS, verb_below
from cryoscale.errors import ConfigurationError, DataError, StateError, SurroundingsError

LISTING = Path(__file__).with_name("command_line.txt")


def command_line() -> Iterator[str]:
    """One line per argument and option of each verb."""
    context = click.Context(group)
    found = {verb: group.get_command(context, verb) for verb in VERBS}
    found |= {f"simulate {word}": verb_below(word) for word in WORDS}
    engine = found.pop("engine")
    assert isinstance(engine, click.Group)
    found |= {f"engine {word}": below for word, below in engine.commands.items()}
    for verb, command in sorted(found.items()):
        assert command is not None
        lines = []
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                lines.append(f"{parameter.human_readable_name}{' ...' if parameter.nargs == -1 else ''}")
            else:
                lines.append(_option(parameter))
        yield from (f"{verb} {line}" for line in sorted(lines))


def _option(option: click.Parameter) -> str:
    assert isinstance(option, click.Option)
    words = ["/".join([*option.opts, *option.secondary_opts])]
    if isinstance(option.type, click.Choice):
        words.append("|".join(option.type.choices))
    elif not option.is_flag:
        words.append(option.type.name)
    words += [word for word, yes in (("repeatable", option.multiple), ("required", option.required)) if yes]
    return " ".join(words)


def test_the_command_line_is_what_it_was() -> None:
    """Scripts of other people stand on it. A change that is meant: write the new lines into the listing."""
    assert list(command_line()) == LISTING.read_text().splitlines()


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in shown


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: cryoscale {verb}")
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{verb} {parameter.name} has no help"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nonsense"], ["run"], ["run", "there", "--nonsense"], ["init", "place"]])
def test_misuse_is_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(words) == 2
    assert "Usage: cryoscale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("too many.", remedy="Take fewer."), 2),
        (StateError("not there."), 2),
        (DataError("broken."), 1),
        (SurroundingsError("full."), 75),
        (click.Abort(), 130),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("cryoscale.cli.run.drive", fail)
    assert run_command(["run", "somewhere"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert str(error) in said.err
    assert len(said.err.splitlines()) == 1


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("cryoscale.cli.run.drive", fail)
    with pytest.raises(ZeroDivisionError):
        run_command(["run", "somewhere"])


@pytest.mark.parametrize(
    "words", [["run"], ["status"], ["export"], ["pick"], ["train"], ["run", "--dry-run"]]
)
def test_a_place_without_a_run_is_exit_2(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *options = words
    assert run_command([verb, str(tmp_path / "nothing"), *options]) == 2
    assert "cryoscale init" in capsys.readouterr().err
