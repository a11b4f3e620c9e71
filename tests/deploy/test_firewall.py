"""The firewall of docs/clusters.md, loaded as it stands: members and replies pass, strangers do not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cryoscale.testing.hosts import Hosts, obstacle

pytestmark = pytest.mark.cluster
GUIDE = Path(__file__).parents[2] / "docs" / "clusters.md"

# Answers one connection after the other with a line, until it is ended.
SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    with server.accept()[0] as one:
        one.sendall(b"hello")
"""
CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as one:
        print(one.recv(9).decode(), end="")
except TimeoutError:
    print("dropped", end="")
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Host 1 is a stranger; 2 has the firewall, 3 is the other member."""
    if shutil.which("nft") is None:
        pytest.skip("needs nft (nftables)")
    if why := obstacle():
        pytest.skip(why)
    (rules,) = re.findall(r"^```\n(table inet cryoscale\n.*?)^```", GUIDE.read_text(), flags=re.M | re.S)
    file = tmp_path_factory.mktemp("rules") / "cryoscale.nft"
    file.write_text(rules.replace("10.0.0.0/24", "10.77.0.2/31"))  # of the hosts' network 2 and 3
    with Hosts(3, keep=(file.parent,)) as made:
        for _ in range(2):  # to load it again replaces it
            made[2].inside("nft", "-f", str(file))
        assert made[2].inside("nft", "list", "ruleset").count(" drop") == 1
        yield made


def serve(host, port, address=""):
    server = host.popen([sys.executable, "-c", SERVER, address, str(port)], stderr=subprocess.DEVNULL)
    assert server.stdout.readline() == "ready\n"


def ask(host, address, port):
    return host.run([sys.executable, "-c", CLIENT, address, str(port)]).stdout


@pytest.mark.parametrize("port", [6379, 8786, 10002, 45000])
def test_members_are_let_in_and_strangers_are_not(hosts, port):
    serve(hosts[2], port)
    assert ask(hosts[3], hosts[2].ip, port) == "hello"
    assert ask(hosts[1], hosts[2].ip, port) == "dropped"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.77.0.2"])
def test_a_machine_reaches_itself(hosts, address):
    port = {"127.0.0.1": 20001, "10.77.0.2": 20002}[address]
    serve(hosts[2], port)
    assert ask(hosts[2], address, port) == "hello"


@pytest.mark.parametrize("number", [1, 3])
def test_replies_come_back_from_wherever(hosts, number):
    """A connection that goes out has a port of the closed range on this side."""
    serve(hosts[number], 443)
    assert ask(hosts[2], hosts[number].ip, 443) == "hello"


def test_other_services_stay_open(hosts):
    serve(hosts[2], 22)
    assert ask(hosts[1], hosts[2].ip, 22) == "hello"
