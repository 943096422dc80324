"""pqtun.daemon.connector with real key servers on the loopback addresses of both families."""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from pqtun.daemon import connector
from pqtun.daemon.connector import ConnectError, Connector, route_mtu
from pqtun.daemon.peers import Peer
from pqtun.keys.cache import ServerKeyCache
from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver import fetch
from pqtun.keyserver.server import KeyServer, KeyServerSocket
from pqtun.protocol.handshake import parse, respond
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from tests.daemon.resolver import Resolver, serving
from tests.protocol.vectors import public_key, secret_key

HASH = bytes.fromhex("ee1601b5838c3af87e2bad4a35c7b0f75fcb0062566f3a8cb79d89a758240e07")
ROOT = Path(__file__).resolve().parents[2]
NAME = "pq1x.example.net"
V4, V6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
OTHER4, THIRD4 = IPv4Address("127.0.0.2"), IPv4Address("127.0.0.3")
TUNNEL_PORT = 1


def peer(key_port, *addresses, keyhash=HASH, port=TUNNEL_PORT, good=None):
    return Peer(2, IPv4Address("10.43.0.2"), keyhash, NAME, addresses, port, key_port, good, 0.0)


def clock():
    return asyncio.get_running_loop().time()


@pytest.fixture
def made(tmp_path):
    return Connector(ServerKeyCache(tmp_path, 10), clock)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Give up soon where a port is closed."""
    monkeypatch.setattr(fetch, "REFUSED_TIMEOUT", 0.1)
    monkeypatch.setattr(fetch, "EPHEMERAL_RETRY", 0.05)


def bound(address, port=0):
    sock = socket.socket(socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind((str(address), port))
    return sock


class Server:
    """Real key servers of one key, at several addresses of this host, all on one port."""

    def __init__(self, *addresses, port=0, key=None):
        self.ring = EphemeralRing(lambda: 1_000_000.0, clock)
        self.at = {}
        for address in addresses:
            sock = bound(address, port)
            port = self.port = sock.getsockname()[1]
            self.at[address] = KeyServerSocket(KeyServer(KeyTree(key or public_key()), self.ring), [sock])

    def __enter__(self):
        for serving_socket in self.at.values():
            serving_socket.start()
        return self

    def __exit__(self, *_):
        for serving_socket in self.at.values():
            serving_socket.close()

    def counted(self, what):
        return sum(serving_socket.server.counters[what] for serving_socket in self.at.values())

    def fits(self, contact):
        """Whether the server that has the ring would come to the same session."""
        found = respond(parse(contact.datagram), secret_key(), self.ring.acceptable())
        return (found.tid, found.send_root) == (contact.session.tid, contact.session.recv_root)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def run(body):
    """Run a test, which must leave no task and no socket behind."""

    async def checked():
        before = open_files()
        await body()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(0)  # transports close their sockets in the next turn
        assert open_files() == before

    asyncio.run(checked())


@pytest.mark.parametrize("address", [V4, V6])
def test_the_key_is_downloaded_once(tmp_path, made, address):
    async def test():
        progress = []
        with Server(address) as server:
            found = peer(server.port, address)
            both = await asyncio.gather(
                *(made.contact(found, None, on_progress=lambda *seen: progress.append(seen)) for _ in range(2))
            )
            again = await Connector(ServerKeyCache(tmp_path, 10), clock).contact(found, None)
            for contact in (*both, again):
                assert server.fits(contact)
                assert contact.address == address
                assert contact.tunnel == (str(address), TUNNEL_PORT)
        assert server.counted("ephemeral") == 3
        assert server.counted("static") < 2 * 937
        assert progress[-1][0] == progress[-1][1]
        assert ServerKeyCache(tmp_path, 10).get(HASH) == public_key()

    run(test)


def test_the_family_that_answers_is_taken(made):
    async def test():
        for there in (V4, V6):
            with Server(there) as server:
                contact = await made.contact(peer(server.port, V4, V6), None)
                assert contact.address == there

    run(test)


def test_the_good_one_first_and_the_one_to_avoid_last(made):
    async def test():
        with Server(V4, V6) as server:
            for good, avoid, expected in (
                (None, (), V6),
                (V4, (), V4),
                (None, [V6], V4),
                (V4, [V4], V6),
                (V4, [V4, V6], V4),
                (V4, [V4, V6, V4], V6),
            ):
                contact = await made.contact(peer(server.port, V4, V6, good=good), None, avoid=avoid)
                assert contact.address == expected

    run(test)


def test_an_address_that_served_before_stays_a_candidate(made):
    async def test():
        with Server(V4) as server, bound(OTHER4, server.port):
            contact = await made.contact(peer(server.port, OTHER4, good=V4), None)
            assert contact.address == V4

    run(test)


def test_what_is_not_known_is_looked_up(made):
    """A program asked for the IPv4 address of a server that has none, or of one that does not answer there."""

    async def test():
        with Server(V6) as server:
            asking = Resolver({(NAME, "AAAA"): ["::1"], (NAME, "A"): ["127.0.0.9"]})
            async with serving(asking) as resolver:
                for known, asked in (((), ["A", "AAAA"]), ((OTHER4,), ["AAAA"])):
                    asking.asked.clear()
                    contact = await made.contact(peer(server.port, *known), resolver)
                    assert contact.address == V6
                    assert server.fits(contact)
                    assert sorted(kind for _, kind in asking.asked) == asked

    run(test)


def test_addresses_that_are_out_of_date_are_looked_up_again(made):
    async def test():
        with Server(V4, V6) as server:
            asking = Resolver({(NAME, "A"): ["127.0.0.1"], (NAME, "AAAA"): ["::1"]})
            async with serving(asking) as resolver:
                contact = await made.contact(peer(server.port, OTHER4, IPv6Address("2001:db8::1")), resolver)
                assert contact.address in (V4, V6)
                asking.asked.clear()
                contact = await made.contact(peer(server.port, OTHER4, good=OTHER4), resolver, avoid=[OTHER4, V6])
                assert contact.address == V4  # what is to be avoided is no reason not to ask
                assert sorted(kind for _, kind in asking.asked) == ["A", "AAAA"]

    run(test)


def test_ports_and_key_server_from_txt_records(made):
    async def test():
        with Server(OTHER4, OTHER6 := V6) as server:
            texts = [f"ip={OTHER4};p={server.port}", f"ip={OTHER6};p={server.port}"]
            records = {(NAME, "TXT"): ["p=1234"], (f"ks.{NAME}", "TXT"): texts}
            async with serving(Resolver(records)) as resolver:
                contact = await made.contact(peer(None, V4, port=None), resolver)
                assert contact.tunnel == ("127.0.0.1", 1234)
                assert server.at[OTHER4].server.counters["ephemeral"] == 1
                assert server.fits(contact)

    run(test)


@pytest.mark.parametrize("text", ["224.0.0.1", "239.1.1.1", "ff02::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_no_requests_to_groups_of_hosts(made, text):
    async def test():
        with pytest.raises(ConnectError) as caught:
            await made.contact(peer(42425, ip_address(text)), None)
        assert caught.value.reason == "no_address"
        with pytest.raises(PermissionError):
            connector.connected_socket((text, 42425))

    run(test)


def test_no_requests_to_a_broadcast_address(made):
    async def test():
        with pytest.raises(ConnectError, match="Permission denied") as caught:
            await made.contact(peer(42425, IPv4Address("255.255.255.255")), None)
        assert caught.value.reason == "network"

    run(test)


def test_a_wrong_key_is_refused(tmp_path, made):
    async def test():
        with Server(V4) as server, pytest.raises(ConnectError) as caught:
            await made.contact(peer(server.port, V4, keyhash=b"x" * 32), None)
        assert caught.value.reason == "wrong_key"
        assert str(caught.value).startswith(f"key server 127.0.0.1 port {server.port}: ")
        assert not list(tmp_path.glob("*"))

    run(test)


def test_another_address_is_tried_where_the_first_serves_another_key(made):
    async def test():
        key = public_key()
        wrong = ServerPublicKey(key.mceliece_pk[::-1], key.x25519_pk)
        with Server(V6, key=wrong) as first, Server(V4, port=first.port) as second:
            contact = await made.contact(peer(second.port, V4, V6), None)
            assert contact.address == V4
            assert second.fits(contact)
            assert first.counted("static") > 0

    run(test)


def test_a_key_that_no_handshake_can_be_made_with(tmp_path):
    async def test():
        key = ServerPublicKey(public_key().mceliece_pk, bytes(32))  # a point of small order
        with Server(V4, key=key) as server:
            made = Connector(ServerKeyCache(tmp_path, 10), clock)
            with pytest.raises(ConnectError, match="unusable key") as caught:
                await made.contact(peer(server.port, V4, keyhash=KeyTree(key).keyhash), None)
            assert caught.value.reason == "bad_key"

    run(test)


def test_ephemeral_keys_that_grew_old_during_a_download_are_replaced(tmp_path):
    async def test():
        now = [0.0]

        def progress(verified, total):
            if verified == total:
                now[0] += late

        with Server(V4) as server:
            for late, requests in ((connector.EPHEMERAL_SECONDS - 1, 1), (connector.EPHEMERAL_SECONDS + 1, 2)):
                before = server.counted("ephemeral")
                made = Connector(ServerKeyCache(tmp_path / str(late), 10), lambda: clock() + now[0])
                contact = await made.contact(peer(server.port, V4), None, on_progress=progress)
                assert server.fits(contact)
                assert server.counted("ephemeral") == before + requests

    run(test)


def test_a_silent_key_server_does_not_hold_up_another(made):
    """Both are announced with the same key; anybody can announce it with a key server of his own."""

    async def test():
        with Server(V4) as server, bound(OTHER4, server.port):
            waiting = asyncio.ensure_future(made.contact(peer(server.port, OTHER4), None))
            await asyncio.sleep(0)  # it has begun
            await asyncio.wait_for(made.contact(peer(server.port, V4), None), 5)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    run(test)


def test_no_key_server(made):
    async def test():
        with bound(V4) as sock:
            port = sock.getsockname()[1]
        with pytest.raises(ConnectError) as caught:
            await made.contact(peer(port, V4, V6), None)
        assert caught.value.reason == "network"
        assert "cannot be reached" in str(caught.value)

    run(test)


def test_the_fault_of_one_that_could_be_reached_is_told(made):
    async def test():
        with Server(V4) as server, pytest.raises(ConnectError) as caught:
            await made.contact(peer(server.port, V4, V6, keyhash=b"x" * 32), None)
        assert caught.value.reason == "wrong_key"

    run(test)


def test_no_address(made):
    async def test():
        async with serving(Resolver({})) as resolver:
            with pytest.raises(ConnectError) as caught:
                await made.contact(peer(42425), resolver)
        assert caught.value.reason == "no_address"

    run(test)


def test_an_attempt_that_is_given_up_takes_no_other_with_it(made):
    async def test():
        with Server(V4) as server:
            progress = asyncio.Event()
            contacts = [
                asyncio.ensure_future(made.contact(peer(server.port, V4), None, on_progress=lambda *_: progress.set()))
                for _ in range(3)
            ]
            await asyncio.wait_for(progress.wait(), 10)
            (downloading,) = made._downloads.values()
            first, third = contacts[0], contacts[2]
            first.cancel()
            third.cancel()
            done = await asyncio.wait_for(asyncio.gather(*contacts, return_exceptions=True), 10)
            assert [type(result).__name__ for result in done] == ["CancelledError", "Contact", "CancelledError"]
            assert downloading.done()
            assert not made._downloads

    run(test)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
def test_giving_up_at_any_time_leaves_nothing_behind(made, turns):
    async def test():
        with Server(V4) as server, bound(OTHER4, server.port):
            async with serving(Resolver({})) as resolver:
                contact = asyncio.ensure_future(made.contact(peer(server.port, OTHER4, THIRD4, port=None), resolver))
                for _ in range(turns):
                    await asyncio.sleep(0)
                contact.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await contact

    run(test)


def test_there_is_no_mtu_without_a_route():
    assert route_mtu(V4)
    assert route_mtu(V6)
    assert route_mtu(IPv4Address("224.0.0.1")) is None
    assert route_mtu(IPv4Address("255.255.255.255")) is None


@pytest.mark.root
def test_the_mtu_of_a_route():
    program = """
import subprocess
from ipaddress import ip_address
from pqtun.daemon.connector import route_mtu
for command in (
    "link add d0 mtu 1450 type veth peer name d1", "addr add 192.0.2.1/24 dev d0",
    "addr add 2001:db8::1/64 dev d0 nodad", "link set d0 up", "link set d1 up",
    "route add 203.0.113.0/24 via 192.0.2.2 mtu 1300", "-6 route add 2001:db8:1::/48 via 2001:db8::2 mtu 1350",
):
    subprocess.run(["ip", *command.split()], check=True)
for text in ("192.0.2.2", "2001:db8::2", "203.0.113.7", "2001:db8:1::7", "198.51.100.1", "2001:db8:2::1"):
    print(route_mtu(ip_address(text)))
"""
    argv = ["unshare", "--net", sys.executable, "-c", program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.stdout.split(), done.stderr) == (["1450", "1450", "1300", "1350", "None", "None"], "")


def test_connected_sockets(monkeypatch):
    for address, family in ((V4, socket.AF_INET), (V6, socket.AF_INET6)):
        with connector.connected_socket((str(address), 1)) as sock:
            assert sock.family == family
            assert not sock.getblocking()
            assert sock.getpeername()[:2] == (str(address), 1)

    opened = []

    class Refusing(socket.socket):
        def connect(self, _):
            opened.append(self)
            raise OSError("no route")

    monkeypatch.setattr(connector.socket, "socket", Refusing)
    with contextlib.suppress(OSError):
        connector.connected_socket(("::1", 1))
    assert [sock.fileno() for sock in opened] == [-1]


def test_private_addresses_of_ours_are_never_asked(tmp_path):
    async def test():
        made = Connector(ServerKeyCache(tmp_path, 10), clock, lambda address: address == V4)
        with Server(V4, OTHER4) as server:
            contact = await made.contact(peer(server.port, V4, OTHER4, good=V4), None)
            assert contact.address == OTHER4
            assert 0 <= contact.round_trip < 10
            assert server.at[V4].server.counters["ephemeral"] == 0
            with pytest.raises(ConnectError):
                await made.contact(peer(server.port, V4), None)

    run(test)


def test_a_session_that_nobody_gets_is_erased(made, monkeypatch):
    """The attempt is given up while the lookups end."""
    sessions = []
    begin = connector.initiate

    def initiate(*keys):
        datagram, session = begin(*keys)
        sessions.append(session)
        asyncio.get_running_loop().call_soon(task.cancel)
        return datagram, session

    monkeypatch.setattr(connector, "initiate", initiate)

    async def test():
        nonlocal task
        with Server(V4) as server:
            async with serving(Resolver({}, lost=99)) as resolver:
                task = asyncio.ensure_future(made.contact(peer(server.port, V4), resolver))
                await asyncio.wait([task])
                lookups = asyncio.all_tasks() - {asyncio.current_task()}
                if lookups:  # which of them are left depends on the version of Python
                    await asyncio.wait(lookups)
        assert task.cancelled()
        assert len(sessions) == 1
        assert not any(sessions[0].send_root)
        assert not any(sessions[0].resume_secret)

    task = None
    run(test)


def test_no_route_and_no_server_are_told_apart(made, monkeypatch):
    """The one tells nothing about the server, least of all where another address was refused."""
    connected = connector.connected_socket

    def without_ipv6(address):
        if ip_address(address[0]).version == 6:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        return connected(address)

    monkeypatch.setattr(connector, "connected_socket", without_ipv6)

    async def test():
        for addresses, reason in (([V6], "no_route"), ([OTHER4], "network"), ([V6, OTHER4], "network")):
            with pytest.raises(ConnectError) as caught:
                await made.contact(peer(1, *addresses), None)
            assert caught.value.reason == reason

    run(test)
