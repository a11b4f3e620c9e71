"""`up` and `down`: what runs on which host, how secrets travel, and that nothing is left."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.deploy.scripts import Script

HOSTS = "# three hosts\nme@host1\nhost2 10.1.0.2\n\nhost3\n"


class Pair:
    """`up` and `down` over the same hosts."""

    def __init__(self, folder):
        (folder / "hosts.txt").write_text(HOSTS)
        self.homes = folder / "homes"
        self.one = Script("ssh/up", folder, {"STANDIN_HOMES": str(self.homes), "STANDIN_MEMBERS": "3"})

    def up(self, *words, **environment):
        self.one.name = "ssh/up"
        return self.one.run("hosts.txt", *words, **environment)

    def down(self, *words, **environment):
        self.one.name = "ssh/down"
        return self.one.run("hosts.txt", *words, **environment)

    def place(self, host, name="main"):
        return self.homes / host / ".cryoscale" / name / host


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    yield made
    made.down()


def running(number):
    """Whether a process does something; a dead one that its parent has not noticed does not."""
    status = Path(f"/proc/{number}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def alive(place):
    return running(int((place / "pid").read_text()))


def test_the_first_host_leads_and_the_others_join_it(pair):
    code, said = pair.up(CRYOSCALE_MEMBER="--gpus 1")
    assert code == 0, said
    ports = "--port 8786 --ray-port 6379 --gpus 1"
    assert pair.one.calls("cryoscale engine lead") == [f"cryoscale engine lead --host 10.0.0.1 {ports}"]
    assert sorted(pair.one.calls("cryoscale engine join")) == [
        f"cryoscale engine join 10.0.0.1 --host 10.0.0.3 {ports}",
        f"cryoscale engine join 10.0.0.1 --host 10.1.0.2 {ports}",
    ]
    assert said.strip().splitlines()[-1] == (
        "cryoscale run RUN --dask tls://10.0.0.1:8786 --ray 10.0.0.1:6379 "
        "--secrets ~/.cryoscale/main/host1/secrets"
    )


def test_every_host_has_the_secrets_in_a_private_folder(pair):
    pair.up()
    for host in ("host1", "host2", "host3"):
        assert (pair.place(host) / "secrets").is_dir()
        assert stat.S_IMODE(pair.place(host).stat().st_mode) == 0o700


def test_the_last_line_needs_no_end(pair, tmp_path):
    (tmp_path / "hosts.txt").write_text("host1\nhost2")
    code, said = pair.up(STANDIN_MEMBERS="2")
    assert code == 0, said
    assert alive(pair.place("host2"))
    _, said = pair.down()
    assert "host2: ended" in said


def test_the_certificate_names_every_host_so_that_ray_encrypts(pair):
    pair.up()
    (call,) = pair.one.calls("cryoscale engine secrets")
    assert call.endswith("/secrets --host 10.0.0.1 --host 10.1.0.2 --host 10.0.0.3")


@pytest.mark.parametrize("step", ["start", "tar", "engine secrets"])
def test_a_host_that_cannot_be_started_is_named(pair, step):
    host = "host1" if step == "engine secrets" else "host2"
    code, said = pair.up(STANDIN_DEAF=host, STANDIN_DEAF_TO=step)
    assert code == 75
    assert host in said.splitlines()[-1]
    assert "down" in said.splitlines()[-1]


def test_a_command_that_is_not_on_a_host_is_said_at_once(pair):
    code, said = pair.up(CRYOSCALE_COMMAND="/nowhere/cryoscale")
    assert code == 1
    assert "me@host1: no /nowhere/cryoscale there (CRYOSCALE_COMMAND)" in said


def test_a_host_without_an_address_is_named(pair):
    (pair.one.folder / "tools" / "hostname").write_text("#!/bin/sh\n")
    code, said = pair.up()
    assert code == 1
    assert "me@host1: no address" in said


def test_down_ends_all_the_leading_host_last_and_takes_the_secrets(pair):
    pair.up()
    numbers = [int((pair.place(host) / "pid").read_text()) for host in ("host1", "host2", "host3")]
    code, said = pair.down()
    assert code == 0, said
    assert [line.split(":")[1].strip() for line in said.splitlines()] == ["host3", "host2", "me@host1"]
    assert not [number for number in numbers if running(number)]
    assert not list(pair.homes.rglob("secrets"))


def test_a_number_that_belongs_to_another_process_is_left_alone(pair):
    pair.up()
    mine = (pair.place("host2") / "pid").read_text()
    (pair.place("host2") / "pid").write_text(str(os.getpid()))
    _, said = pair.down()
    assert "host2: had ended before" in said
    (pair.place("host2") / "pid").write_text(mine)


def test_members_that_run_already_are_not_started_twice(pair):
    pair.up()
    code, said = pair.up()
    assert code == 1
    assert "give down first" in said
    assert alive(pair.place("host1"))


def test_two_clusters_live_side_by_side(pair):
    assert pair.up()[0] == 0
    assert pair.up("other")[0] == 0
    assert pair.down("other")[0] == 0
    assert alive(pair.place("host1"))


def test_hosts_that_do_not_get_ready_are_said(pair):
    code, said = pair.up(STANDIN_UNREADY="1000", CRYOSCALE_READY_S="1")
    assert code == 75
    assert "not ready" in said


@pytest.mark.parametrize("name", ["../x", "a b", ""])
def test_a_name_is_a_plain_word(pair, name):
    code, _ = pair.up(name)
    assert code == (0 if name == "" else 2)


def test_a_file_without_hosts_is_misuse(pair, tmp_path):
    (tmp_path / "hosts.txt").write_text("# nothing\n")
    assert pair.up()[0] == 2
