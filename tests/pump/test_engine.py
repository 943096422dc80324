"""What every engine does with the packets of established tunnels. The native engine is held to the same."""

import os
import random
import socket
from ipaddress import IPv4Address
from math import ceil

import pytest

from pqtun.protocol.constants import KEYS_PER_BLOCK, TUNNEL
from pqtun.protocol.limits import AHEAD_BUDGET, FORGED_PRICE, RECEIVE_WINDOW
from pqtun.pump.engine import Alive, Datagram, Dead, Failed, Roamed, Wanted
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import FAR_OWN, FAR_US, OTHER, OWN, PEER, Rig, delivered, from_far, is_open, to_far


def test_packets_go_both_ways(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.write(to_far(b"up"))
        assert await far.plaintext() == p.cleared(to_far(b"up"))
        far.send_packet(b"down")
        assert await rig.delivered() == delivered(b"down")
        await rig.settle()
        assert rig.events == [Alive(far.tid)]

    play(scenario)


def test_a_burst_keeps_its_order_both_ways(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        bodies = [b"%d" % n for n in range(150)]  # more than one turn of a reader handles
        for body in bodies:
            rig.write(to_far(body))
        assert [await far.plaintext() for _ in bodies] == [p.cleared(to_far(body)) for body in bodies]
        for body in bodies:
            far.send_packet(body)
        assert [await rig.delivered() for _ in bodies] == [delivered(body) for body in bodies]

    play(scenario)


def test_tunnels_are_told_apart(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        first, second = rig.far(1, PEER), rig.far(2, OTHER)
        rig.write(to_far(b"1"))
        rig.write(to_far(b"2", OTHER))
        assert await first.plaintext() == p.cleared(to_far(b"1"))
        assert await second.plaintext() == p.cleared(to_far(b"2", OTHER))
        second.send_packet(b"from second")
        assert await rig.delivered() == delivered(b"from second", OTHER)

    play(scenario)


def test_delivers_to_another_address_of_the_host(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        far.send_packet(b"x")
        assert await rig.delivered() == delivered(b"x", PEER, "192.0.2.9")
        rig.write(p.udp_packet("192.0.2.9", PEER, b"answer"))
        assert await far.plaintext() == p.cleared(p.udp_packet("192.0.2.9", PEER, b"answer"))

    play(scenario, deliver_to="192.0.2.9")


def test_large_packets(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        body = random.Random(1).randbytes(60_000)
        rig.write(to_far(body))
        assert await far.plaintext() == p.cleared(to_far(body))
        far.send_packet(body)
        assert await rig.delivered() == delivered(body)

    play(scenario)


# -- what is dropped


def test_packets_of_programs_that_go_nowhere(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for packet, reason in (
            (b"\x60" + bytes(39), "tun_not_ipv4"),
            (to_far(b"x")[:-1], "tun_length"),
            (p.udp_packet("192.0.2.1", PEER), "tun_source"),
            (p.udp_packet(OTHER, PEER), "tun_source"),
            (to_far(b"x", OWN), "tun_destination"),
            (to_far(b"x", "10.43.255.255"), "tun_destination"),
            (to_far(b"x", "224.0.0.251"), "tun_destination"),
            (to_far(b"x", "192.0.2.1"), "tun_destination"),
        ):
            before = rig.drops().get(reason, 0)
            rig.write(packet)
            await rig.until(lambda reason=reason, before=before: rig.drops().get(reason, 0) > before, reason)  # type: ignore[misc]
        await rig.settle()
        assert far.quiet()
        assert rig.events == []

    play(scenario)


def test_inner_packets_that_are_refused(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        source_routed = p.ip(FAR_OWN, FAR_US, 50, b"", options=bytes([131, 7, 4, 192, 0, 2, 1, 0]))
        for plaintext in (b"", b"\x60" + bytes(39), source_routed, from_far(b"x")[:-1]):
            far.send(far.seal(plaintext))
        await rig.settle()
        assert rig.tunnel_drops(far.tid) == {
            "inner_short": 1,
            "inner_not_ipv4": 1,
            "inner_source_route": 1,
            "inner_total_length": 1,
        }
        far.send_packet(b"good")
        assert await rig.delivered() == delivered(b"good")

    play(scenario)


def test_an_inner_destination_is_never_believed(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for destination in ("192.0.2.66", "10.43.0.9", "224.0.0.1", "255.255.255.255", "127.0.0.1"):
            far.send(far.seal(p.udp_packet("198.51.100.1", destination, b"x")))
            assert await rig.delivered() == delivered(b"x")

    play(scenario)


def test_forged_and_replayed_packets_change_nothing(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, stranger = rig.far(), rig.udp_socket()
        far.send_packet(b"first")
        await rig.delivered()
        rig.clock.now += 5
        await rig.settle()
        before = rig.engine.stats().tunnels
        good = far.seal(from_far(b"second"))
        far.send(good[:-1] + bytes([good[-1] ^ 1]), stranger)
        far.send(good[:40] + bytes(len(good) - 40), stranger)
        far.send(good[:34] + b"\0\1" + good[36:], stranger)  # another epoch
        far.send(good[:56], stranger)
        await rig.settle()
        after = rig.engine.stats().tunnels
        assert after[0].drops == {"authentication": 4}
        assert after[0].endpoint == before[0].endpoint == far.endpoint
        assert (after[0].last_received, after[0].recv_epoch) == (before[0].last_received, 0)
        assert rig.events == [Alive(far.tid)]
        far.send(good)
        assert await rig.delivered() == delivered(b"second")
        far.send(good, stranger)
        await rig.settle()
        assert rig.tunnel_drops(far.tid) == {"authentication": 4, "replay": 1}
        assert rig.engine.stats().tunnels[0].endpoint == far.endpoint

    play(scenario)


def test_forged_packets_far_ahead_cost_a_bounded_time(play: Play) -> None:
    """Each of them has all blocks of the window derived for nothing."""

    async def scenario(rig: Rig) -> None:
        far = rig.far()
        near = far.seal(from_far(b"0"))
        for _ in range(RECEIVE_WINDOW - 2):
            far.seal(b"")
        ahead = far.seal(from_far(b"ahead"))
        forged = ahead[:-1] + bytes([ahead[-1] ^ 1])
        for number in range(200):
            far.send(forged)
            if number % 50 == 0:
                await rig.settle()
        await rig.settle()
        tried = ceil(AHEAD_BUDGET / ((RECEIVE_WINDOW - 1) // KEYS_PER_BLOCK * FORGED_PRICE))
        assert rig.tunnel_drops(far.tid) == {"authentication": tried, "ahead_budget": 200 - tried}
        far.send(ahead)
        far.send(near)
        assert await rig.delivered() == delivered(b"0")
        await rig.pass_time(1.0)
        far.send(ahead)
        assert await rig.delivered() == delivered(b"ahead")
        assert rig.tunnel_drops(far.tid)["ahead_budget"] == 201 - tried

    play(scenario)


def test_ten_thousand_random_datagrams(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, stranger, rng = rig.far(), rig.udp_socket(), random.Random(2)
        accepted = 0
        for n in range(10_000):
            start = rng.choice([b"", TUNNEL, TUNNEL + far.tid, TUNNEL + bytes(32), b"\1\0"])
            stranger.sendto(start + rng.randbytes(rng.randrange(200)), rig.address)
            if n % 100 == 99:
                far.send_packet(b"%d" % n)
                assert await rig.delivered() == delivered(b"%d" % n)
                accepted += 1
        await rig.settle()
        stats = rig.engine.stats()
        assert accepted == stats.tunnels[0].packets_received == 100
        assert stats.early_packets <= 256
        assert set(stats.drops) <= {"early_full", "datagram_unknown", "tunnel_short", "tun_not_ipv4"}
        assert "internal_error" not in stats.tunnels[0].drops

    play(scenario)


def test_what_cannot_be_sent_is_counted(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        # 0.0.0.0/8 is no destination, and broadcast needs SO_BROADCAST: the kernel refuses both at once.
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), ("255.255.255.255", 9))
        rig.write(to_far(b"lost"))
        await rig.until(lambda: rig.tunnel_drops(far.tid), "a drop")
        (reason,) = rig.tunnel_drops(far.tid)
        assert reason in ("send_eacces", "send_enetunreach")
        rig.engine.send_datagram(b"\3\0", ("255.255.255.255", 9))
        assert rig.drops()[reason] == 1
        far.send_packet(b"alive")
        assert await rig.delivered() == delivered(b"alive")
        stats = rig.engine.stats().tunnels[0]
        assert (stats.packets_sent, stats.bytes_sent, stats.last_sent) == (0, 0, None)

    play(scenario)


# -- where the peer is


def test_the_newest_packet_tells_where_the_peer_is(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, moved = rig.far(), rig.udp_socket()
        delayed, delayed_too = far.seal(from_far(b"0")), far.seal(from_far(b"1"))
        far.send(far.seal(from_far(b"2")), moved)
        assert await rig.delivered() == delivered(b"2")
        assert await rig.event(Alive) == Alive(far.tid)
        assert await rig.event(Roamed) == Roamed(far.tid, moved.getsockname())
        far.send(delayed)  # older: delivered, and no sign of where the peer is
        assert await rig.delivered() == delivered(b"0")
        rig.write(to_far(b"x"))
        assert far.tunnel.open(await rig.read(moved), rig.clock()) == p.cleared(to_far(b"x"))
        far.send(delayed_too, rig.udp_socket())
        assert await rig.delivered() == delivered(b"1")
        far.send_packet(b"3")
        assert await rig.delivered() == delivered(b"3")
        assert await rig.event(Roamed) == Roamed(far.tid, far.endpoint)
        assert rig.events == []

    play(scenario)


def test_a_new_epoch_is_newer_than_any_counter(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, moved = rig.far(), rig.udp_socket()
        for _ in range(300):  # so that the low byte of the counter has wrapped
            old = far.seal(from_far(b"old"))
        far.send(old)
        assert await rig.delivered() == delivered(b"old")
        await rig.pass_time(31)
        far.send(far.seal(from_far(b"new")), moved)
        assert await rig.delivered() == delivered(b"new")
        assert (await rig.event(Roamed)).endpoint == moved.getsockname()
        assert rig.engine.stats().tunnels[0].recv_epoch == 1

    play(scenario)


# -- tunnels come and go


def test_a_tunnel_dies_of_silence(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        await rig.pass_time(119)
        far.send_packet(b"alive")
        assert await rig.delivered() == delivered(b"alive")
        await rig.pass_time(2)
        # That packet was of epoch 3, which came up at 119 s: it lives for another 118 s.
        await rig.pass_time(117.5)
        assert Dead(far.tid) not in rig.events
        await rig.pass_time(1)
        assert await rig.event(Dead) == Dead(far.tid)
        assert rig.engine.stats().tunnels == []
        rig.write(to_far(b"again"))
        assert await rig.event(Wanted) == Wanted(IPv4Address(PEER))
        await rig.settle()
        assert rig.events == [Alive(far.tid)]

    play(scenario)


def test_a_tunnel_dies_without_a_packet_to_notice_it(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.clock.now += 121  # as after a sleep of the machine: no packet comes
        assert await rig.event(Dead) == Dead(far.tid)

    play(scenario)


def test_removed_tunnels_neither_send_nor_receive(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        far.send_packet(b"1")
        await rig.delivered()
        far.send(far.seal(b"refused"))
        await rig.until(lambda: rig.tunnel_drops(far.tid), "the drop")
        rig.engine.remove_tunnel(far.tid)
        rig.engine.remove_tunnel(far.tid)
        far.send_packet(b"2")
        rig.write(to_far(b"3"))
        assert await rig.event(Wanted) == Wanted(IPv4Address(PEER))
        await rig.settle()
        assert far.quiet()
        assert rig.drops()["inner_short"] == 1  # counters outlive the tunnel
        assert rig.events == [Alive(far.tid)]
        with pytest.raises(BlockingIOError):
            rig.programs.recv(9)

    play(scenario)


def test_the_newest_tunnel_of_an_address_is_sent_through(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        old, new = rig.far(1), rig.far(2)
        rig.write(to_far(b"x"))
        assert await new.plaintext() == p.cleared(to_far(b"x"))
        old.send_packet(b"still heard")
        assert await rig.delivered() == delivered(b"still heard")
        rig.write(to_far(b"y"))
        assert await new.plaintext() == p.cleared(to_far(b"y"))
        rig.engine.remove_tunnel(new.tid)
        rig.write(to_far(b"z"))
        assert await old.plaintext() == p.cleared(to_far(b"z"))
        rig.engine.remove_tunnel(old.tid)
        rig.write(to_far(b"none left"))
        await rig.event(Wanted)

    play(scenario)


def test_add_tunnel_refuses_mistakes(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        with pytest.raises(ValueError, match="exists"):
            rig.add(far, OTHER)
        for inner in (OWN, "10.43.0.0", "10.43.255.255", "192.0.2.1", "224.0.0.1"):
            with pytest.raises(ValueError, match="peer"):
                rig.far(2, inner)
        assert len(rig.engine.stats().tunnels) == 1
        rig.engine.close()
        with pytest.raises(ValueError, match="closed"):
            rig.far(3, OTHER)

    play(scenario)


# -- counters and the end


def test_stats(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        (stats,) = rig.engine.stats().tunnels
        assert (stats.tid, stats.inner, stats.endpoint) == (far.tid, IPv4Address(PEER), far.endpoint)
        assert (stats.created, stats.last_sent, stats.last_received) == (1000.0, None, None)
        rig.clock.now = 1007.0
        rig.write(to_far(b"up"))
        await far.plaintext()
        rig.clock.now = 1009.0
        far.send_packet(b"down!")
        await rig.delivered()
        (stats,) = rig.engine.stats().tunnels
        assert (stats.packets_sent, stats.bytes_sent, stats.last_sent) == (1, 30, 1007.0)
        assert (stats.packets_received, stats.bytes_received, stats.last_received) == (1, 33, 1009.0)
        assert (stats.send_epoch, stats.recv_epoch, stats.drops) == (0, 0, {})
        await rig.pass_time(22)  # 1031: the second epoch
        rig.write(to_far(b"up"))
        assert await far.plaintext() == p.cleared(to_far(b"up"))
        assert rig.engine.stats().tunnels[0].send_epoch == 1

    play(scenario)


def test_close_ends_everything(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        inodes = {fd: os.fstat(fd).st_ino for fd in (rig.tun_fd, rig.udp_fd)}
        far = rig.far()
        far.send_packet(b"1")
        await rig.delivered()
        rig.engine.close()
        rig.engine.close()
        assert not any(is_open(fd, inode) for fd, inode in inodes.items())
        assert rig.engine.stats().tunnels == []
        assert rig.programs.recv(9) == b""
        rig.engine.send_inner(far.tid, b"x")
        rig.engine.send_datagram(b"\3\0", far.endpoint)
        rig.engine.remove_tunnel(far.tid)
        rig.engine.drop_held(IPv4Address(PEER), unreachable=True)

    play(scenario)


def test_a_device_that_is_gone_is_reported_once(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.programs.shutdown(socket.SHUT_RDWR)
        failed = await rig.event(Failed)
        assert failed.reason
        far.send(b"\3\0")  # the control plane still hears
        await rig.event(Datagram)
        assert rig.events == []

    play(scenario)
