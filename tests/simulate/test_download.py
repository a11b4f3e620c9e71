"""Fetching structures from a server on loopback, with every fault that one can have."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cryoscale.cli.simulate_structures import structures_command
from cryoscale.errors import ConfigurationError, DataError, FormatError, SurroundingsError
from cryoscale.simulate.download import (
    Downloaded,
    download_structures,
    read_checksums,
    structure_id,
    structures_folder,
)
from cryoscale.simulate.finding import find_density
from tests.simulate.test_structures import cif, molecule

GOOD = gzip.compress(cif(molecule(count=200)).encode(), mtime=0)
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers by the file asked for; counts requests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.files: dict[str, bytes] = {f"/files/{i}.cif.gz": GOOD for i in ("1kp8", "1gyt", "2rec")}
        self.faults: dict[str, list[str]] = {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections broken on purpose leave no traceback."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        faults = self.server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else ""
        data = self.server.files.get(self.path)
        if fault == "busy":
            self.send_error(503)
        elif fault == "closed":
            self.close_connection = True
        elif data is None:
            self.send_error(403 if "secret" in self.path else 404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, folder: Path, *ids: str, **options: Any) -> Downloaded:
    pauses: list[float] = []
    return download_structures(ids, folder, base_url=server.url, pause=pauses.append, **options)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_structures_are_fetched_checked_and_found(server: Server, tmp_path: Path) -> None:
    result = fetch(server, tmp_path / "new" / "folder", "1KP8", "pdb_00001gyt")
    folder = tmp_path / "new" / "folder"
    assert not result.failures
    assert result.fetched == ["1KP8", "pdb_00001gyt"]
    assert result.files["1KP8"] == folder / "1kp8.cif.gz"
    assert (folder / "1kp8.cif.gz").read_bytes() == GOOD
    assert (folder / "1kp8.cif.gz.sha256").read_text() == f"{SHA256}  1kp8.cif.gz\n"
    assert stored(folder) == [f"{i}.cif.gz{s}" for i in ("1gyt", "1kp8") for s in ("", ".sha256")]
    assert find_density("1KP8", cache=folder).path == folder / "1kp8.cif.gz"


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path, "1kp8")
    again = fetch(server, tmp_path, "1KP8")
    assert (again.fetched, list(again.files), server.requests) == ([], ["1KP8"], ["/files/1kp8.cif.gz"])
    (tmp_path / "2rec.cif.gz").write_bytes(GOOD)  # put there by hand
    assert not fetch(server, tmp_path, "2rec", offline=True).failures
    assert (tmp_path / "2rec.cif.gz.sha256").read_text().startswith(SHA256)


def test_a_changed_file_is_noticed(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path, "1kp8")
    path = tmp_path / "1kp8.cif.gz"
    path.write_bytes(gzip.compress(cif(molecule(seed=5, count=100)).encode()))
    result = fetch(server, tmp_path, "1kp8", "1gyt")
    assert isinstance(result.failures["1kp8"], FormatError)
    assert str(path) in str(result.failures["1kp8"])
    assert "Delete both" in str(result.failures["1kp8"])
    assert "1gyt" in result.files


def test_one_bad_id_does_not_stop_the_others(server: Server, tmp_path: Path) -> None:
    result = fetch(server, tmp_path, "9zzz", "nonsense", "1kp8", "../etc")
    assert list(result.files) == ["1kp8"]
    assert isinstance(result.failures["9zzz"], DataError)
    assert "no structure at" in str(result.failures["9zzz"])
    for asked in ("nonsense", "../etc"):
        assert isinstance(result.failures[asked], ConfigurationError)
        assert f"'{asked}'" in str(result.failures[asked])
    assert server.requests == ["/files/9zzz.cif.gz", "/files/1kp8.cif.gz"]  # 404: asked once


@pytest.mark.parametrize("fault", ["busy", "cut", "closed"])
def test_faults_that_pass_are_tried_again(server: Server, tmp_path: Path, fault: str) -> None:
    server.faults["/files/1kp8.cif.gz"] = [fault, fault]
    result = fetch(server, tmp_path, "1kp8")
    assert not result.failures, result.failures
    assert len(server.requests) == 3
    assert (tmp_path / "1kp8.cif.gz").read_bytes() == GOOD


@pytest.mark.parametrize(
    ("fault", "words"), [("busy", "503"), ("cut", "came|broke"), ("closed", "broke off")]
)
def test_faults_that_stay_end_after_three_tries(
    server: Server, tmp_path: Path, fault: str, words: str
) -> None:
    server.faults["/files/1kp8.cif.gz"] = [fault] * 10
    pauses: list[float] = []
    result = download_structures(["1kp8", "1gyt"], tmp_path, base_url=server.url, pause=pauses.append)
    assert isinstance(result.failures["1kp8"], SurroundingsError)
    assert str(tmp_path / "1kp8.cif.gz") in str(result.failures["1kp8"])
    with pytest.raises(SurroundingsError, match=words):
        raise result.failures["1kp8"]
    assert (len(pauses), server.requests.count("/files/1kp8.cif.gz")) == (2, 3)
    assert "1gyt" in result.files
    assert not [name for name in stored(tmp_path) if "1kp8" in name]


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        GOOD[:200],
        gzip.compress(b"<html>", mtime=0),
        gzip.compress(b"data_x\n_a.b 1\n", mtime=0),
        b"",
    ],
)
def test_what_is_no_structure_is_not_kept(server: Server, tmp_path: Path, data: bytes) -> None:
    server.files["/files/1kp8.cif.gz"] = data
    result = fetch(server, tmp_path, "1kp8")
    with pytest.raises(FormatError, match="no gzipped mmCIF file with atoms"):
        raise result.failures["1kp8"]
    assert stored(tmp_path) == []


def test_expected_checksums_hold(server: Server, tmp_path: Path) -> None:
    lines = tmp_path / "sums"
    lines.write_text(f"# ours\n{SHA256}  1kp8.cif.gz\n{'1' * 64} *1gyt.cif.gz\n\n")
    result = fetch(server, tmp_path / "to", "1kp8", "1gyt", checksums=read_checksums(lines))
    assert list(result.files) == ["1kp8"]
    assert "1" * 64 in str(result.failures["1gyt"])
    assert stored(tmp_path / "to") == ["1kp8.cif.gz", "1kp8.cif.gz.sha256"]
    there = fetch(server, tmp_path / "to", "1kp8", checksums={"1kp8.cif.gz": "2" * 64})
    assert "2" * 64 in str(there.failures["1kp8"])
    lines.write_text("nonsense\n")
    with pytest.raises(FormatError, match="line 1"):
        read_checksums(lines)
    with pytest.raises(ConfigurationError, match="none"):
        read_checksums(tmp_path / "none")


def test_without_a_network_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "2rec.cif.gz").write_bytes(GOOD)
        result = download_structures(["1kp8", "2rec", "1gyt"], tmp_path, base_url=url)
    assert list(result.files) == ["2rec"]
    for asked in ("1kp8", "1gyt"):
        error = result.failures[asked]
        assert isinstance(error, SurroundingsError)
        assert f"put the file there yourself as {tmp_path / asked}.cif.gz" in str(error)
    assert "before" in str(result.failures["1gyt"])  # not tried
    offline = download_structures(["1kp8"], tmp_path, offline=True)
    assert "offline" in str(offline.failures["1kp8"])


def test_silence_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as silent:  # takes connections, says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        result = download_structures(
            ["1kp8"],
            tmp_path,
            base_url=f"http://127.0.0.1:{silent.getsockname()[1]}",
            timeout=0.05,
            attempts=2,
        )
    with pytest.raises(SurroundingsError, match="in 2 tries: nothing came for"):
        raise result.failures["1kp8"]


def test_misuse_is_refused(tmp_path: Path) -> None:
    for url in ("file:///etc", "ftp://host/x", "nonsense", "http://"):
        with pytest.raises(ConfigurationError, match="address"):
            download_structures(["1kp8"], tmp_path, base_url=url)
    with pytest.raises(ConfigurationError, match="timeout"):
        download_structures(["1kp8"], tmp_path, timeout=0)
    (tmp_path / "file").touch()
    with pytest.raises(SurroundingsError, match="cannot be made"):
        download_structures(["1kp8"], tmp_path / "file" / "folder")


def test_ids_and_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [structure_id(i) for i in ("1KP8", " 1kp8", "PDB_00001KP8")] == ["1kp8"] * 3
    for text in ("", "kp8", "1kp", "1kp88", "pdb_00011kp8", "0kp8", "1kp/", "1k p"):
        with pytest.raises(ConfigurationError, match="no id"):
            structure_id(text)
    monkeypatch.setenv("CRYOSCALE_CACHE", str(tmp_path))
    assert structures_folder() == tmp_path / "structures"
    monkeypatch.delenv("CRYOSCALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert structures_folder() == Path("/somewhere/cryoscale/structures")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert structures_folder() == Path.home() / ".cache" / "cryoscale" / "structures"


def test_the_command(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOSCALE_STRUCTURES_URL", server.url)
    monkeypatch.setenv("CRYOSCALE_CACHE", str(tmp_path))
    run = CliRunner().invoke
    good = run(structures_command, ["1KP8", "1GYT"], standalone_mode=False)
    assert good.return_value == 0, good.output
    assert good.stdout.split() == [str(tmp_path / "structures" / f"{i}.cif.gz") for i in ("1kp8", "1gyt")]
    mixed = run(structures_command, ["1KP8", "9ZZZ", "x"], standalone_mode=False)
    assert mixed.return_value == 1
    assert "1kp8.cif.gz" in mixed.stdout
    assert "9ZZZ: " in mixed.stderr
    assert "x: 'x' is no id" in mixed.stderr
    elsewhere = run(
        structures_command, ["1KP8", "--to", str(tmp_path / "to"), "--url", server.url], standalone_mode=False
    )
    assert elsewhere.stdout.strip() == str(tmp_path / "to" / "1kp8.cif.gz")
    assert run(structures_command, ["2REC", "--offline"], standalone_mode=False).return_value == 1
    assert run(structures_command, [], standalone_mode=True).exit_code == 2
