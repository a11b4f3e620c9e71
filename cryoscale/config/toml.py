"""TOML in and out; errors name the file, the key, and the key that was probably meant."""

from __future__ import annotations

import difflib
import tomllib
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from cryoscale.config.run import RunConfig
from cryoscale.errors import ConfigurationError


def load_config(text: str, *, origin: str = "run.toml") -> RunConfig:
    """Parse and validate `run.toml`.

    Raises
    ------
    ConfigurationError
        Not TOML, an unknown key (with the nearest known one), or a value out of range.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{origin} is not valid TOML: {error}.") from error
    return validate(raw, origin=origin)


def validate(raw: dict[str, Any], *, origin: str) -> RunConfig:
    """Turn plain tables into a `RunConfig`; raises `ConfigurationError` with every problem listed."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(problem, raw) for problem in error.errors()]
        raise ConfigurationError(f"{origin}: " + "; ".join(problems)) from error


def _explain(problem: Any, raw: dict[str, Any]) -> str:
    path = [part for part in problem["loc"] if isinstance(part, str) or part is not None]
    key = ".".join(str(part) for part in path)
    if problem["type"] != "extra_forbidden":
        message = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "credentials":
            return f"{key}: {message}"  # without its value
        return f"{key} = {problem.get('input')!r}: {message}" if key else message
    known = _known_keys(path[:-1])
    near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys are {', '.join(sorted(known))}"
    return f"unknown key '{key}'; {hint}"


def _known_keys(path: list[Any]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        kind: Any = field.annotation if field else None
        # `inputs` is a tuple of tables
        kind = next((part for part in get_args(kind) if isinstance(part, type)), kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
    return list(model.model_fields)


def dump_config(config: RunConfig) -> str:
    """Write a configuration as TOML; keys without a value (None) are left out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def apply_settings(config: RunConfig, settings: list[str]) -> RunConfig:
    """Apply `table.key=value` words, as given to `--set`; tables within tables are `table.inner.key=value`.

    The value is read as TOML and, failing that, as a plain string: `pick.z_range=auto` works unquoted.

    Raises
    ------
    ConfigurationError
        A word without `=` or without a table, or anything that `validate` refuses.
    """
    raw = _without_none(config.model_dump(mode="json"))
    for word in settings:
        key, equals, text = word.partition("=")
        *tables, name = key.strip().split(".")
        if not (equals and tables and name):
            raise ConfigurationError(f"--set {word!r} is not of the form table.key=value.")
        inner = raw
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"--set {word!r}: '{table}' is not a table of run.toml.")
        inner[name] = _parse_value(text.strip())
    return validate(raw, origin="--set")


def _parse_value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
