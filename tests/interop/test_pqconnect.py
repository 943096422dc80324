"""Our client with PQConnect's server and PQConnect's client with our server, on real packets."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
from pathlib import Path

import pytest

from tests.interop.pqconnect import PqconnectClient, PqconnectServer, zone
from tests.net.capture import Capture
from tests.net.lab import SERVER4, Lab, Topology, standard_topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import Process

SIZE = 20_000_000
# PQConnect carries about 10 Mbit/s, and less on a busy machine.
TRANSFER_SECONDS = 180
MARK = b"0123456789 this text must not be readable on the wire 0123456789"
TUNNEL_PORTS = {42423, 42424, 42425}
CLIENT_SUBNET = ipaddress.ip_network("10.43.0.0/16")
SERVER_SUBNET = ipaddress.ip_network("10.42.0.0/16")


@pytest.fixture
def net(lab: Lab) -> Topology:
    return standard_topology(lab)


@pytest.fixture
def content() -> bytes:
    return MARK + os.urandom(SIZE - 2 * len(MARK)) + MARK


@pytest.fixture
def web(lab: Lab, net: Topology, content: bytes) -> Process:
    directory = lab.directory / "www"
    directory.mkdir()
    (directory / "blob").write_bytes(content)
    (directory / "small").write_bytes(MARK)
    return lab.web_server(net.server, directory)


def pqtun_zone(server: PqtunServer) -> str:
    soa = "$TTL 60\nexample.net. IN SOA ns.example.net. host.example.net. 1 60 60 60 60\n"
    return soa + server.announce("www.example.net", address=SERVER4)


def curl(lab: Lab, net: Topology, path: str, *arguments: str) -> str:
    """The address that curl connected to, after what it printed."""
    argv = ["curl", "-sS", "--fail", "--max-time", str(TRANSFER_SECONDS), "-w", " %{remote_ip}"]
    url = f"http://www.example.net/{path}"
    return lab.run(net.client, *argv, *arguments, url, timeout=TRANSFER_SECONDS + 10).stdout


def carries_everything(lab: Lab, net: Topology, web: Process, content: bytes) -> None:
    """20 MB down and up with the right digest, a ping and UDP, all of it inside the tunnel."""
    wire = Capture(lab, net.router, "client0")
    small = curl(lab, net, "small")
    wire.stop()
    text, _, address = small.rpartition(" ")
    assert text.encode() == MARK
    assert ipaddress.ip_address(address) in CLIENT_SUBNET
    seen = web.output().split()
    assert seen[1] == "/small"
    assert ipaddress.ip_address(seen[0]) in SERVER_SUBNET

    got = lab.directory / "got"
    curl(lab, net, "blob", "-o", str(got))
    digest = hashlib.sha256(content).hexdigest()
    assert hashlib.sha256(got.read_bytes()).hexdigest() == digest
    sent = curl(lab, net, "up", "--data-binary", f"@{got}", "-H", "Expect:")
    assert sent.split() == [digest, address]

    lab.run(net.client, "ping", "-c3", "-i0.2", "-W5", address)
    report = udp(lab, net, address)
    assert report["lost_packets"] <= report["packets"] * 0.05

    packets = wire.packets()
    tunnel = [p for p in packets if p.protocol == 17 and {p.source_port, p.destination_port} & TUNNEL_PORTS]
    others = [p for p in packets if p not in tunnel]
    assert len(tunnel) > 900  # the key alone is that many
    # DNS is UDP and TCP port 53; anything else besides the tunnel would be a leak (neighbour discovery is ICMPv6).
    assert all(53 in (p.source_port, p.destination_port) or p.protocol in (58, 0) for p in others)
    assert not any(MARK[10:-10] in p.frame for p in packets)


def udp(lab: Lab, net: Topology, address: str) -> dict[str, float]:
    """Two seconds of 1 Mbit/s of UDP to the server."""
    process = lab.spawn(net.server, "iperf3", "-s", "-1")
    lab.wait_listening(process, net.server, 5201)
    argv = ["iperf3", "-u", "-b", "1M", "-l", "1000", "-t", "2", "-J", "-c", address]
    report = json.loads(lab.run(net.client, *argv, timeout=40).stdout)
    process.kill()
    total: dict[str, float] = report["end"]["sum"]
    return total


def test_harness(lab: Lab, net: Topology, root: Path, web: Process) -> None:
    """PQConnect with itself: if this fails, the failures of the others say nothing about us."""
    server = PqconnectServer(lab, net.server, root, lab.directory / "server")
    lab.dns_server(net.resolver, zone(server.name, [SERVER4]))
    server.start()
    client = PqconnectClient(lab, net.client, root, lab.directory / "client")
    client.start()
    text, _, address = curl(lab, net, "small").rpartition(" ")
    assert text.encode() == MARK
    assert ipaddress.ip_address(address) in CLIENT_SUBNET
    client.stop()
    server.stop()


def test_our_client_with_its_server(lab: Lab, net: Topology, root: Path, web: Process, content: bytes) -> None:
    server = PqconnectServer(lab, net.server, root, lab.directory / "server")
    lab.dns_server(net.resolver, zone(server.name, [SERVER4]))
    server.start()
    client = PqtunClient(lab, net.client, lab.directory / "client")
    client.start()
    carries_everything(lab, net, web, content)
    assert client.stop() == 0


def test_its_client_with_our_server(lab: Lab, net: Topology, root: Path, web: Process, content: bytes) -> None:
    server = PqtunServer(lab, net.server, lab.directory / "server")
    lab.dns_server(net.resolver, pqtun_zone(server))
    server.start()
    client = PqconnectClient(lab, net.client, root, lab.directory / "client")
    client.start()
    carries_everything(lab, net, web, content)
    client.stop()
    assert server.stop() == 0


def test_our_server_with_its_keys(lab: Lab, net: Topology, root: Path, web: Process) -> None:
    """A key directory that pqconnect-keygen made works as it is, under the name that it was announced by."""
    theirs = PqconnectServer(lab, net.server, root, lab.directory / "theirs")
    ours = lab.directory / "server"
    ours.mkdir()
    theirs.keys.rename(ours / "keys")
    server = PqtunServer(lab, net.server, ours)
    announced = pqtun_zone(server)
    assert re.search(r"pq1\w+", announced)[0][: 3 + 52] == theirs.name[: 3 + 52]  # type: ignore[index]
    lab.dns_server(net.resolver, zone(theirs.name, [SERVER4]))
    server.start()
    client = PqtunClient(lab, net.client, lab.directory / "client")
    client.start()
    assert curl(lab, net, "small").encode().startswith(MARK)
    client.stop()
    server.stop()


def test_ports_from_txt_records(lab: Lab, net: Topology, root: Path, web: Process) -> None:
    """A label without ports, as PQConnect lets one announce: they come from TXT records."""
    server = PqconnectServer(lab, net.server, root, lab.directory / "server")
    label = server.name[: 3 + 52]
    records = zone(label, [SERVER4]) + (
        f'{label}.example.net. IN TXT "p=42424"\nks.{label}.example.net. IN TXT "ip={SERVER4};p=42425"\n'
    )
    lab.dns_server(net.resolver, records)
    server.start()
    client = PqtunClient(lab, net.client, lab.directory / "client")
    client.start()
    text, _, address = curl(lab, net, "small").rpartition(" ")
    assert text.encode() == MARK
    assert ipaddress.ip_address(address) in CLIENT_SUBNET
    client.stop()
    server.stop()
