"""The hosts themselves: apart from the machine and from each other, cut off and mended, killed, and gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cryoscale.testing.hosts import Host, HostProcess, Hosts
from cryoscale.testing.listeners import listening
from tests.cluster.machines import until

FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=1).status)"


@pytest.fixture
def hosts(namespaces, tmp_path):
    with Hosts(2, keep=[tmp_path]) as made:
        yield made


def serve(host: Host) -> HostProcess:
    server = host.popen([sys.executable, "-m", "http.server", "--bind", host.ip, "8000"])
    until(lambda: listening(host), "the server listens", 20)
    return server


def fetches(host: Host, url: str) -> bool:
    return host.run([sys.executable, "-c", FETCH, url]).stdout.strip() == "200"


def test_each_has_its_own_name_network_processes_and_tmp(hosts, tmp_path):
    (tmp_path / "seen").write_text("by all")
    for host in hosts:
        assert host.inside("hostname").strip() == host.name != socket.gethostname()
        assert host.ip in host.inside("ip", "-4", "-br", "addr")
        assert host.inside("cat", str(tmp_path / "seen")) == "by all"
        host.inside("touch", "/tmp/mine", "/dev/shm/mine")
    assert not Path("/tmp/mine").exists()
    assert not Path("/dev/shm/mine").exists()
    assert "br0" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert len(hosts[1].processes()) == 1  # its first one


def test_a_host_that_is_cut_off_is_not_reached_until_mended(hosts):
    serve(hosts[1])
    assert [(one.ip, one.port, one.loopback) for one in listening(hosts[1])] == [(hosts[1].ip, 8000, False)]
    assert "http.server" in listening(hosts[1])[0].command
    url = "http://host1:8000/"
    assert fetches(hosts[2], url)
    assert subprocess.run(
        [sys.executable, "-c", FETCH, f"http://{hosts[1].ip}:8000/"], check=False
    ).returncode
    hosts[1].cut()
    assert not fetches(hosts[2], url)
    assert fetches(hosts[1], url)
    hosts[1].mend()
    assert fetches(hosts[2], url)


def test_a_killed_host_loses_every_process_and_starts_again_empty(hosts):
    server = serve(hosts[1])
    hosts[1].inside("touch", "/tmp/mine")
    orphan = hosts[1].popen(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo gone"])
    assert orphan.communicate(timeout=20)[0].strip() == "gone"
    mine = hosts[1].processes()
    assert len(mine) == 3  # first, server, orphan
    hosts[1].kill()
    server.wait(20)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine), "they are gone", 20)
    hosts[1].start()
    assert "mine" not in hosts[1].inside("ls", "/tmp").split()
    serve(hosts[1])
    assert fetches(hosts[2], "http://host1:8000/")


def test_signals_reach_the_process_inside(hosts):
    words = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True)"
    process = hosts[1].popen([sys.executable, "-c", f"{words}; signal.pause()"])
    assert process.stdout.readline() == "up\n"
    process.signal(signal.SIGTERM)
    assert process.wait(20) == 7
    with pytest.raises(subprocess.TimeoutExpired):
        hosts[1].run(["sleep", "600"], timeout=0.2)
    assert len(hosts[1].processes()) == 1


def test_folders_that_are_hidden_read_only_or_small(namespaces, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    fill = f"dd if=/dev/zero of={small}/big bs=1M count=3 2>&1"
    with Hosts(2, keep=[tmp_path], small_disk=(small, "2m")) as hosts:
        hosts[2].inside("touch", f"{small}/shared")
        assert (hosts.path(small) / "shared").exists()
        assert not (small / "shared").exists()
        assert "No space left" in hosts[1].run(["sh", "-c", fill]).stdout
        hosts.resize("8m")
        hosts[1].inside("sh", "-c", fill)
        hosts[2].read_only(small)
        assert "Read-only" in hosts[2].run(["touch", f"{small}/more"]).stdout
        hosts[1].inside("touch", f"{small}/more")
        hosts[2].hide(tmp_path)
        assert not hosts[2].inside("ls", str(tmp_path))
        assert "small" in hosts[1].inside("ls", str(tmp_path))


def test_nothing_outlives_a_killed_test(namespaces):
    words = (
        "import sys, time\nfrom cryoscale.testing.hosts import Hosts\n"
        "with Hosts(2) as hosts:\n"
        " hosts[1].popen(['setsid', 'sleep', '600'], stdout=None)\n"
        " print(*hosts[1].processes(), *hosts[2].processes(), hosts.pid, flush=True)\n sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) >= 3
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "they are gone", 20)
