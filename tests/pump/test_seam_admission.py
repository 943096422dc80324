"""Which datagrams that are no tunnel packets reach the control plane, of every engine."""

import socket
from collections import Counter

import pytest

from pqtun.pump.engine import Datagram, HandshakeLimits
from pqtun.pump.limits import EXPECTED_SECONDS, HINTS_PER_SECOND, PREFIX_BURST_SECONDS
from tests.pump.conftest import Play, ipv6
from tests.pump.rig import Rig, delivered, endpoint_of, from_far

HANDSHAKE = b"\1\0" + bytes(1297)
COOKIE = b"pqccookE" + bytes(136)
HINT = b"\3\0"
SERVER = HandshakeLimits(per_second=2000, per_prefix=100)

# Of every other size or kind.
UNKNOWN = (
    b"",
    b"\1",
    b"\1\0",
    HANDSHAKE[:-1],
    HANDSHAKE + b"\0",
    b"\0\1" + bytes(1297),
    COOKIE[:-1],
    COOKIE + b"\0",
    COOKIE + b"\2\0" + bytes(53),
    COOKIE + b"\3\0" + bytes(54),
    bytes(144) + b"\2\0" + bytes(54),
    b"pqccookF" + bytes(136),
    bytes(144),
    HINT + b"\0",
    b"\3",
    b"\3\1",
    b"\xf2\0" + bytes(1194),
    bytes(2049),
)


async def reported(rig: Rig) -> list[Datagram]:
    """The datagrams that the engine has reported since."""
    await rig.settle()
    events = [event for event in rig.events if isinstance(event, Datagram)]
    assert events == rig.events
    rig.events.clear()
    return events


def drops(rig: Rig) -> dict[str, int]:
    return {reason: count for reason, count in rig.drops().items() if reason != "tun_not_ipv4"}  # the rig's own


class Sources:
    """Sockets at several addresses of the loopback device, to which a whole /8 leads."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.sockets: dict[str, socket.socket] = {}

    def at(self, host: str) -> socket.socket:
        if host not in self.sockets:
            sock = self.rig.udp_socket(host)
            self.sockets[host] = sock
        return self.sockets[host]

    async def send(self, host: str, count: int, data: bytes = HANDSHAKE) -> int:
        """Send so many and say how many the engine has reported; never more at once than it queues."""
        got = 0
        for number in range(count):
            self.at(host).sendto(data, self.rig.address)
            if number % 50 == 49:
                got += len(await reported(self.rig))
        return got + len(await reported(self.rig))


# -- a client


def test_a_client_hears_hints_only(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for data in (HANDSHAKE, COOKIE, HINT, *UNKNOWN):
            far.send(data)
        assert await reported(rig) == [Datagram(HINT, far.endpoint)]
        assert drops(rig) == {"handshake_unwanted": 2, "datagram_unknown": len(UNKNOWN)}
        far.send_packet(b"alive")
        assert await rig.delivered() == delivered(b"alive")

    play(scenario)


def test_hints_have_a_rate(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        sources = Sources(rig)
        rate = int(HINTS_PER_SECOND)
        assert await sources.send("127.0.0.1", 30, HINT) == rate
        assert await sources.send("127.1.2.3", 5, HINT) == 0  # of all sources together
        assert drops(rig) == {"hint_limit": 35 - rate}
        await rig.pass_time(0.5)
        assert await sources.send("127.0.0.1", 30, HINT) == rate // 2

    play(scenario)


def test_a_client_expects_nobody(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.engine.expect("127.0.0.1")
        far = rig.far()
        far.send(HANDSHAKE)
        far.send(HINT)
        assert await reported(rig) == [Datagram(HINT, far.endpoint)]

    play(scenario)


# -- a server


def test_a_server_hears_handshakes_and_cookies_only(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for data in (HANDSHAKE, COOKIE, HINT, *UNKNOWN):
            far.send(data)
        assert await reported(rig) == [Datagram(HANDSHAKE, far.endpoint), Datagram(COOKIE, far.endpoint)]
        assert drops(rig) == {"hint_unwanted": 1, "datagram_unknown": len(UNKNOWN)}

    play(scenario, handshakes=SERVER)


def test_a_tunnel_packet_behind_a_cookie_waits_for_its_tunnel(play: Play) -> None:
    """PQConnect's client sends both in one datagram."""

    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        far.send(COOKIE + far.seal(from_far(b"first")))
        assert await reported(rig) == [Datagram(COOKIE, far.endpoint)]
        assert rig.engine.stats().early_packets == 1
        rig.add(far)
        assert await rig.delivered() == delivered(b"first")
        far.send(COOKIE + far.seal(from_far(b"late")))  # the cookie has come back already, from elsewhere
        assert await rig.delivered() == delivered(b"late")

    play(scenario, handshakes=SERVER)


def test_nothing_behind_a_cookie_that_is_not_wanted(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        far.send(COOKIE + far.seal(from_far(b"first")))
        assert await reported(rig) == []
        assert drops(rig) == {"handshake_unwanted": 1}
        assert rig.engine.stats().early_packets == 0

    play(scenario)


def test_one_prefix_has_a_rate(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        sources = Sources(rig)
        burst = int(20 * PREFIX_BURST_SECONDS)
        assert await sources.send("127.0.0.1", 30) == 30
        assert await sources.send("127.0.0.254", 30, COOKIE) == burst - 30  # the same /24; cookies count too
        assert drops(rig) == {"handshake_prefix_limit": 60 - burst}
        assert await sources.send("127.0.1.1", 30) == 30  # its neighbour
        await rig.pass_time(0.5)
        assert await sources.send("127.0.0.1", 30) == 10
        await rig.pass_time(3600)  # the burst is all that it saves up
        assert await sources.send("127.0.0.1", 60) == burst

    play(scenario, handshakes=HandshakeLimits(per_second=4000, per_prefix=20))


def test_all_prefixes_together_have_a_rate_and_the_expected_one_of_their_own(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        sources = Sources(rig)
        for number in range(60):
            rig.engine.expect(f"127.1.{number}.77")
        strangers: Counter[bool] = Counter()
        for number in range(60):  # a quarter of a second's worth of the rate, of which strangers have a quarter
            sources.at(f"127.2.{number}.1").sendto(HANDSHAKE, rig.address)
            sources.at(f"127.1.{number}.1").sendto(HANDSHAKE, rig.address)
        strangers.update(event.expected for event in await reported(rig))
        assert strangers == {True: 40, False: 10}
        assert drops(rig) == {"handshake_limit": 70}
        await rig.pass_time(0.125)
        for number in range(60):
            sources.at(f"127.2.{number}.1").sendto(HANDSHAKE, rig.address)
            sources.at(f"127.1.{number}.1").sendto(HANDSHAKE, rig.address)
        strangers.update(event.expected for event in await reported(rig))
        assert strangers == {True: 60, False: 15}

    play(scenario, handshakes=HandshakeLimits(per_second=160, per_prefix=100))


def test_a_prefix_is_expected_for_some_time(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        sources = Sources(rig)

        async def expected(host: str) -> bool:
            sources.at(host).sendto(HANDSHAKE, rig.address)
            (event,) = await reported(rig)
            assert event == Datagram(HANDSHAKE, endpoint_of(sources.at(host)), event.expected)
            return event.expected

        assert not await expected("127.0.5.1")
        rig.engine.expect("127.0.5.9")
        rig.engine.expect("2001:db8::1")
        assert await expected("127.0.5.1")
        assert not await expected("127.0.6.9")
        await rig.pass_time(EXPECTED_SECONDS - 1)
        assert await expected("127.0.5.1")
        await rig.pass_time(1)
        assert not await expected("127.0.5.1")

    play(scenario, handshakes=SERVER)


@ipv6
def test_ipv6_prefixes_have_56_bits(play: Play) -> None:
    """Seen by whom ``expect`` names: the rates are those of the same slots."""

    async def scenario(rig: Rig) -> None:
        six = rig.udp_socket(six=True)

        async def expected() -> bool:
            six.sendto(HANDSHAKE, rig.address6)
            (event,) = await reported(rig)
            assert event.source == endpoint_of(six)
            return event.expected

        assert not await expected()
        rig.engine.expect("0:0:0:100::1")  # the prefix next to that of ::1
        assert not await expected()
        rig.engine.expect("0:0:0:ff:1:2:3:4")
        assert await expected()

    play(scenario, handshakes=SERVER, dual=True)


@ipv6
def test_mapped_addresses_are_those_of_ipv4(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        sources = Sources(rig)
        rig.engine.expect("127.0.5.9")
        for host, expected in (("127.0.5.1", True), ("127.0.6.1", False)):
            sources.at(host).sendto(HANDSHAKE, rig.address)
            assert await reported(rig) == [Datagram(HANDSHAKE, endpoint_of(sources.at(host)), expected)]

    play(scenario, handshakes=SERVER, dual=True)


@pytest.mark.root  # for a receive buffer that holds the flood
def test_a_flood_displaces_neither_packets_nor_other_events(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        sources = Sources(rig)
        for number in range(400):
            sources.at(f"127.3.{number % 100}.1").sendto(HANDSHAKE, rig.address)
        far.send_packet(b"x")
        assert await rig.delivered() == delivered(b"x")
        await rig.settle()
        got = Counter(type(event).__name__ for event in rig.events)
        assert got["Alive"] == 1
        assert got["Datagram"] == 125  # what strangers have in a quarter of a second
        assert drops(rig) == {"handshake_limit": 275}

    play(scenario, handshakes=SERVER)
