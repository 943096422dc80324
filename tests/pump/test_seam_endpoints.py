"""Where peers are: endpoints of both families, and what is sent to one that nobody confirmed."""

import socket
from ipaddress import IPv4Address

import pytest

from pqtun.protocol import control
from pqtun.protocol.constants import COOKIE_BYTES, COOKIE_PREFIX
from pqtun.pump.engine import Alive, Roamed
from pqtun.pump.limits import (
    UNCONFIRMED_BYTES,
    UNCONFIRMED_FACTOR,
    UNCONFIRMED_PREFIX_BYTES,
    UNCONFIRMED_PREFIX_RATE,
    UNCONFIRMED_RATE,
)
from tests.pump import packets as p
from tests.pump.conftest import Play, ipv6
from tests.pump.rig import OTHER, PEER, Far, Rig, delivered, endpoint_of, from_far, to_far

OVERHEAD = 56
CONTROL, OTHER_CONTROL = (
    control.encode([control.Ping(data)], IPv4Address(OTHER)) for data in (b"12345678", b"abcdefgh")
)


# -- both families


@ipv6
@pytest.mark.parametrize("six", [False, True])
def test_one_socket_for_both_families(play: Play, six: bool) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(six=six)
        rig.write(to_far(b"up"))
        assert await far.plaintext() == p.cleared(to_far(b"up"))
        far.send_packet(b"down")
        assert await rig.delivered() == delivered(b"down")
        await rig.settle()
        assert rig.events == [Alive(far.tid)]  # the source is the endpoint, as it was given
        assert rig.stats(far).endpoint == far.endpoint == (("::1" if six else "127.0.0.1"), far.endpoint[1])
        rig.engine.send_datagram(b"\1\0hello", far.endpoint)
        assert await far.datagram() == b"\1\0hello"

    play(scenario, dual=True)


@ipv6
def test_a_peer_roams_between_the_families(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, six = rig.far(), rig.udp_socket(six=True)
        far.send(far.seal(from_far(b"1")), six)
        assert await rig.delivered() == delivered(b"1")
        assert await rig.event(Roamed) == Roamed(far.tid, endpoint_of(six))
        rig.write(to_far(b"x"))
        assert far.tunnel.open(await rig.read(six), rig.clock()) == p.cleared(to_far(b"x"))
        far.send_packet(b"2")
        assert await rig.delivered() == delivered(b"2")
        assert await rig.event(Roamed) == Roamed(far.tid, far.endpoint)
        assert far.endpoint[0] == "127.0.0.1"
        rig.write(to_far(b"y"))
        assert await far.plaintext() == p.cleared(to_far(b"y"))

    play(scenario, dual=True)


@ipv6
def test_what_came_early_over_ipv6_tells_where_the_peer_is(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None, six=True)
        far.send_packet(b"early")
        await rig.until(lambda: rig.engine.stats().early_packets == 1, "the packet")
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), ("127.0.0.1", 9))
        assert await rig.delivered() == delivered(b"early")
        assert await rig.event(Roamed) == Roamed(far.tid, far.endpoint)

    play(scenario, dual=True)


def test_an_ipv4_socket_sends_nothing_to_ipv6(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), ("2001:db8::1", 9))
        rig.write(to_far(b"lost"))
        await rig.settle()
        assert rig.tunnel_drops(far.tid) == {"send_eafnosupport": 1}
        assert rig.stats(far).last_sent is None
        rig.engine.send_datagram(b"\1\0", ("::1", 9))
        assert rig.drops()["send_eafnosupport"] == 1
        far.send_packet(b"alive")
        assert await rig.delivered() == delivered(b"alive")
        rig.write(to_far(b"now there"))
        assert await far.plaintext() == p.cleared(to_far(b"now there"))

    play(scenario)


# -- unconfirmed endpoints


async def sent(rig: Rig, far: Far, sock: socket.socket | None = None) -> int:
    """Bytes of the datagrams that have come to the peer."""
    await rig.settle()
    count = 0
    while True:
        try:
            count += len((sock or far.socket).recv(65535))
        except BlockingIOError:
            return count


async def flood(rig: Rig, far: Far, size: int, sock: socket.socket | None = None, inner: str = PEER) -> int:
    """Have a program send ``size`` bytes of datagrams; return how many of them came to the peer."""
    total = 0
    packet = to_far(bytes(1400 - OVERHEAD - 28), inner)
    for number in range(size // 1400):
        rig.write(packet)
        if number % 64 == 63:
            total += await sent(rig, far, sock)
    return total + await sent(rig, far, sock)


def within(bytes_sent: int, budget: float) -> bool:
    """All of the budget was used, but for less than one datagram."""
    return budget - 1400 < bytes_sent <= budget


def unconfirmed(rig: Rig, number: int = 1, inner: str = PEER, host: str = "127.0.0.1") -> Far:
    far = rig.far(number, None)
    far.socket = rig.udp_socket(host)
    far.endpoint = endpoint_of(far.socket)
    rig.engine.add_tunnel(far.ours, IPv4Address(inner), far.endpoint, confirmed=False)
    return far


def test_a_confirmed_endpoint_has_no_budget(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        assert rig.stats(far).confirmed
        assert await flood(rig, far, 420_000) == 420_000
        assert rig.tunnel_drops(far.tid) == {}

    play(scenario)


def test_an_unconfirmed_endpoint_has_a_budget_until_it_is_confirmed(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = unconfirmed(rig)
        assert not rig.stats(far).confirmed
        got = await flood(rig, far, 420_000)
        assert within(got, UNCONFIRMED_BYTES)
        assert rig.tunnel_drops(far.tid) == {"unconfirmed": 300 - got // 1400}
        rig.engine.confirm(far.tid, ("127.0.0.1", 9))  # it is not there
        assert not rig.stats(far).confirmed
        assert await flood(rig, far, 14_000) == 0
        rig.engine.confirm(far.tid, far.endpoint)
        assert rig.stats(far).confirmed
        assert await flood(rig, far, 420_000) == 420_000
        rig.engine.confirm(bytes(32), far.endpoint)  # no such tunnel: nothing happens

    play(scenario)


def test_the_budget_comes_back_with_time(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = unconfirmed(rig)
        got = await flood(rig, far, 420_000)
        await rig.pass_time(2)
        got += await flood(rig, far, 140_000)
        assert within(got, UNCONFIRMED_BYTES + 2 * UNCONFIRMED_RATE)
        await rig.pass_time(60)  # it is full again, and no fuller
        far.send_packet(b"alive")
        got = await flood(rig, far, 420_000)
        assert within(got, UNCONFIRMED_BYTES + UNCONFIRMED_FACTOR * (OVERHEAD + len(from_far(b"alive"))))

    play(scenario)


def test_what_comes_from_an_endpoint_may_be_answered_three_times(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = unconfirmed(rig)
        got = await flood(rig, far, 420_000)
        received = 0
        for _ in range(30):
            datagram = far.seal(from_far(bytes(1000)))
            far.send(datagram)
            received += len(datagram)
        forged = far.seal(from_far(bytes(1000)))
        far.send(forged[:-1] + bytes([forged[-1] ^ 1]))  # this one earns nothing
        far.send(datagram)  # nor does this
        await rig.settle()
        got += await flood(rig, far, 210_000)
        assert within(got, UNCONFIRMED_BYTES + UNCONFIRMED_FACTOR * received)

    play(scenario)


def test_a_peer_that_roams_is_unconfirmed_and_gets_no_new_budget(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, moved, again = rig.far(), rig.udp_socket(), rig.udp_socket()
        far.send_packet(b"at home")
        await rig.delivered()
        assert rig.stats(far).confirmed
        datagram = far.seal(from_far(b"away"))
        far.send(datagram, moved)
        await rig.settle()
        assert not rig.stats(far).confirmed
        rig.engine.confirm(far.tid, far.endpoint)  # too late: it has moved on
        assert not rig.stats(far).confirmed
        got = await flood(rig, far, 420_000, moved)
        assert within(got, UNCONFIRMED_BYTES + UNCONFIRMED_FACTOR * len(datagram))
        left = UNCONFIRMED_BYTES + UNCONFIRMED_FACTOR * len(datagram) - got
        datagram = far.seal(from_far(b"away again"))
        far.send(datagram, again)
        await rig.settle()
        assert await flood(rig, far, 140_000, again) <= left + UNCONFIRMED_FACTOR * len(datagram)
        rig.engine.confirm(far.tid, endpoint_of(again))
        assert await flood(rig, far, 140_000, again) == 140_000

    play(scenario)


def test_what_was_earned_at_one_endpoint_is_not_sent_to_another(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, victim = unconfirmed(rig), rig.udp_socket()
        for _ in range(200):
            far.send_packet(bytes(1000))
        await rig.settle()
        datagram = far.seal(from_far(b"moved"))
        far.send(datagram, victim)
        await rig.settle()
        got = await flood(rig, far, 420_000, victim)
        assert within(got, UNCONFIRMED_BYTES + UNCONFIRMED_FACTOR * len(datagram))

    play(scenario)


def test_old_packets_from_elsewhere_move_and_earn_nothing(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, elsewhere = unconfirmed(rig), rig.udp_socket()
        late = [far.seal(from_far(bytes(1000))) for _ in range(20)]
        far.send_packet(b"newest")
        for datagram in late:
            far.send(datagram, elsewhere)
        await rig.settle()
        got = await flood(rig, far, 420_000)
        assert within(got, UNCONFIRMED_BYTES + UNCONFIRMED_FACTOR * (OVERHEAD + len(from_far(b"newest"))))

    play(scenario)


def test_the_budget_is_the_control_plane_s_too_and_each_tunnel_s_own(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, other = unconfirmed(rig), unconfirmed(rig, 2, OTHER)
        got = await flood(rig, far, 420_000)
        rest = UNCONFIRMED_BYTES - got
        rig.engine.send_inner(far.tid, bytes(rest - OVERHEAD + 1))
        assert await sent(rig, far) == 0
        rig.engine.send_inner(far.tid, bytes(rest - OVERHEAD))
        assert await sent(rig, far) == rest
        assert within(await flood(rig, other, 420_000, inner=OTHER), UNCONFIRMED_BYTES)

    play(scenario)


CROWD = UNCONFIRMED_PREFIX_BYTES // UNCONFIRMED_BYTES + 3


def inner_of(number: int) -> str:
    return f"10.43.1.{number}"


async def flood_crowd(rig: Rig, crowd: list[Far], size: int) -> list[int]:
    """As ``flood``, to each of these tunnels, which are those for ``inner_of(1)`` and so on."""
    return [await flood(rig, far, size, inner=inner_of(number)) for number, far in enumerate(crowd, 1)]


def unconfirmed_crowd(rig: Rig) -> list[Far]:
    """More tunnels, to hosts of one network, than it gets packets for."""
    return [unconfirmed(rig, n, inner_of(n), f"127.0.9.{n}") for n in range(1, CROWD + 1)]


def test_tunnels_to_one_network_share_what_it_gets(play: Play) -> None:
    """Anybody can have many tunnels; all of them together are no flood either."""

    async def scenario(rig: Rig) -> None:
        crowd = unconfirmed_crowd(rig)
        got = await flood_crowd(rig, crowd, 294_000)
        assert UNCONFIRMED_PREFIX_BYTES - 1400 < sum(got) <= UNCONFIRMED_PREFIX_BYTES
        assert got[-1] == 0
        assert rig.tunnel_drops(crowd[-1].tid) == {"unconfirmed": 210}
        await rig.pass_time(1)
        got = await flood_crowd(rig, crowd, 70_000)
        assert UNCONFIRMED_PREFIX_RATE - 1400 < sum(got) <= UNCONFIRMED_PREFIX_RATE + 1400
        rig.engine.confirm(crowd[0].tid, crowd[0].endpoint)
        assert await flood(rig, crowd[0], 420_000, inner=inner_of(1)) == 420_000
        # Another network has its own, and what was refused has not come out of what the tunnel has.
        datagram = crowd[-1].seal(from_far(b"moved"))
        crowd[-1].send(datagram, moved := rig.udp_socket("127.0.10.1"))
        await rig.settle()
        there = await flood(rig, crowd[-1], 420_000, moved, inner=inner_of(CROWD))
        assert within(there, UNCONFIRMED_BYTES + UNCONFIRMED_FACTOR * len(datagram))

    play(scenario)


def test_what_came_from_a_network_is_answered_beyond_what_it_gets(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        crowd = unconfirmed_crowd(rig)

        async def earn(far: Far) -> int:
            datagrams = [far.seal(from_far(bytes(1000))) for _ in range(30)]
            for datagram in datagrams:
                far.send(datagram)
            await rig.settle()
            return UNCONFIRMED_FACTOR * sum(map(len, datagrams))

        earned = await earn(crowd[0])
        assert await flood(rig, crowd[0], earned // 1400 * 1400, inner=inner_of(1)) == earned // 1400 * 1400
        got = await flood_crowd(rig, crowd, 294_000)
        assert UNCONFIRMED_PREFIX_BYTES - 1400 < sum(got) <= UNCONFIRMED_PREFIX_BYTES + 1400
        earned = await earn(crowd[-1])
        assert earned - 1400 < await flood(rig, crowd[-1], 140_000, inner=inner_of(CROWD)) <= earned + 1400

    play(scenario)


def test_a_returned_cookie_is_within_the_budget(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = unconfirmed(rig)
        left = UNCONFIRMED_BYTES - await flood(rig, far, 420_000)
        datagram = far.seal(COOKIE_PREFIX + bytes(COOKIE_BYTES - len(COOKIE_PREFIX)))
        far.send(datagram)
        await rig.settle()
        left += UNCONFIRMED_FACTOR * len(datagram)
        rig.engine.send_inner(far.tid, bytes(left - COOKIE_BYTES - OVERHEAD + 1))
        assert await sent(rig, far) == 0
        rig.engine.send_inner(far.tid, bytes(left - COOKIE_BYTES - OVERHEAD))
        assert await sent(rig, far) == left

    play(scenario)


def test_a_move_of_the_tunnel_leaves_its_endpoint_unconfirmed(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = unconfirmed(rig)
        rig.engine.move_tunnel(far.tid, IPv4Address(OTHER))
        assert not rig.stats(far).confirmed
        assert rig.stats(far).endpoint == far.endpoint

    play(scenario)


def test_a_question_goes_only_where_it_is_about(play: Play) -> None:
    """Who is there for a moment, and at home again when it is sent, would else learn its answer."""

    async def scenario(rig: Rig) -> None:
        far = rig.far()
        elsewhere = rig.udp_socket()
        far.send(far.seal(CONTROL), elsewhere)
        assert await rig.event(Roamed) == Roamed(far.tid, endpoint_of(elsewhere))
        far.send_packet(b"home again")
        assert await rig.event(Roamed) == Roamed(far.tid, far.endpoint)
        rig.engine.send_inner(far.tid, CONTROL, only=endpoint_of(elsewhere))
        rig.engine.send_inner(far.tid, OTHER_CONTROL, only=far.endpoint)
        assert await far.plaintext() == OTHER_CONTROL
        assert far.quiet()
        (tunnel,) = rig.engine.stats().tunnels
        assert tunnel.drops == {"moved_on": 1}

    play(scenario)
