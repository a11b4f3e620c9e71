"""From patterns to files to names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cryoscale.errors import ConfigurationError, SurroundingsError
from cryoscale.formats.inputs import content_id, expand_inputs, names_for, tomogram_name


def test_globs_and_paths_each_file_once(tmp_path: Path) -> None:
    for name in ("b.mrc", "a.mrc", "c.rec", "[x].map", "sub/d.st"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = expand_inputs(
        [f"{tmp_path}/c.rec", f"{tmp_path}/*.mrc", f"{tmp_path}/a.mrc", f"{tmp_path}/[x].map"]
    )
    assert [p.name for p in found] == ["c.rec", "a.mrc", "b.mrc", "[x].map"]
    assert [p.name for p in expand_inputs([f"{tmp_path}/**/*.st"])] == ["d.st"]


def test_a_quoted_pattern_may_begin_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.mrc").touch()
    assert expand_inputs(["~/*.mrc"]) == [tmp_path / "a.mrc"]


def test_an_empty_glob_names_the_pattern(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing/\*\.mrc"):
        expand_inputs([f"{tmp_path}/nothing/*.mrc"])
    with pytest.raises(ConfigurationError, match="no input"):
        expand_inputs([])
    with pytest.raises(ConfigurationError, match=r"there is no file .*x\.mrc"):
        expand_inputs([f"{tmp_path}/x.mrc"])


@pytest.mark.parametrize(
    ("name", "word"), [("a.mrc.gz", "gunzip"), ("a.mrc.bz2", "bunzip2"), ("a.tif", "suffixes")]
)
def test_other_formats_are_refused(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigurationError, match=word):
        expand_inputs([f"{tmp_path}/{name}"])


def test_folders_links_and_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        expand_inputs([str(tmp_path)])
    (tmp_path / "link.mrc").symlink_to(tmp_path / "gone.mrc")
    with pytest.raises(ConfigurationError, match="link to a file that is not there"):
        expand_inputs([f"{tmp_path}/link.mrc"])
    (tmp_path / "a.mrc").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not bind a superuser
    with pytest.raises(ConfigurationError, match=r"a\.mrc may not be read"):
        expand_inputs([f"{tmp_path}/a.mrc"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("recon/TS_01.mrc", "TS_01"),
        ("a/tomo.rec.mrc", "tomo"),
        ("t.1.5A.REC", "t.1.5A"),
        ("my tomo (2).map", "my-tomo-2"),
        ("x.mrc.gz", "x"),
        (".hidden.st", "hidden"),
        ("größe.mrc", "gr-e"),
    ],
)
def test_names(path: str, name: str) -> None:
    assert tomogram_name(path) == name


def test_a_name_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no tomogram name"):
        tomogram_name("((.mrc")


def test_clashes_name_both_files() -> None:
    assert names_for(["x/a.mrc", "x/b.rec"]) == {"a": Path("x/a.mrc"), "b": Path("x/b.rec")}
    for other in ("y/a.rec", "y/A.mrc"):
        with pytest.raises(ConfigurationError, match=r"x/a\.mrc and y/") as caught:
            names_for(["x/a.mrc", other])
        assert other in str(caught.value)


def test_content_id_is_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert content_id(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(SurroundingsError, match="gone"):
        content_id(tmp_path / "gone")
