import asyncio
import contextlib
import socket
from ipaddress import IPv4Address

import dns.flags
import dns.message
import dns.rrset
import pytest

from pqtun.daemon.connector import ConnectError, Connector, Ports, find_ports
from pqtun.daemon.peers import Peer
from pqtun.keys.cache import ServerKeyCache
from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.server import KeyServer, KeyServerSocket
from pqtun.protocol.handshake import parse, respond
from pqtun.protocol.keytree import KeyTree
from tests.protocol.vectors import public_key, secret_key

HASH = bytes.fromhex("ee1601b5838c3af87e2bad4a35c7b0f75fcb0062566f3a8cb79d89a758240e07")
ADDRESS = IPv4Address("127.0.0.1")


def peer(port=None, key_port=None, keyhash=HASH):
    return Peer(2, IPv4Address("10.43.0.2"), keyhash, "pq1x.example.net", (ADDRESS,), port, key_port, None, 0.0)


def clock():
    return asyncio.get_running_loop().time()


@contextlib.contextmanager
def key_server():
    """A real key server on the loopback of this process."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    address = sock.getsockname()
    ring = EphemeralRing(lambda: 1_000_000.0, clock)
    serving = KeyServerSocket(KeyServer(KeyTree(public_key()), ring), [sock])
    serving.start()
    try:
        yield serving.server, ring, Ports(("127.0.0.1", 1), address)
    finally:
        serving.close()


def test_session_downloads_the_key_once(tmp_path):
    async def test():
        cache = ServerKeyCache(tmp_path, 10)
        progress = []
        with key_server() as (server, ring, ports):
            made = Connector(cache, clock)
            both = await asyncio.gather(*(made.session(peer(), ports, lambda *p: progress.append(p)) for _ in range(2)))
            again = await Connector(cache, clock).session(peer(), ports)
            for datagram, session in (*both, again):
                found = respond(parse(datagram), secret_key(), ring.acceptable())
                assert (found.tid, found.send_root) == (session.tid, session.recv_root)
            counted = server.counters
        assert counted["ephemeral"] == 3
        assert counted["static"] < 2 * 937
        assert progress[-1][0] == progress[-1][1]
        assert cache.get(HASH) == public_key()

    asyncio.run(test())


def test_no_requests_to_groups_of_hosts(tmp_path):
    async def test():
        for address in ("224.0.0.1", "239.1.1.1", "255.255.255.255"):
            ports = Ports((address, 42424), (address, 42425))
            with pytest.raises(ConnectError, match="Permission denied"):
                await Connector(ServerKeyCache(tmp_path, 10), clock).session(peer(), ports)

    asyncio.run(test())


def test_a_wrong_key_is_refused(tmp_path):
    async def test():
        with key_server() as (_, _, ports), pytest.raises(ConnectError) as caught:
            await Connector(ServerKeyCache(tmp_path, 10), clock).session(peer(keyhash=b"x" * 32), ports)
        assert caught.value.reason == "wrong_key"
        assert "127.0.0.1 port" in str(caught.value)
        assert not list(tmp_path.glob("*"))

    asyncio.run(test())


def test_a_silent_key_server_does_not_hold_up_another(tmp_path):
    """Both are announced with the same key; anybody can announce it with a key server of his own."""

    async def test():
        with key_server() as (_, _, ports), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            made = Connector(ServerKeyCache(tmp_path, 10), clock)
            waiting = asyncio.ensure_future(made.session(peer(), Ports(("127.0.0.1", 1), silent.getsockname())))
            await asyncio.sleep(0)  # it has begun
            await asyncio.wait_for(made.session(peer(), ports), 5)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(test())


def test_no_key_server(tmp_path):
    async def test():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            ports = Ports(("127.0.0.1", 1), sock.getsockname())
        with pytest.raises(ConnectError) as caught:
            await Connector(ServerKeyCache(tmp_path, 10), clock).session(peer(), ports)
        assert caught.value.reason in ("no_answer", "network")

    asyncio.run(test())


def test_an_attempt_that_is_given_up_takes_no_other_with_it(tmp_path):
    async def test():
        with key_server() as (_, _, ports):
            made = Connector(ServerKeyCache(tmp_path, 10), clock)
            first, second, third = (asyncio.ensure_future(made.session(peer(), ports)) for _ in range(3))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first.cancel()
            third.cancel()
            done = await asyncio.wait_for(asyncio.gather(first, second, third, return_exceptions=True), 10)
            assert [type(result).__name__ for result in done] == ["CancelledError", "tuple", "CancelledError"]

    asyncio.run(test())


class Resolver(asyncio.DatagramProtocol):
    """Answers TXT questions from a dict."""

    def __init__(self, texts):
        self.texts = texts

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, source):
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        name = query.question[0].name
        for text in self.texts.get(str(name).rstrip("."), ()):
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", f'"{text}"'))
        self.transport.sendto(answer.to_wire(), source)


@pytest.mark.parametrize(
    ("texts", "tunnel", "key_server"),
    [
        ({}, 42424, ("127.0.0.1", 42425)),
        ({"pq1x.example.net": ["p=1000"]}, 1000, ("127.0.0.1", 42425)),
        (
            {"pq1x.example.net": ["v=spf1", "p=1000"], "ks.pq1x.example.net": ["ip=192.0.2.7;p=2000"]},
            1000,
            ("192.0.2.7", 2000),
        ),
        (
            {"ks.pq1x.example.net": ["ip=2001:db8::1;p=9", "ip=999.1.1.1;p=9", "ip=192.0.2.8;p=3"]},
            42424,
            ("192.0.2.8", 3),
        ),
    ],
)
def test_ports_from_txt_records(texts, tunnel, key_server):
    async def test():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Resolver(texts), local_addr=("127.0.0.1", 0))
        try:
            ports = await find_ports(peer(), ADDRESS, transport.get_extra_info("sockname"))
        finally:
            transport.close()
        assert ports == Ports(("127.0.0.1", tunnel), key_server)

    asyncio.run(test())


def test_one_port_of_the_label_and_one_default():
    assert asyncio.run(find_ports(peer(443), ADDRESS, None)) == Ports(("127.0.0.1", 443), ("127.0.0.1", 42425))
    assert asyncio.run(find_ports(peer(None, 853), ADDRESS, None)) == Ports(("127.0.0.1", 42424), ("127.0.0.1", 853))


def test_ports_from_the_label_need_no_lookup():
    ports = asyncio.run(find_ports(peer(443, 853), ADDRESS, ("192.0.2.1", 53)))
    assert ports == Ports(("127.0.0.1", 443), ("127.0.0.1", 853))


def test_a_resolver_that_hangs_up_is_no_fault_of_ours():
    """It says by UDP that the answer is cut short, and closes the TCP connection without one."""

    class Truncating(Resolver):
        def datagram_received(self, data, source):
            answer = dns.message.make_response(dns.message.from_wire(data))
            answer.flags |= dns.flags.TC
            self.transport.sendto(answer.to_wire(), source)

    async def test():
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        transport, _ = await loop.create_datagram_endpoint(lambda: Truncating({}), local_addr=address)
        try:
            assert await find_ports(peer(), ADDRESS, address) == Ports(("127.0.0.1", 42424), ("127.0.0.1", 42425))
        finally:
            transport.close()
            server.close()

    asyncio.run(test())
