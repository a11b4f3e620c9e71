"""Words to calls: one file per verb; heavy imports happen inside the command."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import Any

import click

from cryoscale import __version__
from cryoscale.errors import ConfigurationError, CryoscaleError, RefusedError, StateError, SurroundingsError
from cryoscale.runtime import signals

SURROUNDINGS = 75  # EX_TEMPFAIL of sysexits.h: the same command may go well later
TEMPORARY = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN})

VERBS = {
    "init": "init", "simulate": "simulate", "run": "run", "status": "status",
    "ingest": "stages", "pick": "stages", "train": "train", "encode": "stages", "cluster": "stages",
    "review": "review", "segment": "stages", "export": "export",
    "report": "report", "evaluate": "evaluate", "discover": "discover", "models": "models",
    "engine": "engine", "support": "support", "doctor": "doctor", "bench": "bench", "demo": "demo",
}  # fmt: skip


class LazyGroup(click.Group):
    """A group that imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all verbs, in the order of a day's work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"cryoscale.cli.{VERBS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cryoscale")
def group() -> None:
    """From thousands of cryo-electron tomograms to picks, encodings, clusters and label volumes."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exit 0 done, 1 some work failed, 2 misuse, 75 the surroundings, 128 + n a signal."""
    code = run_command(arguments)
    if code > 128:
        signals.end_at_once()
    sys.exit(code)


def run_command(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; errors made on purpose are one sentence on stderr."""
    # Before any library starts threads: waiting threads should sleep, not spin (see runtime/executor.py).
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
        os.environ.setdefault(name, value)
    with signals.obeyed():
        return _answered(arguments)


def _answered(arguments: list[str] | None) -> int:
    try:
        result: Any = group.main(args=arguments, standalone_mode=False, prog_name="cryoscale")
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except click.ClickException as error:
        error.show()
        return 2
    except (ConfigurationError, StateError, RefusedError) as error:
        click.echo(f"cryoscale: {error}", err=True)
        return 2
    except CryoscaleError as error:
        click.echo(f"cryoscale: {error}", err=True)
        return SURROUNDINGS if isinstance(error, SurroundingsError) else 1
    except OSError as error:  # what the system refuses needs a sentence, not a traceback
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"cryoscale: {place}{error.strerror}.", err=True)
        return SURROUNDINGS if error.errno in TEMPORARY else 1
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    """Say that a signal ended the command, and return its code."""
    cause = signals.obeyed_signal() or signals.Interrupted(signal.SIGINT)
    word = "interrupted" if cause.number == signal.SIGINT else f"ended by {cause}"
    click.echo(f"{word}; finished work is kept.", err=True)
    return cause.exit_code
