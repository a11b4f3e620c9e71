"""From what was collected to HTML: templates, formats of numbers, names of files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cryoscale.report.groups import hex_color


def environment() -> Environment:
    """Return the templates; every value is escaped, and a missing one is an error."""
    env = Environment(
        loader=PackageLoader("cryoscale.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        bytes=human_bytes, seconds=human_seconds, count=human_count, css=hex_color, whole=human_whole
    )
    return env


def render(env: Environment, template: str, /, **values: Any) -> bytes:
    """Render a template of `templates/` to UTF-8."""
    return env.get_template(f"{template}.html.j2").render(**values).encode()


def page_names(tomograms: Sequence[str]) -> dict[str, str]:
    """Return a file name for each tomogram that is safe in a URL and on any file system.

    A name with other characters, or one that differs from another only in case, gets some digits of its hash.
    """
    folded = Counter(name.casefold() for name in tomograms)
    names = {}
    for name in tomograms:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".")[:80]
        if plain != name or folded[name.casefold()] > 1:
            plain += "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
        names[name] = plain
    return names


def human_bytes(size: float) -> str:
    """Write a size in B, kB, MB, GB or TB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def human_seconds(seconds: float) -> str:
    """Write a duration in s, min or h."""
    if seconds < 0.95:
        return f"{seconds:.2f} s"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def human_whole(number: float) -> str:
    """Write a number without decimals, thousands apart."""
    return f"{number:,.0f}".replace(",", "\u202f")


def human_count(number: float | None) -> str:
    """Write a large number with k, M or G; nothing for None."""
    if number is None:
        return ""
    for unit in ("", " k", " M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} G"
