"""The native engine on a device with virtio headers: large packets are cut, runs are joined, and lies do no harm.

The device is a pair of sockets; gso.py plays the kernel. What both engines do with mixed traffic: test_differential.py.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP

from pqtun.pump.engine import Wanted
from tests.pump import gso
from tests.pump import packets as p
from tests.pump.rig import FAR_OWN, FAR_US, OTHER, OWN, PEER
from tests.pump.twins import Side, same_packets
from tests.pump.virtio import (
    ACK,
    CWR,
    ECE,
    FIN,
    LARGE,
    LONGEST,
    PSH,
    RST,
    SYN,
    TIMESTAMPS,
    URG,
    as_delivered,
    joined,
    noise,
    of_tcp,
    opened,
    play,
    train,
    written,
)

pytestmark = pytest.mark.usefixtures("_own_network")


# -- from programs to the network ----------------------------------------------------------------------


@pytest.mark.parametrize("hdr_len", [None, 0, LONGEST], ids=["true", "none", "lie"])
@pytest.mark.parametrize("name", LARGE)
def test_a_large_packet_leaves_in_segments(name: str, hdr_len: int | None) -> None:
    packet, size = LARGE[name]
    expected = [p.cleared(segment) for segment in gso.segments(packet, size)]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        await side.write_message(gso.large(packet, size, hdr_len=hdr_len))
        assert await opened(far, len(expected)) == expected
        await side.rig.settle()
        assert far.quiet()
        (tunnel,) = side.rig.engine.stats().tunnels
        assert (tunnel.packets_sent, tunnel.bytes_sent) == (len(expected), sum(map(len, expected)))
        assert tunnel.drops == {}

    play(scenario)


@pytest.mark.parametrize("name", LARGE)
def test_the_model_agrees_with_scapy(name: str) -> None:
    """Each segment is what Scapy makes of the same fields, and together they are the whole."""
    packet, size = LARGE[name]
    whole, data = IP(packet), b""
    for number, segment in enumerate(gso.segments(packet, size)):
        parsed = IP(segment)
        kind = TCP if whole.haslayer(TCP) else UDP
        if kind is TCP:
            assert parsed[TCP].seq == (whole[TCP].seq + len(data)) % 2**32
        else:
            del parsed[UDP].len
        assert parsed.id == (whole.id + number) % 65536
        data += bytes(parsed[kind].payload)
        for layer in (IP, kind):
            del parsed[layer].chksum
        del parsed[IP].len
        assert bytes(parsed) == segment
    assert data == bytes(whole[TCP if whole.haslayer(TCP) else UDP].payload)


def test_a_checksum_that_is_left_is_finished() -> None:
    left = gso.word(gso.udp_packet(OWN, PEER, bytes(2)), 26)
    zero = gso.udp_packet(OWN, PEER, left.to_bytes(2, "big"))  # sums up to 0, which is written as 0xffff (RFC 768)
    assert gso.word(zero, 26) == 0xFFFF
    packets = [gso.tcp_packet(OWN, PEER, noise(77), options=TIMESTAMPS), gso.udp_packet(OWN, PEER, b"odd"), zero]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        for packet in packets:
            head = gso.HEADER.pack(gso.NEEDS_CSUM, gso.NONE, 0, 0, 20, p.CHECKSUM_AT[packet[9]])
            await side.write_message(head + gso.begun(packet))
            assert await far.plaintext() == p.cleared(packet)
        untouched = p.icmp(8, 0, b"ping")
        await side.write(p.ip(OWN, PEER, p.ICMP, untouched))
        assert (await far.plaintext())[20:] == untouched

    play(scenario)


TCP_PACKET = gso.tcp_packet(OWN, PEER, noise(4000))
UDP_PACKET = gso.udp_packet(OWN, PEER, noise(4000))
OPTIONS = p.ip(OWN, PEER, p.TCP, TCP_PACKET[20:], options=b"\1" * 40)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (gso.large(TCP_PACKET, 0), "tun_gso"),
        (gso.large(TCP_PACKET, 4001), "tun_gso"),
        (gso.large(TCP_PACKET, LONGEST), "tun_gso"),
        (gso.large(TCP_PACKET, 1000, kind=gso.UDP_L4), "tun_gso"),
        (gso.large(TCP_PACKET, 1000, kind=gso.TCPV6), "tun_gso"),
        (gso.large(TCP_PACKET, 1000, kind=3), "tun_gso"),  # UFO, which was never asked for
        (gso.large(TCP_PACKET, 1000, kind=0x80), "tun_gso"),
        (gso.large(UDP_PACKET, 1000, kind=gso.TCPV4), "tun_gso"),
        (gso.large(gso.put_word(UDP_PACKET, 24, 4007), 1000), "tun_gso"),
        (gso.large(gso.put(TCP_PACKET, 32, b"\x40"), 1000), "tun_gso"),
        (gso.large(gso.put(gso.tcp_packet(OWN, PEER, b"1234"), 32, b"\xf0"), 1), "tun_gso"),
        (gso.large(gso.put_word(TCP_PACKET, 6, 0x2000), 1000), "tun_gso"),
        (gso.large(gso.put_word(TCP_PACKET, 6, 1), 1000), "tun_gso"),
        (gso.large(gso.put(TCP_PACKET, 0, b"\x44"), 1000), "tun_gso"),
        (gso.HEADER.pack(1, 1, 40, 1000, 20, 16) + p.ip(OWN, PEER, p.TCP, b"short"), "tun_gso"),
        (gso.HEADER.pack(1, 0, 0, 0, 4040, 16) + TCP_PACKET, "tun_checksum"),
        (gso.HEADER.pack(1, 0, 0, 0, LONGEST, LONGEST) + TCP_PACKET, "tun_checksum"),
        (gso.HEADER.pack(1, 0, 0, 0, 4020, 19) + TCP_PACKET, "tun_checksum"),
        (gso.HEADER.pack(1, 1, 40, 1000, 20, 16) + TCP_PACKET[:-1], "tun_length"),
        (gso.PLAIN + TCP_PACKET + b"\0", "tun_length"),
        (gso.PLAIN, "tun_not_ipv4"),
        (gso.PLAIN[:9], "tun_not_ipv4"),
        (b"\1", "tun_not_ipv4"),
        (gso.PLAIN + b"\x60" + bytes(100), "tun_not_ipv4"),
    ],
)
@pytest.mark.parametrize("held", [False, True], ids=["tunnel", "held"])
def test_lies_are_refused_and_counted(message: bytes, reason: str, held: bool) -> None:
    async def scenario(side: Side) -> None:
        far = side.rig.far(inner=None if held else PEER)
        await side.rig.settle()
        before = side.rig.drops().get(reason, 0)
        await side.write_message(message)
        await side.rig.until(lambda: side.rig.drops().get(reason, 0) > before, reason)
        assert [event for event in side.rig.events if isinstance(event, Wanted)] == []
        if held:
            side.rig.add(far)
        await side.write(UDP_PACKET)
        assert await far.plaintext() == p.cleared(UDP_PACKET)
        assert far.quiet()

    play(scenario)


_WORDS = st.one_of(st.sampled_from([0, 1, 16, 20, 40, 1000, 4000, LONGEST]), st.integers(0, LONGEST))
_HEADS = st.builds(gso.HEADER.pack, st.integers(0, 3), st.sampled_from([0, 1, 3, 4, 5, 0x81, 255]), *[_WORDS] * 4)
_CHANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3)
_PACKETS = st.sampled_from([TCP_PACKET[:2], TCP_PACKET, UDP_PACKET, OPTIONS, gso.tcp_packet(OWN, PEER, b"x")])


@settings(max_examples=10)
@given(st.lists(st.tuples(_HEADS, _PACKETS, _CHANGES, st.booleans()), min_size=20, max_size=20))
def test_no_header_does_harm(messages: list[tuple[bytes, bytes, list[tuple[int, int]], bool]]) -> None:
    async def scenario(side: Side) -> None:
        far = side.rig.far()
        for head, packet, changes, fits in messages:
            data = bytearray(packet)
            for at, value in changes:
                if at < len(data):
                    data[at] = value
            if fits and len(data) >= 20:
                data[0], data[2:4], data[12:20] = 0x45, struct.pack("!H", len(data)), packet[12:20]
            if head[1] and struct.unpack_from("=H", head, 4)[0] < 500:
                head = head[:4] + struct.pack("=H", 500) + head[6:]  # some thousand datagrams test nothing more
            await side.write_message(head + bytes(data))
            await side.rig.settle()
            while not far.quiet():
                plaintext = await far.plaintext()
                assert plaintext[16:20] == bytes(4)
                assert len(plaintext) <= len(data)
        await side.write(UDP_PACKET)
        assert await far.plaintext() == p.cleared(UDP_PACKET)

    play(scenario)


def test_large_packets_wait_for_their_tunnel_in_segments() -> None:
    first = gso.segments(gso.tcp_packet(OWN, PEER, noise(60_000)), 1144)
    second = gso.segments(gso.udp_packet(OWN, PEER, noise(30_000)), 1172)

    async def scenario(side: Side) -> None:
        far = side.rig.far(inner=None)
        await side.write_message(gso.large(gso.tcp_packet(OWN, PEER, noise(60_000)), 1144))
        await side.write_message(gso.large(gso.udp_packet(OWN, PEER, noise(30_000)), 1172))
        await side.write(UDP_PACKET)
        await side.rig.settle()
        assert len([event for event in side.rig.events if isinstance(event, Wanted)]) == 1
        expected = [*first, *second, UDP_PACKET]
        stats = side.rig.engine.stats()
        assert (stats.held_packets, stats.held_bytes) == (len(expected), sum(map(len, expected)))
        side.rig.add(far)
        assert await opened(far, len(expected)) == [p.cleared(packet) for packet in expected]

    play(scenario)


def test_what_does_not_fit_in_the_queue_is_counted_by_segments() -> None:
    packet = gso.tcp_packet(OWN, PEER, noise(60_000))

    async def scenario(side: Side) -> None:
        far = side.rig.far(inner=None)
        await side.write_message(gso.large(packet, 200))  # 300 segments, 256 places
        await side.rig.settle()
        assert side.rig.engine.stats().held_packets == 256
        assert side.rig.drops()["held_full"] == 44
        side.rig.add(far)
        assert await opened(far, 256) == [p.cleared(segment) for segment in gso.segments(packet, 200)[:256]]

    play(scenario)


# -- from the network to programs ----------------------------------------------------------------------


def test_a_run_is_written_as_one() -> None:
    packets = of_tcp(50)

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        side.send_train(train(far, packets))
        await side.rig.settle()
        (message,) = written(side)
        assert [gso.loose(packet) for packet in gso.cut(message)] == [gso.loose(as_delivered(x)) for x in packets]
        (tunnel,) = side.rig.engine.stats().tunnels
        assert tunnel.packets_received == 50

    play(scenario)


def test_runs_of_two_flows_and_their_ends() -> None:
    """A push ends a run, and so does a shorter packet; then the next one begins."""
    one = [*of_tcp(4), *of_tcp(1, sequence=4005, identification=13, flags=ACK | PSH)]
    one += of_tcp(3, sequence=5005, identification=14)[:1]
    two = of_tcp(3, size=900, ports=(7, 7))  # type: ignore[arg-type]
    two += [gso.tcp_packet(FAR_OWN, FAR_US, b"short", sequence=2705, ports=(7, 7), identification=12)]
    packets = [one[0], two[0], one[1], two[1], one[2], one[3], one[4], two[2], two[3], one[5]]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        side.send_train(train(far, packets))
        await side.rig.settle()
        messages = written(side)
        assert joined(messages) == [5, 4, 1]
        same_packets([x for message in messages for x in gso.cut(message)], [as_delivered(x) for x in packets])

    play(scenario)


def _tcp(number: int, **more: object) -> bytes:
    fixed: dict[str, object] = {"sequence": number * 100, "identification": number, "dont_fragment": False}
    return gso.tcp_packet(FAR_OWN, FAR_US, noise(100), **{**fixed, **more})  # type: ignore[arg-type]


APART = {
    "gap": [_tcp(1), _tcp(2, sequence=201)],
    "again": [_tcp(1), _tcp(1)],
    "reordered": [_tcp(2), _tcp(1)],
    "acknowledgement": [_tcp(1), _tcp(2, acknowledged=78)],
    "window": [_tcp(1), _tcp(2, window=1025)],
    "options": [_tcp(1, options=TIMESTAMPS), _tcp(2, options=TIMESTAMPS[:-1] + b"x")],
    "more options": [_tcp(1), _tcp(2, options=TIMESTAMPS)],
    "identification": [_tcp(1), _tcp(2, identification=3)],
    "do not fragment": [_tcp(1), _tcp(2, dont_fragment=True)],
    "service": [_tcp(1), _tcp(2, service=2)],
    "time to live": [_tcp(1), _tcp(2, ttl=63)],
    "ports": [_tcp(1), _tcp(2, ports=(1001, 80))],
    "after a push": [_tcp(1, flags=ACK | PSH), _tcp(2)],
    "after an end": [_tcp(1, flags=ACK | FIN), _tcp(2)],
    "longer": [gso.tcp_packet(FAR_OWN, FAR_US, noise(99), sequence=101, dont_fragment=False), _tcp(2)],
    "no data": [_tcp(1), gso.tcp_packet(FAR_OWN, FAR_US, b"", sequence=200, identification=2, dont_fragment=False)],
    **{f"flag {flag}": [_tcp(1, flags=ACK | flag), _tcp(2, flags=ACK | flag)] for flag in (SYN, RST, URG, CWR)},
    "flags differ": [_tcp(1), _tcp(2, flags=ACK | ECE)],
    "fragment between": [
        _tcp(1),
        gso.ip_summed(p.ip(FAR_OWN, FAR_US, p.TCP, noise(96), fragment=0x2003)),
        _tcp(2),
    ],
    "ICMP": [p.ip(FAR_OWN, FAR_US, p.ICMP, p.icmp(8, 0, bytes(4))) for _ in range(2)],
}


@pytest.mark.parametrize("name", APART)
def test_what_is_not_joined(name: str) -> None:
    packets = APART[name]

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        side.send_train(train(far, packets))
        await side.rig.settle()
        assert joined(written(side)) == [1] * len(packets)

    play(scenario)


def test_forged_and_repeated_datagrams_join_nothing() -> None:
    packets = of_tcp(6)

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        datagrams = train(far, packets)
        forged = datagrams[2][:-1] + bytes([datagrams[2][-1] ^ 1])
        side.send_train([*datagrams[:2], datagrams[1], forged, *datagrams[2:]])
        await side.rig.settle()
        assert joined(written(side)) == [6]
        assert side.rig.tunnel_drops(far.tid) == {"replay": 1, "authentication": 1}

    play(scenario)


def test_a_train_of_several_tunnels_with_rubbish_in_it() -> None:
    packets = of_tcp(4)

    async def scenario(side: Side) -> None:
        one, two = side.rig.far(1), side.rig.far(2, OTHER)
        first, second = train(one, packets), train(two, packets)
        size = len(first[0])
        rubbish, unknown = b"\3\0" + noise(size - 2), b"\2\0" + noise(size - 2)
        side.send_train(
            [first[0], second[0], rubbish, first[1], unknown, second[1], first[2], first[3], second[2], b"\2\0"]
        )
        side.send(second[3])
        await side.rig.settle()
        seen = [packet for message in written(side) for packet in gso.cut(message)]
        same_packets(seen, [as_delivered(x) for x in packets] + [as_delivered(x, OTHER) for x in packets])
        assert side.rig.drops()["datagram_unknown"] == 1
        assert side.rig.drops()["tunnel_short"] == 1
        assert side.rig.engine.stats().early_packets == 1

    play(scenario)
