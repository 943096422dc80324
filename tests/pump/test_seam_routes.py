"""What every engine does where several tunnels stand for an address, and where one is held although it has a tunnel."""

from ipaddress import IPv4Address
from typing import Any

import pytest

from pqtun.pump.engine import Alive, Dead, Wanted
from pqtun.pump.limits import HELD_ADDRESSES, HELD_PACKETS_PER_PEER
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import OTHER, OWN, PEER, Far, Rig, delivered, from_far, to_far

WANTED = Wanted(IPv4Address(PEER))
THIRD = "10.43.0.9"


def add(rig: Rig, number: int, inner: str = PEER, **how: Any) -> Far:
    far = rig.far(number, None)
    rig.engine.add_tunnel(far.ours, IPv4Address(inner), far.endpoint, **how)
    return far


def hold(rig: Rig, inner: str = PEER, *, report: bool = False) -> None:
    rig.engine.hold(IPv4Address(inner), report=report)


def move(rig: Rig, far: Far, inner: str = PEER) -> None:
    rig.engine.move_tunnel(far.tid, IPv4Address(inner))


async def goes_to(rig: Rig, far: Far, inner: str = PEER) -> None:
    """What a program sends to ``inner`` comes out of this tunnel next."""
    packet = to_far(b"to %d" % far.tid[-1], inner)
    rig.write(packet)
    assert await far.plaintext() == p.cleared(packet)


# -- what add_tunnel does before it returns


def test_all_is_sent_and_opened_when_add_tunnel_returns(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(1, None)
        far.send_packet(b"early")
        rig.write(to_far(b"held"))
        await rig.settle()
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), far.endpoint, first=b"first")
        rig.engine.remove_tunnel(far.tid)
        assert await rig.delivered() == delivered(b"early")
        assert await far.plaintext() == b"first"
        assert await far.plaintext() == p.cleared(to_far(b"held"))
        await rig.settle()
        assert rig.events == [WANTED, Alive(far.tid)]  # and no Dead

    play(scenario)


def test_what_move_tunnel_sends_is_sent_when_it_returns(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1, standby=True)
        rig.write(to_far(b"held"))
        await rig.settle()
        move(rig, far)
        rig.engine.remove_tunnel(far.tid)
        assert await far.plaintext() == p.cleared(to_far(b"held"))

    play(scenario)


# -- epochs


def test_a_tunnel_begins_at_the_epoch_that_its_roots_are_of(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = Far(rig, 1, epoch=700)
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), far.endpoint, epoch=700)
        assert (rig.stats(far).send_epoch, rig.stats(far).recv_epoch) == (700, 700)
        rig.write(to_far(b"up"))
        datagram = await far.datagram()
        assert datagram[34:40] == (700).to_bytes(2, "big") + bytes(4)
        assert far.tunnel.open(datagram, rig.clock()) == p.cleared(to_far(b"up"))
        far.send_packet(b"down")
        assert await rig.delivered() == delivered(b"down")
        await rig.pass_time(31)
        await goes_to(rig, far)
        assert rig.stats(far).send_epoch == 701

    play(scenario)


def test_the_last_epoch_ends_a_tunnel(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = Far(rig, 1, epoch=0xFFFF)
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), far.endpoint, epoch=0xFFFF)
        await goes_to(rig, far)
        await rig.pass_time(31)
        rig.write(to_far(b"too late"))
        await rig.settle()
        assert far.quiet()
        assert rig.tunnel_drops(far.tid) == {"epoch_end": 1}

    play(scenario)


# -- standby


def test_a_standby_receives_and_is_sent_through_by_nobody_but_the_control_plane(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        old = add(rig, 1)
        new = add(rig, 2, standby=True, first=b"first")
        assert await new.plaintext() == b"first"
        await goes_to(rig, old)
        new.send_packet(b"heard")
        assert await rig.delivered() == delivered(b"heard")
        assert await rig.event(Alive) == Alive(new.tid)
        rig.engine.send_inner(new.tid, b"control")
        assert await new.plaintext() == b"control"
        await goes_to(rig, old)
        assert new.quiet()

    play(scenario)


def test_what_came_early_for_a_standby_is_opened(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(1, None)
        far.send_packet(b"early")
        await rig.until(lambda: rig.engine.stats().early_packets == 1, "the packet")
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), far.endpoint, standby=True)
        assert await rig.delivered() == delivered(b"early")

    play(scenario)


def test_a_standby_alone_is_no_tunnel_for_programs(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.write(to_far(b"held before"))
        await rig.event(Wanted)
        far = add(rig, 1, standby=True)
        rig.write(to_far(b"held after"))
        await rig.settle()
        assert far.quiet()
        assert rig.events == []  # they are held, as before
        assert rig.engine.stats().held_packets == 2
        rig.engine.drop_held(IPv4Address(PEER), unreachable=False)
        rig.write(to_far(b"again"))
        assert await rig.event(Wanted) == WANTED
        move(rig, far)
        assert await far.plaintext() == p.cleared(to_far(b"again"))

    play(scenario)


def test_a_standby_does_not_follow_a_tunnel_that_goes(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        oldest, standby, newest = add(rig, 1), add(rig, 2, standby=True), add(rig, 3)
        await goes_to(rig, newest)
        rig.engine.remove_tunnel(newest.tid)
        await goes_to(rig, oldest)
        rig.engine.remove_tunnel(oldest.tid)
        rig.write(to_far(b"x"))
        assert await rig.event(Wanted) == WANTED
        await rig.settle()
        assert standby.quiet()

    play(scenario)


# -- tunnels that move


def test_a_standby_becomes_the_tunnel_that_is_sent_through(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        old, new = add(rig, 1), add(rig, 2, standby=True)
        await goes_to(rig, old)
        move(rig, new)
        await goes_to(rig, new)
        old.send_packet(b"still heard")
        assert await rig.delivered() == delivered(b"still heard")
        move(rig, old)  # so does an older one
        await goes_to(rig, old)
        rig.engine.remove_tunnel(old.tid)
        await goes_to(rig, new)

    play(scenario)


def test_held_packets_go_first_through_a_tunnel_that_moves(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1, standby=True)
        for n in range(3):
            rig.write(to_far(b"%d" % n))
        await rig.settle()
        assert rig.events == [WANTED]
        move(rig, far)
        rig.write(to_far(b"3"))
        assert [await far.plaintext() for _ in range(4)] == [p.cleared(to_far(b"%d" % n)) for n in range(4)]
        assert rig.engine.stats().held_addresses == 0

    play(scenario)


def test_a_tunnel_moves_to_another_address(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, older = add(rig, 1), add(rig, 2, OTHER)
        rig.write(to_far(b"held", THIRD))
        await rig.event(Wanted)
        move(rig, far, THIRD)
        assert await far.plaintext() == p.cleared(to_far(b"held", THIRD))
        assert rig.stats(far).inner == IPv4Address(THIRD)
        far.send_packet(b"from there")
        assert await rig.delivered() == delivered(b"from there", THIRD)
        move(rig, far, OTHER)
        await goes_to(rig, far, OTHER)
        rig.write(to_far(b"nobody", THIRD))
        assert await rig.event(Wanted) == Wanted(IPv4Address(THIRD))
        rig.write(to_far(b"nobody either"))
        assert await rig.event(Wanted) == WANTED
        rig.engine.remove_tunnel(far.tid)
        await goes_to(rig, older, OTHER)

    play(scenario)


def test_a_move_does_not_touch_what_is_held_for_the_address_that_is_left(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1)
        hold(rig)
        rig.write(to_far(b"held"))
        await rig.settle()
        move(rig, far, OTHER)
        await rig.settle()
        assert far.quiet()
        assert rig.engine.stats().held_packets == 1
        move(rig, far)
        assert await far.plaintext() == p.cleared(to_far(b"held"))

    play(scenario)


def test_move_tunnel_refuses_mistakes(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1)
        for inner in (OWN, "10.43.0.0", "10.43.255.255", "192.0.2.1"):
            with pytest.raises(ValueError, match="peer"):
                move(rig, far, inner)
        with pytest.raises(ValueError, match="no such tunnel"):
            rig.engine.move_tunnel(bytes(32), IPv4Address(OTHER))
        await goes_to(rig, far)
        assert rig.stats(far).inner == IPv4Address(PEER)
        rig.engine.close()
        with pytest.raises(ValueError, match="no such tunnel"):
            move(rig, far)

    play(scenario)


def test_a_tunnel_that_dies_leaves_its_address_to_the_next_older_one(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        silent = add(rig, 1, OTHER)
        await rig.pass_time(60)
        young = rig.far(2)
        move(rig, silent)
        await goes_to(rig, silent)
        await rig.pass_time(61)
        assert await rig.event(Dead) == Dead(silent.tid)
        await goes_to(rig, young)

    play(scenario)


# -- holding where a tunnel is


def test_hold_stops_programs_only(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1)
        hold(rig)
        rig.write(to_far(b"held"))
        rig.engine.send_inner(far.tid, b"control")
        assert await far.plaintext() == b"control"
        far.send(far.seal(from_far(b"down")))
        assert await rig.delivered() == delivered(b"down")
        await rig.settle()
        assert far.quiet()
        assert rig.events == [Alive(far.tid)]
        stats = rig.engine.stats()
        assert (stats.held_addresses, stats.held_packets) == (1, 1)

    play(scenario)


def test_holding_ends_with_a_new_tunnel(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        old = add(rig, 1)
        hold(rig)
        rig.write(to_far(b"held"))
        await rig.settle()
        standby = add(rig, 2, standby=True)
        await rig.settle()
        assert rig.engine.stats().held_packets == 1  # not with a standby
        new = add(rig, 3)
        assert await new.plaintext() == p.cleared(to_far(b"held"))
        await goes_to(rig, new)
        assert old.quiet()
        assert standby.quiet()

    play(scenario)


def test_holding_ends_with_move_tunnel(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1)
        hold(rig)
        rig.write(to_far(b"held"))
        await rig.settle()
        move(rig, far)
        assert await far.plaintext() == p.cleared(to_far(b"held"))
        await goes_to(rig, far)

    play(scenario)


def test_holding_ends_with_drop_held(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1)
        hold(rig)
        rig.write(to_far(b"held"))
        await rig.settle()
        rig.engine.drop_held(IPv4Address(PEER), unreachable=False)
        await goes_to(rig, far)
        assert rig.drops()["held_dropped"] == 1
        assert rig.events == []

    play(scenario)


def test_holding_outlasts_the_tunnel(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1)
        hold(rig)
        rig.write(to_far(b"held"))
        await rig.settle()
        rig.engine.remove_tunnel(far.tid)
        rig.write(to_far(b"held too"))
        await rig.settle()
        assert rig.events == []
        assert rig.engine.stats().held_packets == 2

    play(scenario)


@pytest.mark.parametrize("tunnel", [True, False])
def test_report_has_the_next_packet_reported_once(play: Play, tunnel: bool) -> None:
    async def scenario(rig: Rig) -> None:
        if tunnel:
            add(rig, 1)
        for held in (1, 3, 5):
            hold(rig, report=True)
            await rig.settle()
            assert rig.events == []
            rig.write(to_far(b"x"))
            rig.write(to_far(b"y"))
            await rig.settle()
            assert rig.events == [WANTED]
            assert rig.engine.stats().held_packets == held + 1
            rig.events.clear()
        hold(rig, report=True)
        hold(rig)  # taken back
        rig.write(to_far(b"z"))
        await rig.settle()
        assert rig.events == []

    play(scenario)


def test_what_is_reported_may_itself_be_refused(play: Play) -> None:
    """Who waits for the report is told even if there is no room for the packet."""

    async def scenario(rig: Rig) -> None:
        hold(rig)
        for _ in range(HELD_PACKETS_PER_PEER + 1):
            rig.write(to_far(b"x"))
        await rig.settle()
        assert rig.drops()["held_full"] == 1
        hold(rig, report=True)
        rig.write(to_far(b"x"))
        assert await rig.event(Wanted) == WANTED
        assert rig.drops()["held_full"] == 2

    play(scenario)


def test_where_too_many_addresses_are_held_a_tunnel_goes_on(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = add(rig, 1)
        for number in range(HELD_ADDRESSES):
            hold(rig, f"10.43.{1 + number // 200}.{number % 200}")
        hold(rig)
        assert rig.drops()["held_addresses_full"] == 1
        assert rig.engine.stats().held_addresses == HELD_ADDRESSES
        await goes_to(rig, far)

    play(scenario)
