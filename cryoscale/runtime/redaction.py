"""Secrets out of texts: by their values where these are known, by their shape everywhere else.

Shapes cannot know every secret. What leaves the machine (a support bundle) is therefore put together from an
allow-list of things, and passes through here besides; see `docs/operations.md`.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import secrets as random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

SHORTEST = 6  # known values shorter than this occur in texts by chance
LINES, CHARACTERS = 20, 500  # in which the end of a list, and of an XML element, is looked for
LONGEST_LINE = 20_000  # characters; nothing that a person reads, and time for regular expressions

# Words in the names of variables, keys and options whose values nobody else should see.
_WORDS = (
    r"pass(?:word|wd|phrase)|pass(?![a-z])|pwd|secret|token|credential|api_?key|access_?key|private_?key|"
    r"account_?key|shared_?key|session_?key|signature|authorization|cookie|connection_?string|"
    r"(?<![a-z])(?:auth|dsn|sas|sig)(?![a-z])|(?<=[_-])(?:pat|pw)(?![a-z])"
)
SECRET_NAME = re.compile(rf"(?i)(?:{_WORDS}|^key$|[_-]key$)")
_FOLDERS = frozenset({"PWD", "OLDPWD"})  # of the shell; MYSQL_PWD is a password
_WAYS = frozenset({"credential_source", "credential_process"})  # say where a secret comes from, and hold none
_SYSTEM_USERS = frozenset(
    {"root", "user", "users", "ubuntu", "ec2-user", "cryoscale", "ray", "data", "runner"}
)

_PEM = re.compile(r"-----BEGIN [^-]{0,60}-----.*?(?:-----END [^-]{0,60}-----|\Z)", re.S)
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}://)([^\s\"'<>]{0,2000}@)")
_LOGIN_PASSWORD = re.compile(r"://[^\s/:@]*:([^\s@]+)@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s?\"'<>]{0,2000})\?[^\s\"'<>]+")
_HEADER = re.compile(
    r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,30}(?:token|key|signature)[\w-]{0,20})"
    r"(\\{0,8}[\"']{0,2}\s{0,4}[:=]\s{0,4}\\{0,8}[\"']{0,2})[^\n\"']+"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+|(?:basic|negotiate|digest)\s+(?=\S*[0-9=+/]))([^\s\"',;]{4,})")
# Quotes may be escaped, once for each time that JSON was put into JSON, or doubled as in CSV.
_NAMED = rf"(?i)((?:(?:{_WORDS})[\w.-]{{0,40}}|key)\\{{0,8}}[\"']{{0,2}}\s{{0,4}}[:=]\s{{0,4}})"
_OPENED = re.compile(_NAMED + r"(?:[A-Za-z_][\w.]{0,80})?(?=[(\[{])")  # a tuple, list, mapping or call
_MARK = re.compile(r"(\\{0,8})(\"\"|''|[\"'])|[(\[{]|[)\]}]|\n")
_ELEMENT = re.compile(
    rf"(?i)(<((?:[\w-]{{1,40}}:)?[\w.-]{{0,40}}(?:{_WORDS})[\w.-]{{0,40}})(?:\s[^<>]{{0,200}})?>)"
    rf"(?:[^\0]{{1,{CHARACTERS}}}?(?=</\2\s{{0,4}}>)|[^\s<]+)"
)
_ASSIGNED = re.compile(
    _NAMED + r"(\"\"[^\"\n]+\"\"|\\{1,8}\"[^\"\n]*\"|\"(?:[^\"\\\n]|\\.)*\"|"
    r"''[^'\n]+''|\\{1,8}'[^'\n]*'|'(?:[^'\\\n]|\\.)*'|[^\s\"']\S*)"
)
_PASSWORD = re.compile(r"(?i)\b(pass(?:word|wd|phrase)\s{0,4}[:=]\s{0,4})(?=[^\s\"'<]|<removed>)[^\n\"']*")
_OPTION = re.compile(rf"(?i)(?<!\S)(--?[\w-]{{0,40}}(?:{_WORDS})[\w-]{{0,20}}[ =])([^\s-]\S*)")
_ISSUED = re.compile(
    r"\b(?:(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}|(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|hf_|AIza|"
    r"ya29\.|eyJ)[\w.-]{10,})"
)
_AWS_SECRET = re.compile(
    r"(?<![A-Za-z0-9/+])(?=[a-z0-9/+]*[A-Z])(?=[A-Z0-9/+]*[a-z])(?=[A-Za-z/+]*[0-9])[A-Za-z0-9/+]{40}"
    r"(?![A-Za-z0-9/+])"
)
_BASE64 = re.compile(r"(?<![\w+/-])(?=[^\s/]{32})[A-Za-z0-9+/_-]{60,}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{32,}(?![0-9A-Fa-f])")
_LONG_TOKEN = re.compile(
    r"(?<![\w/-])(?=[a-z0-9_-]*[A-Z])(?=[A-Z0-9_-]*[a-z])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{32,}(?![\w/-])"
)
_HOME = re.compile(r"(?i)((?:^|[/\\])(?:home|users)[/\\])([^/\\\s\"':]+)")
_MAIL = re.compile(r"(?<![/\w.+-])[\w.+-]{1,64}@(?=[\w-]{1,63}\.[\w.-]{1,200})")
_LEDGER_KEY = re.compile(r"[\"']?[0-9a-f]{16}[\"']?[,;)}\]]*")


class Redactor:
    """Takes secrets out of texts and of nested values.

    Each becomes `<removed:xxxxxxxx>`: the same one gives the same eight digits, and other digits with each
    `Redactor`, so that nobody can try out passwords against them.

    Parameters
    ----------
    values : iterable of str
        Secrets that are known; found wherever they stand, quoted for URLs and JSON too.
    strict : bool
        Also take out what only might be a secret (long random words, digests) and the names of people: for
        what leaves the machine. Without it, digests and home folders stay, for the run's own logs.
    """

    def __init__(self, values: Iterable[str] = (), *, strict: bool = False) -> None:
        self.strict = strict
        self._salt = random.token_bytes(16)
        forms = {form for value in values if len(value) >= SHORTEST for form in _forms(value)}
        ordered = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        user = _user() if strict else ""
        self._user = re.compile(rf"(?<!\w){re.escape(user)}(?!\w)") if user else None

    def text(self, text: str) -> str:
        """Return the text without secrets; lines of more than 20,000 characters are cut."""
        if self._known is not None:
            text = self._known.sub(self._tag, text)
        text = _PEM.sub(self._tag, text)
        if len(text) > LONGEST_LINE:
            text = "\n".join(line[:LONGEST_LINE] for line in text.split("\n"))
        text = _LOGIN.sub(self._login, text)
        text = _QUERY.sub(r"\1?<removed>", text)
        text = _ELEMENT.sub(r"\1<removed>", text)
        text = _without_structures(text)  # before the others, which end at quotes
        text = _HEADER.sub(r"\1\2<removed>", text)
        text = _PASSWORD.sub(r"\1<removed>", text)
        for pattern in (_ASSIGNED, _OPTION, _BEARER):
            text = pattern.sub(self._after, text)
        text = _ISSUED.sub(self._tag, text)
        text = _AWS_SECRET.sub(self._tag, text)
        return self._strictly(text) if self.strict else text

    def value(self, value: Any, *, key: str = "") -> Any:
        """Return nested dictionaries and lists without secrets; what is named as one goes whole."""
        if isinstance(value, (Mapping, list, tuple, set)) and value and SECRET_NAME.search(key):
            return "<removed>"
        if isinstance(value, Mapping):
            if SECRET_NAME.search(
                str(value.get("name", ""))
            ):  # {"name": …, "value": …}, as Kubernetes writes
                value = {**value, "value": None}
            return {self.text(str(k)): self.value(v, key=str(k)) for k, v in value.items()}
        if isinstance(value, (list, tuple, set)):
            return [self.value(item) for item in value]
        if isinstance(value, bool) or value is None:
            return value
        if SECRET_NAME.search(key) and not _LEDGER_KEY.fullmatch(str(value)):
            return "<removed>"
        return value if isinstance(value, (int, float)) else self.text(str(value))

    def _strictly(self, text: str) -> str:
        for pattern in (_HEX, _BASE64, _LONG_TOKEN):
            text = pattern.sub(self._tag, text)
        text = _HOME.sub(r"\1<user>", text)
        text = _MAIL.sub("<user>@", text)
        return self._user.sub("<user>", text) if self._user is not None else text

    def _tag(self, found: re.Match[str]) -> str:
        return f"<removed:{hashlib.blake2b(found[0].encode(), key=self._salt, digest_size=4).hexdigest()}>"

    @staticmethod
    def _login(found: re.Match[str]) -> str:
        """Take out `user:password@`, and a name alone, but where it is that of a container of Azure."""
        scheme, login = found[1], found[2]
        if ":" in login:
            return f"{scheme}<removed>@"
        name, at, rest = login.partition("@")
        if "/" in name or scheme.lower() in ("abfs://", "abfss://", "wasb://", "wasbs://"):
            return found[0]
        return f"{scheme}<user>{at}{rest}"

    @staticmethod
    def _after(found: re.Match[str]) -> str:
        if found[2].startswith("<removed") or _LEDGER_KEY.fullmatch(found[2]):
            return found[0]
        quotes = re.match(r"\\*[\"']*", found[2])
        mark = quotes[0] if quotes and len(quotes[0]) < len(found[2]) else ""
        return f"{found[1]}{mark}<removed>{mark}"


def _without_structures(text: str) -> str:
    """Take out tuples, lists, mappings and calls under a name that says secret, with all that is in them."""
    kept, begin = [], 0
    while found := _OPENED.search(text, begin):
        end = _end_of_structure(text, found.end())
        kept += [text[begin : found.end(1)], "<removed>"]
        begin = end
    return "".join([*kept, text[begin:]])


def _end_of_structure(text: str, begin: int) -> int:
    """Return where the bracket that opens here is closed; if nothing closes it, where the line ends.

    Brackets within quotes do not count. A quote that is left open ends at the end of its line.
    """
    depth, quote, lines = 0, "", 0
    for mark in _MARK.finditer(text, begin):
        if mark[0] == "\n":
            lines += 1
            if quote:
                return mark.start()
            if lines > LINES:
                break
        elif quote:
            quote = "" if mark[0] == quote else quote
        elif mark[2]:
            quote = mark[0]
        else:
            depth += 1 if mark[0] in "([{" else -1
            if not depth:
                return mark.end()
    line = text.find("\n", begin)
    return line if line >= 0 else len(text)


def redacted(text: str) -> str:
    """Return a text without what looks like a secret; for messages and logs that stay with the run."""
    return _PLAIN.text(text)


_PLAIN = Redactor()


def known_secrets(folder: str | os.PathLike[str] | None = None) -> set[str]:
    """Collect secrets of this process, only to look for them in texts.

    Parameters
    ----------
    folder : path, optional
        Secrets of the clusters (`--secrets`): every file in it.

    Returns
    -------
    values : set of str
        Values of variables whose name says so, contents of the files they point to, of `~/.aws/credentials`,
        `~/.aws/config`, `~/.netrc` and `~/.config/fsspec`, the token and the lines of the private key.
    """
    found: set[str] = set()
    for name, value in os.environ.items():
        found.update(_LOGIN_PASSWORD.findall(value))
        if name.startswith("FSSPEC_"):  # storage options as JSON
            found.update(_assigned(value))
        if SECRET_NAME.search(name) and name not in _FOLDERS:
            found.update(_meant(value))
    for place in (folder, os.environ.get("CRYOSCALE_SECRETS")):
        if place and Path(place).is_dir():
            for path in Path(place).iterdir():
                found.update(_of_file(path))
    home = Path.home() if "HOME" in os.environ else Path("/nonexistent")
    for variable, file in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        named = os.environ.get(variable)
        found.update(_assigned(_small(Path(named) if named else home / ".aws" / file)))
    netrc = _small(Path(os.environ.get("NETRC") or home / ".netrc"))
    words = re.findall(r"\b(?:password|account)\s+(\"[^\"]+\"|\S+)", netrc)
    found.update(word.strip('"') for word in words)
    for path in sorted((home / ".config" / "fsspec").glob("*")):
        found.update(_assigned(_small(path)))
    return {value for value in found if len(value) >= SHORTEST}


def _meant(value: str) -> set[str]:
    """Return the secrets that a value means: those in the file that it names, none in a folder, or itself."""
    if value.lower() in ("", "token", "true", "false"):
        return set()
    try:
        if os.path.isabs(value) and Path(value).exists():
            return _of_file(Path(value))
    except (OSError, ValueError):
        pass
    return {value}


def _of_file(path: Path) -> set[str]:
    """Return the content of a small file, whole and line by line, without the lines around a PEM block."""
    text = _small(path)
    lines = {line.strip() for line in text.splitlines() if "-----" not in line}
    return {text.strip(), *lines} - {""}


def _assigned(text: str) -> set[str]:
    """Return what settings, as JSON, INI or YAML, give to names that say secret."""
    rows = re.findall(r"[\"']?([\w.-]+)[\"']?\s*[:=]\s*(?:\"([^\"]+)\"|'([^']+)'|([^\s\"',]+))", text)
    named = {"".join(values) for name, *values in rows if SECRET_NAME.search(name) and name not in _WAYS}
    return {secret for value in named for secret in _meant(value)}


def _small(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > 2**16:
            return ""
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _forms(value: str) -> set[str]:
    """Return how a value may be written: as it is, in a URL, in a JSON string, with Python's escapes."""
    return {value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1], repr(value)[1:-1]}


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
    return "" if len(name) < 3 or name in _SYSTEM_USERS else name
