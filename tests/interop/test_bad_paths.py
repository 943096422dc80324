"""What a PQConnect peer makes hard for us: lost packets, of which it bears 90 in half a minute, and long silence."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.interop.pqconnect import PqconnectClient, PqconnectServer, zone
from tests.net.lab import SERVER4, Conditions, Lab, Topology, standard_topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.ssh import EchoSession, SshServer

HOST = "www.example.net"
SIZE = 3_000_000  # bytes; of its packets about 130 are lost
SECONDS = 30.0
PATH: dict[str, float] = {"loss": 0.05, "rate": 20e6, "delay": 0.005}
SILENCE = 600.0
ANSWER_SECONDS = 2.0


@pytest.fixture
def net(lab: Lab) -> Topology:
    made = standard_topology(lab, Conditions())
    directory = lab.directory / "www"
    directory.mkdir()
    (directory / "large").write_bytes(os.urandom(SIZE))
    (directory / "page").write_bytes(b"up")
    lab.web_server(made.server, directory)
    return made


def with_their_server(lab: Lab, net: Topology, root: Path) -> PqtunClient:
    """Our client, of an announced PQConnect server."""
    server = PqconnectServer(lab, net.server, root, lab.directory / "server")
    lab.dns_server(net.resolver, zone(server.name, [SERVER4]))
    server.start()
    client = PqtunClient(lab, net.client, lab.directory / "client")
    client.start()
    return client


def with_their_client(lab: Lab, net: Topology, root: Path) -> PqtunServer:
    """Our server, announced to a PQConnect client."""
    server = PqtunServer(lab, net.server, lab.directory / "server")
    soa = "$TTL 60\nexample.net. IN SOA ns.example.net. host.example.net. 1 60 60 60 60\n"
    lab.dns_server(net.resolver, soa + server.announce(HOST, address=SERVER4))
    server.start()
    PqconnectClient(lab, net.client, root, lab.directory / "client").start()
    return server


def tunnel(daemon: PqtunClient | PqtunServer) -> dict[str, Any]:
    (peer,) = daemon.status()["peers"]
    found: dict[str, Any] = peer
    return found


def fetched(lab: Lab, net: Topology, *arguments: str) -> str:
    argv = ["curl", "-sS", "--fail", "--max-time", f"{SECONDS:g}", *arguments]
    return lab.run(net.client, *argv, timeout=SECONDS + 5).stdout


def arrives_whole(lab: Lab, net: Topology, daemon: PqtunClient | PqtunServer, direction: str) -> None:
    """A file passes over a bad path, through one tunnel."""
    assert fetched(lab, net, f"http://{HOST}/page") == "up"
    address, large = tunnel(daemon)["private_address"], lab.directory / "www" / "large"
    assert net.wire is not None
    net.wire.set(**PATH)
    digest = hashlib.sha256(large.read_bytes()).hexdigest()
    if direction == "up":
        assert fetched(lab, net, "-H", "Expect:", "--data-binary", f"@{large}", f"http://{HOST}/") == digest
    else:
        got = lab.directory / "got"
        fetched(lab, net, "-o", str(got), f"http://{HOST}/large")
        assert hashlib.sha256(got.read_bytes()).hexdigest() == digest
    net.wire.set(**vars(Conditions()))
    assert tunnel(daemon)["private_address"] == address


@pytest.mark.parametrize("direction", ["up", "down"])
def test_our_client_over_a_path_that_loses_packets(lab: Lab, net: Topology, root: Path, direction: str) -> None:
    arrives_whole(lab, net, with_their_server(lab, net, root), direction)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_our_server_over_a_path_that_loses_packets(lab: Lab, net: Topology, root: Path, direction: str) -> None:
    arrives_whole(lab, net, with_their_client(lab, net, root), direction)


@pytest.mark.slow
def test_ten_minutes_of_silence(lab: Lab, net: Topology, root: Path) -> None:
    """An ssh session through a PQConnect server says nothing for so long, and answers at once then."""
    client = with_their_server(lab, net, root)
    argv = SshServer(lab, net.server).client_argv(HOST, EchoSession.COMMAND)
    session = EchoSession(lab.argv(net.client, *argv))
    session.echo("before", 20)
    before = tunnel(client)
    threading.Event().wait(SILENCE)  # by the real clock, which is PQConnect's
    took = session.echo("after")
    now = tunnel(client)
    print(f"answered after {took:.3f} s of waiting; epoch {before['epoch']} before, {now['epoch']} now")
    assert took < ANSWER_SECONDS
    assert now["private_address"] == before["private_address"]
    session.close()
    assert client.stop() == 0
