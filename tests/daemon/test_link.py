import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from pqtun.daemon import link as link_module
from pqtun.daemon.connector import ConnectError, Ports
from pqtun.daemon.link import Link
from pqtun.daemon.peers import Peer
from pqtun.protocol import control
from pqtun.protocol.handshake import Session
from pqtun.pump.icmp import echo_request

OWN, INNER = IPv4Address("10.43.0.1"), IPv4Address("10.43.0.2")
FIRST, SECOND, THIRD = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
PEER = Peer(2, INNER, b"k" * 32, "pq1k.example.net", (FIRST, SECOND), 42424, 42425, None, 0.0)


class World:
    """An engine and a connector that a test directs, with a log of what the link asked of them."""

    def __init__(self):
        self.log = []
        self.answering = True
        self.unreachable = set()
        self.sessions = 0
        self.passed = 0.0  # seconds that a test has let pass in no time
        self.link = Link(PEER, self, self, OWN, 1396, lambda: asyncio.get_running_loop().time() + self.passed)

    # the connector
    async def session(self, peer, ports: Ports, on_progress=None):
        self.log.append(("session", ports.tunnel[0]))
        await asyncio.sleep(0)
        if ports.tunnel[0] in self.unreachable:
            raise ConnectError("no_answer", f"key server {ports.key_server[0]} does not answer")
        self.sessions += 1
        tid = bytes([self.sessions]) * 32
        return b"handshake", Session(tid, bytearray(32), bytearray(32), bytearray(32))

    # the engine
    def hold(self, inner):
        self.log.append(("hold", inner))

    def drop_held(self, inner, *, unreachable):
        self.log.append(("drop_held", unreachable))

    def send_datagram(self, data, endpoint):
        self.log.append(("datagram", data, endpoint))

    def add_tunnel(self, session, inner, endpoint, *, first=None):
        assert control.parse(first) == [control.Hello(1, 0, 1396)]
        self.log.append(("add", session.tid[0], endpoint))

    def remove_tunnel(self, tid):
        self.log.append(("remove", tid[0]))

    def send_inner(self, tid, packet):
        if self.answering and packet == echo_request(OWN):
            self.link.alive(tid)

    def names(self):
        return [entry[0] for entry in self.log]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polls state that has no event
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(link_module, "CONFIRM_SECONDS", (0.02, 0.02))
    monkeypatch.setattr(link_module, "ECHO_SECONDS", 0.005)


def test_connects_once_however_often_wanted():
    async def test():
        world = World()
        assert world.link.state == "idle"
        world.link.want()
        world.link.want()
        assert world.link.state == "connecting"
        await until(lambda: world.link.state == "up")
        world.link.want()
        assert world.names() == ["hold", "session", "datagram", "add"]
        assert world.log[2][2] == ("192.0.2.1", 42424)

    asyncio.run(test())


def test_a_dead_tunnel_is_replaced_when_wanted():
    async def test():
        world = World()
        world.link.want()
        await until(lambda: world.link.state == "up")
        world.link.dead(bytes(32))
        assert world.link.state == "up"
        world.link.dead(world.link.tid)
        assert world.link.state == "idle"
        world.link.want()
        await until(lambda: world.link.state == "up")
        assert world.link.tid[0] == 2
        assert not world.link.alive(b"\1" * 32)

    asyncio.run(test())


def test_the_second_address_when_the_first_fails():
    async def test():
        world = World()
        world.unreachable = {str(FIRST)}
        world.link.want()
        await until(lambda: world.link.state == "up")
        assert [entry[1] for entry in world.log if entry[0] == "session"] == [str(FIRST), str(SECOND)]

    asyncio.run(test())


def test_failure_tells_the_programs_and_pauses(caplog):
    async def test():
        world = World()
        world.unreachable = {str(FIRST), str(SECOND)}
        world.link.want()
        await until(lambda: world.link.state == "failed")
        assert world.log[-1] == ("drop_held", True)
        assert world.link.error == "key server 192.0.2.2 does not answer"
        sessions = world.names().count("session")
        world.link.want()  # at once: within the pause
        assert world.link.state == "failed"
        assert world.log[-1] == ("drop_held", True)
        assert world.names().count("session") == sessions
        world.unreachable = set()
        world.passed += link_module.RETRY_SECONDS[0]
        world.link.want()
        await until(lambda: world.link.state == "up")
        assert world.link.error is None
        assert [record.levelname for record in caplog.records].count("WARNING") == 1

    asyncio.run(test())


def test_new_addresses_are_tried_at_once():
    async def test():
        world = World()
        world.unreachable = {str(FIRST), str(SECOND)}
        world.link.want()
        await until(lambda: world.link.state == "failed")
        world.link.found(PEER, ("192.0.2.53", 53))
        world.link.want()
        assert world.link.state == "failed"
        world.link.found(replace(PEER, addresses=(THIRD,)), ("192.0.2.53", 53))
        world.link.want()
        await until(lambda: world.link.state == "up")

    asyncio.run(test())


def test_silence_after_handshakes_leaves_no_tunnel():
    async def test():
        world = World()
        world.answering = False
        world.link.want()
        await until(lambda: world.link.state == "failed")
        assert "no answer to the handshake" in world.link.error
        assert world.link.tid is None
        added = {entry[1] for entry in world.log if entry[0] == "add"}
        removed = {entry[1] for entry in world.log if entry[0] == "remove"}
        assert added == removed == {1, 2, 3, 4}  # two tries at each of two addresses

    asyncio.run(test())


def test_close_ends_an_attempt():
    async def test():
        world = World()
        world.answering = False
        world.link.want()
        await until(lambda: "add" in world.names())
        await world.link.close()
        assert ("drop_held", True) not in world.log

    asyncio.run(test())


def test_echo_request_is_a_valid_packet():
    packet = echo_request(OWN)
    assert len(packet) == 28
    for part in (packet[:20], packet[20:]):
        assert sum(int.from_bytes(part[i : i + 2], "big") for i in range(0, len(part), 2)) % 0xFFFF == 0
    assert packet[12:20] == OWN.packed + bytes(4)


def test_an_attempt_that_is_given_up_leaves_nothing_and_can_be_made_again():
    async def test():
        world = World()
        world.answering = False
        world.link.want()
        await until(lambda: "add" in world.names())
        world.link.give_up("for a reason")
        assert (world.link.state, world.link.error, world.link.idle) == ("failed", "for a reason", True)
        assert world.log[-2:] == [("remove", 1), ("drop_held", True)]
        world.answering = True
        world.link.want()
        await until(lambda: world.link.state == "up")
        assert world.link.error is None

    asyncio.run(test())
