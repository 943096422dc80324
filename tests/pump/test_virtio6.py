"""The native engine on a device with virtio headers, with IPv6 in tunnels. As test_virtio.py otherwise."""

from importlib import import_module
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from pqtun.protocol.private6 import address6, prefix
from pqtun.pump.engine import Wanted
from tests.pump import gso
from tests.pump import packets as p
from tests.pump.rig import FAR_OWN, FAR_US, OWN6, PEER
from tests.pump.twins import Side, same_packets
from tests.pump.virtio import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    TIMESTAMPS,
    as_delivered,
    joined,
    noise,
    opened,
    play,
    train,
    written,
)

pytestmark = pytest.mark.usefixtures("_own_network")

FAR = prefix(IPv4Network("10.42.0.0/16"))
FAR_OWN_6, FAR_US_6 = (str(address6(FAR, IPv4Address(inner))) for inner in (FAR_OWN, FAR_US))
OWN_6, PEER_6 = str(OWN6.ip), str(address6(OWN6.network, IPv4Address(PEER)))

# By name: a packet, and how long the payload of its segments is.
LARGE = {
    "tcp": (gso.tcp_packet(OWN_6, PEER_6, noise(60_000)), 1220),
    "longest": (gso.tcp_packet(OWN_6, PEER_6, noise(65_535 - 60)), 1400),
    "options": (gso.tcp_packet(OWN_6, PEER_6, noise(20_001), options=TIMESTAMPS), 1100),
    "flags": (gso.tcp_packet(OWN_6, PEER_6, noise(5000), flags=ACK | PSH | FIN | CWR | ECE), 1000),
    "wraps": (gso.tcp_packet(OWN_6, PEER_6, noise(9000), sequence=2**32 - 2500, service=3, ttl=1), 1000),
    "one segment": (gso.tcp_packet(OWN_6, PEER_6, noise(1000)), 1000),
    "udp": (gso.udp_packet(OWN_6, PEER_6, noise(60_000)), 1172),
}


def of_tcp(count: int, size: int = 1000) -> list[bytes]:
    """A run of one connection."""
    return [gso.tcp_packet(FAR_OWN_6, FAR_US_6, noise(size), sequence=5 + n * size) for n in range(count)]


def delivered6(packet: bytes) -> bytes:
    """A packet from the far end with the addresses that it gets here; its checksum holds."""
    addresses = address6(OWN6.network, IPv4Address(PEER)).packed + OWN6.ip.packed
    return packet[:8] + addresses + packet[40:]


@pytest.mark.parametrize("name", LARGE)
def test_a_large_packet_leaves_in_segments(name: str) -> None:
    packet, size = LARGE[name]
    expected = [p.cleared(segment) for segment in gso.segments(packet, size)]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        await side.write_message(gso.large(packet, size))
        assert await opened(far, len(expected)) == expected
        await side.rig.settle()
        assert far.quiet()
        assert side.rig.tunnel_drops(far.tid) == {}

    play(scenario, own6=OWN6)


@pytest.mark.parametrize("name", LARGE)
def test_the_model_agrees_with_scapy(name: str) -> None:
    inet6: Any = import_module("scapy.layers.inet6")
    inet: Any = import_module("scapy.layers.inet")
    packet, size = LARGE[name]
    data = b""
    for segment in gso.segments(packet, size):
        parsed = inet6.IPv6(segment)
        kind = inet.TCP if parsed.haslayer(inet.TCP) else inet.UDP
        data += bytes(parsed[kind].payload)
        del parsed[kind].chksum
        del parsed.plen
        if kind is inet.UDP:
            del parsed[kind].len
        assert bytes(parsed) == segment
    whole = inet6.IPv6(packet)
    assert data == bytes(whole[inet.TCP if whole.haslayer(inet.TCP) else inet.UDP].payload)


def test_a_checksum_that_is_left_is_finished() -> None:
    packets = [gso.tcp_packet(OWN_6, PEER_6, noise(77), options=TIMESTAMPS), gso.udp_packet(OWN_6, PEER_6, b"odd")]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        for packet in packets:
            head = gso.HEADER.pack(gso.NEEDS_CSUM, gso.NONE, 0, 0, 40, p.CHECKSUM_AT[packet[6]])
            await side.write_message(head + gso.begun(packet))
            assert await far.plaintext() == p.cleared(packet)

    play(scenario, own6=OWN6)


TCP_PACKET = LARGE["flags"][0]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (gso.large(TCP_PACKET, 0), "tun_gso"),
        (gso.large(TCP_PACKET, 1000, kind=gso.TCPV4), "tun_gso"),
        (gso.large(TCP_PACKET, 1000, kind=gso.UDP_L4), "tun_gso"),
        (gso.large(gso.put(TCP_PACKET, 52, b"\x40"), 1000), "tun_gso"),
        (gso.large(TCP_PACKET, 1000) + b"\0", "tun_length"),
        (gso.PLAIN + TCP_PACKET[:39], "tun_length"),
        (gso.PLAIN + p.udp_packet(PEER_6, PEER_6), "tun_source"),
        (gso.PLAIN + p.udp_packet(OWN_6, OWN_6), "tun_destination"),
        (gso.PLAIN + p.udp_packet(OWN_6, "ff02::2"), "tun_destination"),
    ],
)
def test_lies_are_refused_and_counted(message: bytes, reason: str) -> None:
    async def scenario(side: Side) -> None:
        far = side.rig.far()
        await side.write_message(message)
        await side.rig.until(lambda: side.rig.drops().get(reason), reason)
        assert [event for event in side.rig.events if isinstance(event, Wanted)] == []
        assert far.quiet()

    play(scenario, own6=OWN6)


def test_segments_that_are_too_long_for_the_path_are_refused_as_one() -> None:
    packet, size = LARGE["tcp"]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        side.rig.engine.set_mtu(far.tid, 1100)  # which is 1280 for IPv6: what the kernel cuts to 1220 + 60 passes
        await side.write_message(gso.large(packet, size))
        assert len(await opened(far, 50)) == 50
        await side.write_message(gso.large(packet, size + 1))
        answer = (await side.rig.delivered())[len(gso.PLAIN) :]
        assert (answer[6], answer[40], answer[44:48]) == (p.ICMP6, 2, (1280).to_bytes(4, "big"))
        assert p.transport_valid(answer)
        await side.rig.settle()
        assert written(side) == []
        assert far.quiet()
        assert side.rig.tunnel_drops(far.tid) == {"tun_too_big": 50}

    play(scenario, own6=OWN6)


def test_a_run_is_written_as_one() -> None:
    packets = of_tcp(50)

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        side.send_train(train(far, packets))
        await side.rig.settle()
        (message,) = written(side)
        assert gso.HEADER.unpack_from(message)[1] == gso.TCPV6
        assert gso.cut(message) == [delivered6(packet) for packet in packets]

    play(scenario, own6=OWN6)


def test_runs_of_both_versions() -> None:
    """They end where a flow has a gap, and nothing overtakes a fragment."""
    six, four = of_tcp(6), [gso.tcp_packet(FAR_OWN, FAR_US, noise(980), sequence=n * 980) for n in range(4)]
    fragment = p.fragments6(p.udp_packet(FAR_OWN_6, FAR_US_6, noise(1000)), 504)[0]
    packets = [six[0], four[0], six[1], four[1], six[3], four[2], fragment, six[4], four[3]]
    expected = [delivered6(packet) if gso.is_ipv6(packet) else as_delivered(packet) for packet in packets]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        side.send_train(train(far, packets))
        await side.rig.settle()
        messages = written(side)
        assert joined(messages) == [2, 3, 1, 1, 1, 1]
        same_packets([x for message in messages for x in gso.cut(message)], expected)

    play(scenario, own6=OWN6)
