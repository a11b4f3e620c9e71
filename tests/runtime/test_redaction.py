"""Secrets out of texts and nested values: by their shape, and by what this process knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from cryoscale.runtime.redaction import Redactor, known_secrets
from tests.runtime.secret_shapes import SECRET, SHAPES


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=20)
@given(secret=SECRET)
def test_a_secret_goes_whatever_its_shape(shape: str, strict: bool, secret: str) -> None:
    assert secret not in Redactor(strict=strict).text(SHAPES[shape](secret))


@pytest.mark.parametrize(
    "text",
    [
        "secret=['a', 'x]hunter2horse'], n=1", "secret=('it\\'s)', 'hunter2horse'), n=1",
        "secret=f((1, [2]), 'hunter2horse'), n=1", "secret={'a': {'b': ()}, 'c': 'hunter2horse'}, n=1",
    ],
)  # fmt: skip
def test_a_structure_ends_where_its_bracket_is_closed(text: str) -> None:
    assert Redactor().text(text) == "secret=<removed>, n=1"


def test_a_structure_that_nothing_closes_ends_with_its_line() -> None:
    text = "secret=['a', hunter2horse\n" + "more\n" * 30
    assert Redactor().text(text) == "secret=<removed>\n" + "more\n" * 30


@pytest.mark.parametrize(
    "value", [{"user": "alice", "value": "plainword12"}, ["alice", "plainword12"], ("plainword12",)]
)
def test_a_structure_under_a_name_that_says_secret_goes_whole(value: Any) -> None:
    given = {"secret": value, "credentials": [value], "n": 1, "tokens": []}
    expected = {"secret": "<removed>", "credentials": "<removed>", "n": 1, "tokens": []}
    assert Redactor().value(given) == expected


def test_secrets_in_files_of_clients_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = from-a-file\n")
    (tmp_path / ".config" / "fsspec").mkdir(parents=True)
    (tmp_path / ".config" / "fsspec" / "s3.json").write_text(
        '{"s3": {"key": "fs-key", "secret": "fs secret"}}'
    )
    (tmp_path / "token").write_text("token-in-a-file\n")
    for name, value in {
        "HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_AUTH_MODE": "token",
        "FSSPEC_S3": '{"secret": "from-options"}', "HTTPS_PROXY": "http://me:proxy-password@proxy:3128",
        "GITHUB_PAT": "hub-word", "DB_PW": "pw-word", "CRYOSCALE_SECRETS": str(tmp_path / ".config"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / ".aws" / "config").write_text(
        "[default]\naws_session_token = from-config\ncredential_source = Environment\n"
    )
    (tmp_path / ".netrc").write_text('machine a login me password netrc-word\ndefault password "q w e r"\n')
    known = known_secrets()
    assert known >= {
        "from-a-file", "fs-key", "fs secret", "token-in-a-file", "from-options", "proxy-password",
        "from-config", "netrc-word", "q w e r", "hub-word", "pw-word",
    }  # fmt: skip
    assert known.isdisjoint({"token", "Environment", str(tmp_path)})


def test_what_is_needed_stays() -> None:
    text = "pick of t1, 3: /data/recon/t1.mrc at tls://10.0.0.7:8786, key 0123456789abcdef, 1.5 voxels/s"
    assert Redactor(strict=True).text(text) == text


def test_a_secret_with_quotes_in_it() -> None:
    for text in ('{"password": "ab\\"cdefgh"}', "{'secret': 'ab\\'cdefgh'}"):
        assert "cdefgh" not in Redactor().text(text)


def test_the_same_secret_gets_the_same_mark_within_one_bundle() -> None:
    redactor, other = Redactor(["hunter2-hunter2"]), Redactor(["hunter2-hunter2"])
    assert redactor.text("hunter2-hunter2") == redactor.text("hunter2-hunter2")
    assert redactor.text("hunter2-hunter2") != other.text("hunter2-hunter2")


def test_folders_are_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setenv("PWD", os.getcwd())
    monkeypatch.setenv("OLDPWD", "/data/that/is/gone")
    monkeypatch.setenv("CRYOSCALE_SECRETS", str(secrets))
    monkeypatch.setenv("MYSQL_PWD", "a-real-word")
    known = known_secrets(None)
    assert known.isdisjoint({os.getcwd(), "/data/that/is/gone", str(secrets)})
    assert "a-real-word" in known
