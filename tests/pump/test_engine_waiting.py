"""What every engine does with packets that come before their tunnel, from either side."""

from ipaddress import IPv4Address

import pytest

from pqtun.pump.engine import Alive, Dead, Roamed, Wanted
from pqtun.pump.limits import (
    EARLY_PACKETS,
    EARLY_PACKETS_PER_TUNNEL,
    HELD_ADDRESSES,
    HELD_PACKETS_PER_PEER,
    HELD_SECONDS,
)
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import OTHER, OWN, PEER, Rig, delivered, from_far, to_far

WANTED = Wanted(IPv4Address(PEER))


def drop_held(rig: Rig, inner: str = PEER, *, unreachable: bool = False) -> None:
    rig.engine.drop_held(IPv4Address(inner), unreachable=unreachable)


def nothing_delivered(rig: Rig) -> bool:
    with pytest.raises(BlockingIOError):
        rig.programs.recv(1)
    return True


# -- from the programs: held until the handshake is done


def test_wanted_once_then_sent_in_order(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        for n in range(5):
            rig.write(to_far(b"%d" % n))
        await rig.settle()
        assert rig.events == [WANTED]
        stats = rig.engine.stats()
        assert (stats.held_addresses, stats.held_packets, stats.held_bytes) == (1, 5, 5 * 29)
        far = rig.far()
        rig.write(to_far(b"5"))
        assert [await far.plaintext() for _ in range(6)] == [p.cleared(to_far(b"%d" % n)) for n in range(6)]
        await rig.settle()
        assert rig.events == [WANTED]
        assert rig.engine.stats().held_addresses == 0

    play(scenario)


def test_a_first_packet_of_the_control_plane_goes_ahead_of_held_ones(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.write(to_far(b"held"))
        await rig.event(Wanted)
        far = rig.far(inner=None)
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), far.endpoint, first=b"hello")
        assert await far.plaintext() == b"hello"
        assert await far.plaintext() == p.cleared(to_far(b"held"))

    play(scenario)


def test_hold_reports_nothing(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.engine.hold(IPv4Address(PEER))
        rig.write(to_far(b"x"))
        rig.write(to_far(b"y", OTHER))
        await rig.settle()
        assert rig.events == [Wanted(IPv4Address(OTHER))]
        assert await rig.far().plaintext() == p.cleared(to_far(b"x"))

    play(scenario)


def test_dropped_packets_are_gone_and_wanted_comes_again(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        drop_held(rig)  # nothing there: nothing happens
        rig.write(to_far(b"1"))
        await rig.event(Wanted)
        drop_held(rig)
        assert rig.drops()["held_dropped"] == 1
        assert nothing_delivered(rig)
        rig.write(to_far(b"2"))
        assert await rig.event(Wanted) == WANTED
        assert await rig.far().plaintext() == p.cleared(to_far(b"2"))

    play(scenario)


def test_programs_learn_that_the_peer_is_unreachable(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        refused = p.ip(OWN, PEER, p.ICMP, p.icmp(3, 3, bytes(4) + to_far(b"")))
        asked = [p.tcp_packet(OWN, PEER), to_far(b"x" * 900), p.ip(OWN, PEER, p.ICMP, p.icmp(8, 0, bytes(4)))]
        rig.write(refused)
        for packet in asked:
            rig.write(packet)
        rig.write(to_far(b"other", OTHER))
        await rig.settle()
        drop_held(rig, unreachable=True)
        for packet in asked:
            answer = await rig.delivered()
            assert answer[12:20] == IPv4Address(PEER).packed + IPv4Address(OWN).packed
            assert answer[20:22] == b"\3\1"
            assert answer[28:] == packet[:548]
        assert nothing_delivered(rig)
        assert rig.drops()["held_dropped"] == 4
        assert rig.engine.stats().held_packets == 1

    play(scenario)


def test_held_packets_wait_30_seconds(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.write(to_far(b"old"))
        await rig.event(Wanted)
        await rig.pass_time(HELD_SECONDS - 1)
        rig.write(to_far(b"young"))
        await rig.settle()
        assert rig.engine.stats().held_packets == 2
        await rig.pass_time(1)
        assert rig.engine.stats().held_packets == 1
        assert rig.drops()["held_timeout"] == 1
        assert await rig.far().plaintext() == p.cleared(to_far(b"young"))
        assert rig.events == []

    play(scenario)


def test_held_packets_time_out_while_nothing_else_happens(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.write(to_far(b"old"))
        await rig.event(Wanted)
        rig.clock.now += HELD_SECONDS
        await rig.until(lambda: rig.drops().get("held_timeout") == 1, "the timer")

    play(scenario)


def test_bound_of_held_packets(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        for n in range(HELD_PACKETS_PER_PEER + 3):
            rig.write(to_far(b"%d" % n))
        await rig.settle()
        assert rig.engine.stats().held_packets == HELD_PACKETS_PER_PEER
        assert rig.drops()["held_full"] == 3
        far = rig.far()
        for n in range(HELD_PACKETS_PER_PEER):
            assert await far.plaintext() == p.cleared(to_far(b"%d" % n))
        await rig.settle()
        assert far.quiet()

    play(scenario)


def test_bound_of_held_addresses(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        for n in range(HELD_ADDRESSES):
            rig.engine.hold(IPv4Address(PEER) + n)
        rig.write(to_far(b"x", "10.43.200.1"))
        await rig.settle()
        rig.engine.hold(IPv4Address("10.43.200.2"))
        assert rig.drops()["held_addresses_full"] == 2
        assert rig.events == []  # nobody would be told what became of it
        assert rig.engine.stats().held_packets == 0
        drop_held(rig)
        rig.write(to_far(b"x", "10.43.200.1"))
        assert await rig.event(Wanted) == Wanted(IPv4Address("10.43.200.1"))

    play(scenario)


# -- from the network: packets that overtake the handshake


def test_packets_right_behind_a_handshake_are_not_lost(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        for n in range(5):
            far.send_packet(b"%d" % n)
        await rig.until(lambda: rig.engine.stats().early_packets == 5, "the packets")
        assert nothing_delivered(rig)
        assert rig.events == []
        rig.add(far)
        assert [await rig.delivered() for _ in range(5)] == [delivered(b"%d" % n) for n in range(5)]
        assert await rig.event(Alive) == Alive(far.tid)
        assert rig.engine.stats().early_packets == 0

    play(scenario)


def test_early_packets_tell_where_the_peer_is(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        # PQConnect's client sends the handshake from another port than its packets.
        far, handshake = rig.far(inner=None), rig.udp_socket()
        rig.write(to_far(b"held"))
        await rig.event(Wanted)
        far.send_packet(b"early")
        await rig.until(lambda: rig.engine.stats().early_packets == 1, "the packet")
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), handshake.getsockname())
        assert await far.plaintext() == p.cleared(to_far(b"held"))
        assert await rig.delivered() == delivered(b"early")
        assert await rig.event(Roamed) == Roamed(far.tid, far.endpoint)
        assert rig.events == [Alive(far.tid)]

    play(scenario)


def test_early_packets_wait_a_second(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        far.send_packet(b"0")
        await rig.until(lambda: rig.engine.stats().early_packets == 1, "the packet")
        await rig.pass_time(1)
        assert rig.drops()["unknown_tunnel"] == 1
        far.send_packet(b"1")
        await rig.until(lambda: rig.engine.stats().early_packets == 1, "the packet")
        rig.add(far)
        assert await rig.delivered() == delivered(b"1")
        assert nothing_delivered(rig)

    play(scenario)


def test_early_packets_time_out_while_nothing_else_happens(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.far(inner=None).send_packet(b"0")
        await rig.until(lambda: rig.engine.stats().early_packets == 1, "the packet")
        rig.clock.now += 1
        await rig.until(lambda: rig.drops().get("unknown_tunnel") == 1, "the timer")

    play(scenario)


def test_early_packets_that_are_forged_are_refused_later(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, stranger = rig.far(inner=None), rig.udp_socket()
        good = far.seal(from_far(b"good"))
        far.send(good[:-1] + b"x", stranger)
        far.send(good)
        far.send(good, stranger)
        await rig.until(lambda: rig.engine.stats().early_packets == 3, "the packets")
        rig.add(far)
        assert await rig.delivered() == delivered(b"good")
        assert nothing_delivered(rig)
        assert rig.tunnel_drops(far.tid) == {"authentication": 1, "replay": 1}
        assert rig.engine.stats().tunnels[0].endpoint == far.endpoint

    play(scenario)


def test_bounds_of_early_packets(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        one = rig.far(1, inner=None)
        for n in range(EARLY_PACKETS_PER_TUNNEL + 1):
            one.send_packet(b"%d" % n)
        await rig.until(lambda: rig.drops().get("early_full") == 1, "the bound of one tunnel")
        stranger = rig.udp_socket()
        for n in range(EARLY_PACKETS + 8):
            stranger.sendto(b"\2\0" + n.to_bytes(32, "big") + bytes(40), rig.address)
            if n % 50 == 0:
                await rig.settle()
        await rig.settle()
        assert rig.engine.stats().early_packets == EARLY_PACKETS
        newest = rig.far(2, inner=None)
        newest.send_packet(b"in")
        await rig.settle()
        rig.add(newest, OTHER)
        assert await rig.delivered() == delivered(b"in", OTHER)

    play(scenario)


def test_all_is_forgotten_at_the_end(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.far(inner=None).send_packet(b"early")
        rig.write(to_far(b"held"))
        await rig.settle()
        rig.engine.close()
        stats = rig.engine.stats()
        assert (stats.held_packets, stats.held_addresses, stats.early_packets) == (0, 0, 0)
        assert Dead not in map(type, rig.events)

    play(scenario)
