"""What every engine does with packets that are larger than the path to a peer takes."""

import struct
from ipaddress import IPv4Address

import pytest

from pqtun.pump.engine import Wanted
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import (
    FAR_OWN,
    FAR_OWN_6,
    FAR_US,
    FAR_US_6,
    OTHER,
    OWN,
    OWN6,
    OWN_6,
    PEER,
    PEER_6,
    Rig,
    delivered,
    to_far,
)

MTU = 1300
SYN, SYN_ACK, ACK = 2, 18, 16


def sized(size: int, destination: str = PEER) -> bytes:
    """An IPv4 packet of that many bytes."""
    return to_far(bytes(size - 28), destination)


def sized6(size: int) -> bytes:
    return p.udp_packet(OWN_6, PEER_6, bytes(size - 48))


def tcp(source: str, destination: str, mss: int, flags: int = SYN) -> bytes:
    """A segment with a maximum segment size behind two other options."""
    segment = struct.pack("!HHIIBBHHH", 1000, 80, 1, 0, 0x70, flags, 1024, 0, 0) + b"\1\1\4\2" + b"\2\4" + _word(mss)
    value = p.checksum(p.pseudo(source, destination, p.TCP, len(segment)) + segment)
    segment = segment[:16] + _word(value) + segment[18:]
    return (p.ip6 if ":" in source else p.ip)(source, destination, p.TCP, segment)


def _word(value: int) -> bytes:
    return value.to_bytes(2, "big")


def set_mtu(rig: Rig, tid: bytes, mtu: int = MTU) -> None:
    rig.engine.set_mtu(tid, mtu)


def test_nothing_is_changed_where_nobody_said_an_mtu(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        assert rig.stats(far).mtu is None
        for packet in (sized(9000), tcp(OWN, PEER, 8960)):
            rig.write(packet)
            assert await far.plaintext() == p.cleared(packet)
        far.send(far.seal(p.cleared(tcp(FAR_OWN, FAR_US, 8960, SYN_ACK))))
        assert await rig.delivered() == tcp(PEER, OWN, 8960, SYN_ACK)

    play(scenario)


def test_programs_that_send_too_much_are_told(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid)
        assert rig.stats(far).mtu == MTU
        rig.write(sized(MTU))
        assert await far.plaintext() == p.cleared(sized(MTU))
        rig.write(sized(MTU + 1))
        answer = await rig.delivered()
        assert answer[12:20] == IPv4Address(PEER).packed + IPv4Address(OWN).packed
        assert answer[20:22] == b"\3\4"
        assert answer[24:28] == b"\0\0" + _word(MTU)  # RFC 1191 section 4
        assert answer[28:] == sized(MTU + 1)[:548]
        assert p.valid(answer[:20])
        assert p.valid(answer[20:])
        await rig.settle()
        assert far.quiet()
        assert rig.tunnel_drops(far.tid) == {"tun_too_big": 1}
        assert rig.stats(far).packets_sent == 1

    play(scenario)


def test_programs_that_send_too_much_ipv6_are_told(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid)
        rig.write(sized6(MTU))
        assert await far.plaintext() == p.cleared(sized6(MTU))
        rig.write(sized6(MTU + 1))
        answer = await rig.delivered()
        message = p.icmp6(PEER_6, OWN_6, 2, 0, MTU.to_bytes(4, "big") + sized6(MTU + 1)[: 1280 - 48])
        assert answer == p.ip6(PEER_6, OWN_6, p.ICMP6, message)
        await rig.settle()
        assert far.quiet()
        assert rig.tunnel_drops(far.tid) == {"tun_too_big": 1}

    play(scenario, own6=OWN6)


def test_ipv6_has_1280_bytes_at_least(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid, 600)
        rig.write(sized6(1280))
        assert await far.plaintext() == p.cleared(sized6(1280))
        rig.write(sized6(1281))
        answer = await rig.delivered()
        assert (answer[6], answer[40], answer[44:48]) == (p.ICMP6, 2, (1280).to_bytes(4, "big"))
        rig.write(tcp(OWN_6, PEER_6, 8940))
        assert await far.plaintext() == p.cleared(tcp(OWN_6, PEER_6, 1280 - 60))

    play(scenario, own6=OWN6)


def test_no_icmp_error_about_an_icmp_error_or_a_later_fragment(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid)
        _, later = p.fragments(sized(1400 + 1352 + 8), 1400)[:2]
        assert int.from_bytes(later[2:4], "big") > MTU
        rig.write(later)
        rig.write(p.ip(OWN, PEER, p.ICMP, p.icmp(3, 1, bytes(4) + sized(1400))))
        await rig.settle()
        assert rig.tunnel_drops(far.tid) == {"tun_too_big": 2}
        with pytest.raises(BlockingIOError):
            rig.programs.recv(1)
        assert far.quiet()

    play(scenario)


def test_the_least_mtu(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid, 100)
        assert rig.stats(far).mtu == 576
        rig.write(sized(576))
        assert await far.plaintext() == p.cleared(sized(576))
        rig.write(sized(577))
        assert (await rig.delivered())[26:28] == _word(576)

    play(scenario)


def test_an_mtu_is_that_of_one_tunnel_and_may_change(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, other = rig.far(1), rig.far(2, OTHER)
        set_mtu(rig, far.tid)
        set_mtu(rig, bytes(32))  # unknown: nothing happens
        rig.write(sized(1400, OTHER))
        assert await other.plaintext() == p.cleared(sized(1400, OTHER))
        set_mtu(rig, far.tid, 1400)
        rig.write(sized(1400))
        assert await far.plaintext() == p.cleared(sized(1400))
        rig.engine.move_tunnel(far.tid, IPv4Address(OTHER))  # it goes with the tunnel
        rig.write(sized(1401, OTHER))
        assert (await rig.delivered())[26:28] == _word(1400)

    play(scenario)


def test_the_control_plane_sends_what_it_likes(play: Play) -> None:
    """It has to find out what the path takes."""

    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid)
        rig.engine.send_inner(far.tid, sized(1400))
        assert await far.plaintext() == sized(1400)
        far.send_packet(bytes(1400))  # what comes may have any size
        assert await rig.delivered() == delivered(bytes(1400))

    play(scenario)


def test_held_packets_meet_the_mtu_of_the_tunnel_that_they_go_through(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), far.endpoint, standby=True)
        set_mtu(rig, far.tid)
        for packet in (sized(1400), sized(200), tcp(OWN, PEER, 1460)):
            rig.write(packet)
        await rig.event(Wanted)
        await rig.settle()
        rig.engine.move_tunnel(far.tid, IPv4Address(PEER))
        assert (await rig.delivered())[20:22] == b"\3\4"
        assert await far.plaintext() == p.cleared(sized(200))
        assert await far.plaintext() == p.cleared(tcp(OWN, PEER, MTU - 40))

    play(scenario)


# -- TCP


@pytest.mark.parametrize("flags", [SYN, SYN_ACK])
def test_connections_that_begin_learn_of_it_from_both_sides(play: Play, flags: int) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid)
        rig.write(tcp(OWN, PEER, 1460, flags))
        assert await far.plaintext() == p.cleared(tcp(OWN, PEER, MTU - 40, flags))
        far.send(far.seal(p.cleared(tcp(FAR_OWN, FAR_US, 1460, flags))))
        assert await rig.delivered() == tcp(PEER, OWN, MTU - 40, flags)
        rig.write(tcp(OWN_6, PEER_6, 1440, flags))
        assert await far.plaintext() == p.cleared(tcp(OWN_6, PEER_6, MTU - 60, flags))
        far.send(far.seal(p.cleared(tcp(FAR_OWN_6, FAR_US_6, 1440, flags))))
        assert await rig.delivered() == tcp(PEER_6, OWN_6, MTU - 60, flags)

    play(scenario, own6=OWN6)


def test_smaller_segments_and_other_packets_stay_as_they_are(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        set_mtu(rig, far.tid)
        for mss, flags in ((MTU - 40, SYN), (536, SYN), (1460, ACK), (0, SYN)):
            rig.write(tcp(OWN, PEER, mss, flags))
            assert await far.plaintext() == p.cleared(tcp(OWN, PEER, mss, flags))
            far.send(far.seal(p.cleared(tcp(FAR_OWN, FAR_US, mss, flags))))
            assert await rig.delivered() == tcp(PEER, OWN, mss, flags)

    play(scenario)
