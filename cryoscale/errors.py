"""Every exception cryoscale raises on purpose.

The message of an error is for the person at the keyboard: what was wrong, in which file, with which
value, and what to do. Three families matter to the machinery: a `ConfigurationError` is misuse (exit 2),
a `DataError` condemns one tomogram or block (the rest goes on), and a `SurroundingsError` (disk full,
no permission, no workers) condemns nothing: the run pauses and tries again.
"""

from __future__ import annotations


class CryoscaleError(Exception):
    """Base of all errors that cryoscale raises on purpose; its message is meant to be read."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        # `args` must stay (message,) so that the exception survives pickling between processes.
        super().__init__(f"{message} {remedy}".strip())


class ConfigurationError(CryoscaleError):
    """The person asked for something that cannot be: unknown key, impossible value, wrong order. Exit 2."""


class DataError(CryoscaleError):
    """One input or artifact is unusable (broken file, NaN volume, empty masks). The others go on."""


class FormatError(DataError):
    """A file is not what its name claims, or breaks the rules of its format."""


class NothingToDoError(DataError):
    """A step has no input left, for example no pick above the threshold in any tomogram."""


class StateError(CryoscaleError):
    """An artifact is missing, unfinished, or belongs to other parameters."""


class LayoutError(CryoscaleError):
    """A write that is not aligned to the write unit, or a block that leaves its volume: a bug, never data."""


class UndeclaredAccessError(CryoscaleError):
    """A stage opened an artifact that it does not declare in `reads` or `writes`: a bug, never data."""


class SurroundingsError(CryoscaleError):
    """Disk full, no permission, no connection, no workers: nobody's fault in the data; work is kept."""


class RefusedError(SurroundingsError):
    """An engine refuses us, or we refuse it, and will again: other secrets, or none where some are needed."""


class OvertakenError(SurroundingsError):
    """Somebody else goes on with this run, or with this artifact: what is written now could spoil it."""


class MemoryBudgetError(ConfigurationError):
    """A plan promises more bytes per worker than the budget allows."""
