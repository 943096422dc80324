"""A PQConnect client whose tunnel our server puts aside (doc/protocol.md section 7), on real packets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.pqconnect import PqconnectClient
from tests.net.lab import SERVER4, Lab, standard_topology
from tests.net.pqtun import PqtunServer
from tests.net.process import wait_until
from tests.net.stage import python

MARK = b"still the same tunnel"
ADDRESSES = 5  # that a /29 has for peers

# So many clients, each of which says a word.
CROWD = """
    import asyncio, pathlib, socket, sys, time
    from ipaddress import IPv4Address
    from pqtun.keyserver.fetch import fetch_ephemeral
    from pqtun.protocol import control
    from pqtun.protocol.handshake import initiate
    from pqtun.protocol.keytree import ServerPublicKey
    from pqtun.protocol.tunnel import Tunnel
    keys = pathlib.Path(sys.argv[1])
    public = ServerPublicKey((keys / "mceliece_pk").read_bytes(), (keys / "x25519_pk").read_bytes())
    async def ephemeral():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", 42425))
            return await fetch_ephemeral(sock, clock=time.monotonic)
    to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    to.connect(("127.0.0.1", 42424))
    for _ in range(int(sys.argv[2])):
        datagram, session = initiate(public, asyncio.run(ephemeral()))
        tunnel = Tunnel(session.tid, session.send_root, session.recv_root, time.monotonic())
        to.send(datagram)
        to.send(tunnel.seal(control.encode([], IPv4Address("10.43.0.1")), time.monotonic()))
        to.settimeout(10)
        to.recv(2048)  # the question whether it is there: this one was heard
"""


@pytest.mark.parametrize("engine", ["native", "python"])
def test_its_client_comes_back_with_the_cookie(lab: Lab, root: Path, engine: str) -> None:
    net = standard_topology(lab)
    web = lab.directory / "www"
    web.mkdir()
    (web / "small").write_bytes(MARK)
    lab.web_server(net.server, web)
    server = PqtunServer(lab, net.server, lab.directory / "server")
    soa = "$TTL 60\nexample.net. IN SOA ns.example.net. host.example.net. 1 60 60 60 60\n"
    lab.dns_server(net.resolver, soa + server.announce("www.example.net", address=SERVER4))
    server.start("--engine", engine, "--address", "10.42.0.1/29")
    client = PqconnectClient(lab, net.client, root, lab.directory / "client")
    client.start()

    def fetches() -> None:
        argv = ["curl", "-sS", "--fail", "--max-time", "60", "http://www.example.net/small"]
        assert lab.run(net.client, *argv, timeout=70).stdout.encode() == MARK

    def handshakes() -> dict[str, int]:
        counters: dict[str, int] = server.status()["handshakes"]
        return counters

    fetches()
    wait_until(lambda: handshakes().get("confirmed") == 1, 10, "the answer to an echo")
    [peer] = server.status()["peers"]
    python(lab, net.server, CROWD, str(server.keys), str(ADDRESSES))
    wait_until(lambda: handshakes().get("cookie_sent") == 1, 10, "the cookie")
    assert peer["name"] not in [other["name"] for other in server.status()["peers"]]
    fetches()
    assert handshakes()["cookie_accepted"] == 1
    assert handshakes()["accepted"] == 1 + ADDRESSES  # no handshake of its own brought it back
    assert peer["name"] in [other["name"] for other in server.status()["peers"]]
    fetches()
    client.stop()
    assert server.stop() == 0
