"""Run on a host that holds no secrets: knock at every port of another host and tell, as JSON, what answered.

Usage: intruder.py IP PORT[,PORT…] FLAG [CA-FOLDER]; nothing here may make the file FLAG appear.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

LIMIT_S = 4.0
# Ray's services, and in each a call that begins work or tells of it; a server without the service says so.
CALLS = (
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/FreeObjects",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
)


def knock_http(ip, port):
    """Return the HTTP status of `/` and of what Ray's agents take orders at; None without an answer."""
    found = {}
    for method, path in (("GET", "/"), ("GET", "/metrics"), ("POST", "/get_or_create_runtime_env")):
        try:
            connection = http.client.HTTPConnection(ip, port, timeout=LIMIT_S)
            connection.request(method, path, body=b"" if method == "POST" else None)
            found[f"{method} {path}"] = connection.getresponse().status
        except Exception:
            found[f"{method} {path}"] = None
    return found


def knock_grpc(ip, port, token=""):
    """Return the gRPC status code of each call; 0 would mean that somebody without the token was served."""
    found = {}
    for call in CALLS:
        with contextlib.suppress(OSError):
            if (code := _status(ip, port, call, token)) is not None:
                found[call] = code
    return found


def _status(ip, port, call, token):
    """Make one call with an empty message; None where the other end speaks no HTTP/2 in the clear."""
    headers = {":method": "POST", ":scheme": "http", ":path": call, ":authority": f"{ip}:{port}",
               "content-type": "application/grpc", "te": "trailers"}  # fmt: skip
    if token:
        headers["authorization"] = f"Bearer {token}"
    # HPACK without tables: a zero, then name and value, each after its length.
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    with socket.create_connection((ip, port), timeout=LIMIT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        connection.sendall(_frame(1, 4, 1, block) + _frame(0, 1, 1, bytes(5)))
        said = b""
        while b"grpc-status" not in said and (more := connection.recv(65536)):
            said += more
    _, name, rest = said.partition(b"grpc-status")
    return int(rest[1 : 1 + rest[0]]) if name else None


def _frame(kind, flags, stream, content):
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def knock_dask(ip, port, flag, folder):
    """Ask a scheduler, or whoever listens, to run a function: in the clear, and with a CA of one's own."""
    from distributed import Client, Security

    found = {}
    ways = {"tcp": None}
    if folder:
        sys.path.insert(0, os.environ["PROJECT"])
        from cryoscale.runtime.secrets import Secrets

        ways["tls"] = Secrets(Path(folder)).dask_security()
        ways["tls-without"] = Security(tls_ca_file=f"{folder}/ca.pem", require_encryption=True)
    for way, security in ways.items():
        try:
            address = f"{way[:3]}://{ip}:{port}"
            with Client(address, timeout=LIMIT_S, security=security) as client:
                client.submit(open, flag, "w").result(timeout=LIMIT_S)
            found[way] = "served"
        except BaseException as error:
            found[way] = type(error).__name__
    return found


def main(ip, ports, flag, folder=""):
    answers = {}
    for port in map(int, ports.split(",")):
        answers[port] = {
            "http": knock_http(ip, port),
            "grpc": knock_grpc(ip, port),
            "grpc-wrong": knock_grpc(ip, port, "0" * 64),
        }
        if port == 8786:
            answers[port]["dask"] = knock_dask(ip, port, flag, folder)
    with contextlib.suppress(Exception):
        print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
