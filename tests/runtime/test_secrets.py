"""Certificates and token: private, complete, dated, and never where they can be read."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509

from cryoscale.errors import ConfigurationError, SurroundingsError
from cryoscale.runtime import secrets as module
from cryoscale.runtime.secrets import Secrets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Secrets.create(tmp_path_factory.mktemp("secrets") / "cluster")


def test_made_secrets_are_private_and_open_again(made):
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.folder.iterdir()} == dict.fromkeys(
        ("ca.pem", "cert.pem", "key.pem", "ray-token"), 0o600
    )
    token = (made.folder / "ray-token").read_text()
    assert len(token) == 64
    assert int(token, 16) > 0
    assert Secrets.open(made.folder) == made
    left = made.valid_until - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=364) < left <= datetime.timedelta(days=365)


def test_an_umask_that_lets_others_read_changes_nothing(tmp_path):
    before = os.umask(0)
    try:
        folder = Secrets.create(tmp_path / "cluster").folder
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600


def test_nothing_is_overwritten_and_nothing_half_made_is_left(made, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        Secrets.create(made.folder)
    with pytest.raises(ConfigurationError, match="at least 1 day"):
        Secrets.create(tmp_path / "cluster", days=0)
    monkeypatch.setattr(module.secrets, "token_hex", lambda size: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Secrets.create(tmp_path / "cluster")
    assert list(tmp_path.iterdir()) == []


def test_the_authority_signs_one_certificate_and_its_key_is_gone(made):
    authority, member = (
        x509.load_pem_x509_certificate((made.folder / name).read_bytes()) for name in ("ca.pem", "cert.pem")
    )
    member.verify_directly_issued_by(authority)
    key = made.tls_context()  # raises if key and certificate do not belong together
    assert key.verify_mode is ssl.CERT_REQUIRED
    assert (made.folder / "key.pem").read_text().count("PRIVATE KEY") == 2  # one key: begin and end


def test_values_are_nowhere_but_in_the_files(made):
    shown = [*made.environment().values(), repr(made), str(made.dask_security())]
    token = (made.folder / "ray-token").read_text()
    key = (made.folder / "key.pem").read_text().splitlines()[1]
    assert not [text for text in shown if token in text or key in text]
    assert made.environment()["RAY_AUTH_TOKEN_PATH"] == str(made.folder / "ray-token")
    assert made.dask_security().require_encryption


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
@pytest.mark.parametrize("name", ["key.pem", "ray-token"])
def test_what_others_may_read_is_refused(tmp_path, name, mode):
    made = Secrets.create(tmp_path / "cluster")
    (made.folder / name).chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"{name}.*{mode:04o}.*run code as you.*chmod 600"):
        Secrets.open(made.folder)


def test_a_read_only_mount_of_root_may_be_read_by_the_group(tmp_path, monkeypatch):
    made = Secrets.create(tmp_path / "cluster")
    (made.folder / "key.pem").chmod(0o440)

    class Mount:
        f_flag = os.ST_RDONLY

    class Status:
        st_uid, st_mode = 0, 0o440

    monkeypatch.setattr(module.os, "statvfs", lambda path: Mount)
    monkeypatch.setattr(module.Path, "stat", lambda path, **_: Status)
    module._require_private(made.folder / "key.pem")
    Status.st_uid = 1000
    with pytest.raises(ConfigurationError, match="others may read"):
        module._require_private(made.folder / "key.pem")
    Status.st_uid, Status.st_mode = 0, 0o460  # written by the group: not what Kubernetes does
    with pytest.raises(ConfigurationError, match="others may read"):
        module._require_private(made.folder / "key.pem")


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_a_missing_part_is_named(tmp_path, name):
    made = Secrets.create(tmp_path / "cluster")
    (made.folder / name).unlink()
    with pytest.raises(ConfigurationError, match=rf"there is no {name}.*cryoscale engine secrets"):
        Secrets.open(made.folder)


def test_a_folder_without_secrets_says_how_to_make_them(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no secrets in .*cryoscale engine secrets"):
        Secrets.open(tmp_path)
    with pytest.raises(ConfigurationError, match="no secrets in"):
        Secrets.open(tmp_path / "absent")


def test_a_token_alone_is_enough_for_ray_and_not_for_dask(made, tmp_path):
    (tmp_path / "ray-token").write_bytes((made.folder / "ray-token").read_bytes())
    (tmp_path / "ray-token").chmod(0o600)
    found = Secrets.open(tmp_path)
    assert set(found.environment()) == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}
    with pytest.raises(ConfigurationError, match="no certificates"):
        found.dask_security()


def test_certificates_alone_leave_the_token_to_the_environment(tmp_path):
    made = Secrets.create(tmp_path / "cluster")
    (made.folder / "ray-token").unlink()
    assert Secrets.open(made.folder).ray_environment() == {}


def test_a_certificate_out_of_date_is_refused_with_its_dates(tmp_path, monkeypatch):
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=100)

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return long_ago

    monkeypatch.setattr(module, "datetime", Then)
    made = Secrets.create(tmp_path / "cluster", days=10)
    assert Secrets.open(made.folder) == made
    monkeypatch.undo()
    with pytest.raises(
        SurroundingsError, match=rf"valid from {long_ago:%Y}.*and now it is.*Make new secrets"
    ):
        Secrets.open(made.folder)


def test_ray_encrypts_where_the_certificate_names_the_members(made, tmp_path):
    assert "RAY_USE_TLS" not in made.environment()
    made.require_member("10.0.0.9")  # good for any
    named = Secrets.create(tmp_path / "cluster", hosts=["10.0.0.1", "node2.facility"])
    assert named.hosts == ("10.0.0.1", "node2.facility", "127.0.0.1", "localhost")
    variables = named.ray_environment()
    assert variables["RAY_USE_TLS"] == "1"
    assert variables["RAY_TLS_SERVER_KEY"] == str(named.folder / "key.pem")
    named.require_member("10.0.0.1")
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.1.*not for 10\.0\.0\.9"):
        named.require_member("10.0.0.9")


def _handshake(server, client):
    """Let two contexts talk; return what each side met."""
    ends, met = socket.socketpair(), {}

    def serve():
        try:
            with server.wrap_socket(ends[0], server_side=True) as secure:
                met["server"] = secure.recv(1)
                secure.sendall(b"!")
        except OSError as error:
            met["server"] = error

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ends[1]) as secure:
            secure.sendall(b"?")
            met["client"] = secure.recv(1)
    except OSError as error:
        met["client"] = error
    thread.join()
    for end in ends:
        end.close()
    return met


def test_members_of_one_folder_talk_and_others_are_refused(made, tmp_path):
    assert _handshake(made.tls_context(server=True), made.tls_context()) == {"server": b"?", "client": b"!"}
    other = Secrets.create(tmp_path / "other")
    met = _handshake(made.tls_context(server=True), other.tls_context())
    assert isinstance(met["client"], ssl.SSLCertVerificationError)
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    met = _handshake(made.tls_context(server=True), stranger)
    assert isinstance(met["server"], ssl.SSLError)  # a client without a certificate
    assert not isinstance(met["client"], bytes)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.maximum_version = False, ssl.TLSVersion.TLSv1_2
    assert isinstance(_handshake(made.tls_context(server=True), old)["client"], ssl.SSLError)
