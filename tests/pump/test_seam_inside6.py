"""What every engine does with IPv6 packets inside tunnels, between pqtun ends."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from pqtun.protocol import private6
from pqtun.pump.engine import Alive, Wanted
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import (
    FAR_OWN_6,
    FAR_US_6,
    OTHER,
    OTHER_6,
    OWN,
    OWN6,
    OWN_6,
    PEER,
    PEER_6,
    SUBNET,
    Rig,
    delivered,
    from_far,
    to_far,
)

OUR_PREFIX = private6.prefix(SUBNET)


def icmp6(source: str, destination: str, kind: int, rest: bytes, code: int = 0) -> bytes:
    return p.ip6(source, destination, p.ICMP6, p.icmp6(source, destination, kind, code, rest))


def to_far6(data: bytes, destination: str = PEER_6) -> bytes:
    return p.udp_packet(OWN_6, destination, data)


def from_far6(data: bytes) -> bytes:
    return p.cleared(p.udp_packet(FAR_OWN_6, FAR_US_6, data))


def delivered6(data: bytes, peer: str = PEER_6) -> bytes:
    return p.udp_packet(peer, OWN_6, data)


def beside(inner: str) -> str:
    return str(private6.address6(OUR_PREFIX, IPv4Address(inner)))


def test_both_versions_go_both_ways(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.write(to_far6(b"up"))
        assert await far.plaintext() == p.cleared(to_far6(b"up"))
        far.send(far.seal(from_far6(b"down")))
        assert await rig.delivered() == delivered6(b"down")
        rig.write(to_far(b"up"))
        assert await far.plaintext() == p.cleared(to_far(b"up"))
        far.send_packet(b"down")
        assert await rig.delivered() == delivered(b"down")
        await rig.settle()
        assert rig.events == [Alive(far.tid)]
        stats = rig.stats(far)
        assert (stats.packets_sent, stats.packets_received, stats.drops) == (2, 2, {})
        assert stats.last_used == 1000.0

    play(scenario, own6=OWN6)


@pytest.mark.parametrize("size", [0, 1, 1232, 60_000])
def test_sizes(play: Play, size: int) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.write(to_far6(bytes(size)))
        assert await far.plaintext() == p.cleared(to_far6(bytes(size)))
        far.send(far.seal(from_far6(b"x" * size) + bytes(7)))  # what is behind the packet is padding
        assert await rig.delivered() == delivered6(b"x" * size)

    play(scenario, own6=OWN6)


def test_a_source_and_a_destination_are_never_believed(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        echo = icmp6(FAR_OWN_6, FAR_US_6, 128, b"\0\1\0\1ping")
        for source, destination in ((FAR_OWN_6, FAR_US_6), (OWN_6, OTHER_6)):
            packet = p.ip6(source, destination, p.ICMP6, echo[40:])
            far.send(far.seal(packet))
            assert await rig.delivered() == icmp6(PEER_6, OWN_6, 128, b"\0\1\0\1ping")

    play(scenario, own6=OWN6)


def test_the_first_packet_is_reported_by_the_ipv4_address(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        rig.write(to_far6(b"0"))
        rig.write(to_far(b"1"))
        await rig.settle()
        assert rig.events == [Wanted(IPv4Address(PEER))]
        assert rig.engine.stats().held_addresses == 1
        far = rig.far()
        assert await far.plaintext() == p.cleared(to_far6(b"0"))
        assert await far.plaintext() == p.cleared(to_far(b"1"))

    play(scenario, own6=OWN6)


def test_programs_learn_over_ipv6_that_the_peer_is_unreachable(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        packet = to_far6(b"x" * 1400)
        rig.write(packet)
        rig.write(icmp6(OWN_6, PEER_6, 1, bytes(4) + packet[:100]))  # about an error there is none
        await rig.settle()
        rig.engine.drop_held(IPv4Address(PEER), unreachable=True)
        answer = await rig.delivered()
        # Address unreachable (RFC 4443 section 3.1).
        assert answer == icmp6(PEER_6, OWN_6, 1, bytes(4) + packet[: 1280 - 48], code=3)
        with pytest.raises(BlockingIOError):
            rig.programs.recv(1)

    play(scenario, own6=OWN6)


def test_packets_of_programs_that_go_nowhere(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        unbalanced = str(IPv6Address(int(IPv6Address(PEER_6)) ^ 1 << 32))
        for packet, reason in (
            (p.udp_packet(OTHER_6, PEER_6, b"x"), "tun_source"),
            (p.udp_packet("fe80::1", "ff02::16", b"x"), "tun_source"),
            (to_far6(b"x", OWN_6), "tun_destination"),
            (to_far6(b"x", unbalanced), "tun_destination"),
            (to_far6(b"x", FAR_OWN_6), "tun_destination"),
            (to_far6(b"x", "ff02::fb"), "tun_destination"),
            (to_far6(b"x", beside("10.43.255.255")), "tun_destination"),
            (to_far6(b"x", beside("192.0.2.1")), "tun_destination"),
            (to_far6(b"x")[:-1], "tun_length"),
            (to_far6(b"x")[:39], "tun_length"),
        ):
            before = rig.drops().get(reason, 0)
            rig.write(packet)
            await rig.settle()
            assert rig.drops().get(reason, 0) == before + 1, (packet, reason)
        assert far.quiet()
        assert rig.events == []

    play(scenario, own6=OWN6)


def test_inner_packets_that_are_refused(play: Play) -> None:
    """One of each kind; tests of the packets themselves are elsewhere."""

    async def scenario(rig: Rig) -> None:
        far = rig.far()

        def behind(protocol: int, header: bytes) -> bytes:
            return p.ip6(FAR_OWN_6, FAR_US_6, protocol, header + p.udp_packet(FAR_OWN_6, FAR_US_6, b"x")[40:])

        for plaintext in (
            from_far6(b"x")[:39],
            from_far6(b"x")[:-1],
            behind(0, bytes([p.UDP, 0, 1, 4, 0, 0, 0, 0])),
            behind(43, bytes([p.UDP, 0, 0, 0, 0, 0, 0, 0])),
            icmp6(FAR_OWN_6, FAR_US_6, 134, bytes(12)),
            icmp6(FAR_OWN_6, FAR_US_6, 1, bytes(12)),
            p.ip6(FAR_OWN_6, FAR_US_6, p.TCP, bytes(19)),
            p.ip6(FAR_OWN_6, FAR_US_6, p.UDP, bytes(7)),
            p.ip6(FAR_OWN_6, FAR_US_6, 44, bytes([p.UDP, 0, 0, 1, 0, 0, 0, 1, 9])),
        ):
            far.send(far.seal(plaintext))
        await rig.settle()
        assert rig.tunnel_drops(far.tid) == {
            "inner6_short": 1,
            "inner6_length": 1,
            "inner6_hop_by_hop": 1,
            "inner6_routing": 1,
            "inner6_icmp_type": 1,
            "inner6_icmp_quote": 1,
            "inner6_tcp_length": 1,
            "inner6_udp_length": 1,
            "inner6_fragment": 1,
        }
        assert rig.stats(far).last_used is None
        far.send(far.seal(from_far6(b"good")))
        assert await rig.delivered() == delivered6(b"good")

    play(scenario, own6=OWN6)


def test_a_tunnel_that_moves_has_the_ipv6_address_of_its_new_place(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.engine.move_tunnel(far.tid, IPv4Address(OTHER))
        far.send(far.seal(from_far6(b"x")))
        assert await rig.delivered() == delivered6(b"x", OTHER_6)
        rig.write(to_far6(b"y", OTHER_6))
        assert await far.plaintext() == p.cleared(to_far6(b"y", OTHER_6))
        rig.write(to_far6(b"z"))
        assert await rig.event(Wanted) == Wanted(IPv4Address(PEER))

    play(scenario, own6=OWN6)


def test_without_an_address_of_our_own_there_is_no_ipv6(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.write(to_far6(b"x"))
        far.send(far.seal(from_far6(b"x")))
        await rig.settle()
        assert rig.tunnel_drops(far.tid) == {"inner_not_ipv4": 1}
        assert rig.drops()["tun_not_ipv4"] == 3  # two are the rig's own
        assert far.quiet()
        assert rig.events == [Alive(far.tid)]
        far.send(far.seal(from_far(b"good")))
        assert await rig.delivered() == delivered(b"good")

    play(scenario)


def test_our_own_address_is_the_one_beside_the_ipv4_address() -> None:
    assert OWN6.ip == ip_address(beside(OWN))
    assert OWN6.network == OUR_PREFIX
