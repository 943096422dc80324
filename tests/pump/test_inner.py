"""pqtun.pump.inner against recorded PQConnect packets, a slow reference, and scapy."""

import contextlib
import json
import struct
from importlib import import_module
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import MessageError
from pqtun.pump.inner import Inbound, Outbound, check_options, clear_destination
from pqtun.pump.transport import ones_sum
from tests.pump import packets as p

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "nat.json").read_text())

# The sender is SENDER at home and wrote to TARGET; here it is PEER and we are HOST.
SENDER, TARGET = "10.43.0.1", "10.43.0.2"
PEER, HOST = "10.42.0.7", "10.42.0.1"
INBOUND = Inbound(IPv4Address(PEER), IPv4Address(HOST))
OUTBOUND = Outbound(IPv4Address(HOST), IPv4Network("10.42.0.0/16"), None)

addresses = st.integers(0, 0xFFFFFFFF).map(lambda n: str(IPv4Address(n)))
# Long runs of 0x00 and 0xff reach the corners of one's-complement arithmetic.
data = st.binary(max_size=1500) | st.sampled_from([b"", b"\0", b"\xff", b"\0" * 64, b"\xff" * 64, b"\xff" * 65])


def reason(packet: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        INBOUND.deliver(packet)
    return caught.value.reason


def same_but_readdressed(delivered: bytes, sent: bytes, source: str = PEER, destination: str = HOST) -> None:
    """Addresses are ours, the IP checksum holds, all else in the header is as it was sent."""
    header = (sent[0] & 15) * 4
    assert delivered[12:20] == IPv4Address(source).packed + IPv4Address(destination).packed
    assert p.valid(delivered[:header])
    assert delivered[:10] == sent[:10]
    assert delivered[20:header] == sent[20:header]
    assert len(delivered) == len(sent)


@pytest.mark.parametrize("vector", VECTORS, ids=["tcp", "udp", "icmp"])
def test_recorded_by_pqconnect(vector: dict[str, str]) -> None:
    sent = bytes.fromhex(vector["from_tun_at_client"])
    inside = bytes.fromhex(vector["plaintext_in_tunnel"])
    assert clear_destination(sent) == inside
    inbound = Inbound(IPv4Address(vector["assigned_peer_ip"]), IPv4Address(vector["server_tun_ip"]))
    assert inbound.deliver(inside) == bytes.fromhex(vector["to_tun_at_server"])


@given(st.binary(min_size=1, max_size=99))
def test_ones_sum(raw: bytes) -> None:
    words = [int.from_bytes(raw[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(raw), 2)]
    assert (ones_sum(raw) - sum(words)) % 65535 == 0


@given(source=addresses, target=addresses, peer=addresses, host=addresses, payload=data, options=st.integers(0, 10))
def test_tcp(source: str, target: str, peer: str, host: str, payload: bytes, options: int) -> None:
    sent = p.ip(source, target, p.TCP, p.tcp(source, target, payload), options=b"\1" * 4 * options)
    got = bytes(Inbound(IPv4Address(peer), IPv4Address(host)).deliver(p.cleared(sent)))
    header = 20 + 4 * options
    want = p.ip(peer, host, p.TCP, p.tcp(peer, host, payload), options=b"\1" * 4 * options)
    assert got == want
    assert p.transport_valid(got)
    assert got[header + 18 :] == sent[header + 18 :]


@given(source=addresses, target=addresses, peer=addresses, host=addresses, payload=data, trailer=data)
def test_udp(source: str, target: str, peer: str, host: str, payload: bytes, trailer: bytes) -> None:
    # Bytes behind the UDP length but within the IP length are legal (RFC 9868) and not summed up.
    sent = p.ip(source, target, p.UDP, p.udp(source, target, payload) + trailer)
    got = bytes(Inbound(IPv4Address(peer), IPv4Address(host)).deliver(p.cleared(sent)))
    assert got == p.ip(peer, host, p.UDP, p.udp(peer, host, payload) + trailer)


def test_scapy_agrees() -> None:
    layers: Any = import_module("scapy.layers.inet")  # takes a second
    for size in range(70):
        for transport in (layers.TCP(dport=22, options=[("MSS", 1160)]), layers.UDP(dport=53)):
            body = bytes(range(1, size + 1))
            sent = bytes(layers.IP(src=SENDER, dst=TARGET, id=7) / transport / body)
            want = bytes(layers.IP(src=PEER, dst=HOST, id=7) / transport / body)
            assert INBOUND.deliver(p.cleared(sent)) == want


def test_a_checksum_that_the_sender_left_wrong_is_computed_anew() -> None:
    # PQConnect leaves in place what its kernel put there, and promises nothing.
    sent = bytearray(p.tcp_packet(SENDER, TARGET, b"data"))
    sent[36:38] = b"\x12\x34"
    assert p.transport_valid(bytes(INBOUND.deliver(p.cleared(bytes(sent)))))


def test_udp_without_checksum_stays_without() -> None:
    sent = p.ip(SENDER, TARGET, p.UDP, p.udp(SENDER, TARGET, b"data", summed=False))
    got = INBOUND.deliver(p.cleared(sent))
    assert got[26:28] == b"\0\0"
    parts = p.fragments(p.ip(SENDER, TARGET, p.UDP, p.udp(SENDER, TARGET, b"d" * 64, summed=False)), 16)
    assert INBOUND.deliver(p.cleared(parts[0]))[26:28] == b"\0\0"


@given(word=st.integers(0, 0xFFFF))
def test_udp_checksum_is_never_sent_as_zero(word: int) -> None:
    # One of the 65536 payloads sums up to 0, which must go out as 0xffff. Find it, and test its neighbours.
    base = p.pseudo(PEER, HOST, p.UDP, 10) + struct.pack("!HHHH", 1000, 2000, 10, 0)
    corner = p.checksum(base)
    for value in (corner, word):
        payload = struct.pack("!H", value)
        sent = p.ip(SENDER, TARGET, p.UDP, p.udp(SENDER, TARGET, payload))
        got = bytes(INBOUND.deliver(p.cleared(sent)))
        assert got[26:28] != b"\0\0"
        assert p.transport_valid(got)
        if value == corner:
            assert got[26:28] == b"\xff\xff"


@given(
    payload=st.binary(min_size=200, max_size=1200), size=st.integers(3, 20), protocol=st.sampled_from([p.TCP, p.UDP])
)
def test_fragments_join_to_a_valid_packet(payload: bytes, size: int, protocol: int) -> None:
    segment = (p.tcp if protocol == p.TCP else p.udp)(SENDER, TARGET, payload)
    sent = p.fragments(p.ip(SENDER, TARGET, protocol, segment), 8 * size)
    got = [bytes(INBOUND.deliver(p.cleared(part))) for part in sent]
    for before, after in zip(sent, got, strict=True):
        same_but_readdressed(after, before)
    whole = p.ip(PEER, HOST, protocol, p.reassembled(got))
    assert p.transport_valid(whole)
    assert whole[20:] == (p.tcp if protocol == p.TCP else p.udp)(PEER, HOST, payload)


@given(source=addresses, target=addresses, peer=addresses, host=addresses, word=st.integers(0, 0xFFFF))
def test_first_fragment_in_all_corners(source: str, target: str, peer: str, host: str, word: int) -> None:
    header = struct.pack("!HHHH", 1000, 2000, 40, 0)
    corner = p.checksum(p.pseudo(peer, host, p.UDP, 40) + header)  # the payload that makes the checksum 0
    inbound = Inbound(IPv4Address(peer), IPv4Address(host))
    for value in (corner, word):
        segment = p.udp(source, target, struct.pack("!H", value) + b"\0" * 30)
        first, second = p.fragments(p.ip(source, target, p.UDP, segment), 24)
        got = [bytes(inbound.deliver(p.cleared(part))) for part in (first, second)]
        assert got[0][26:28] != b"\0\0"
        assert p.transport_valid(p.ip(peer, host, p.UDP, p.reassembled(got)))
        if value == corner:
            assert got[0][26:28] == b"\xff\xff"


@pytest.mark.parametrize("protocol", [p.UDP_LITE, p.DCCP])
def test_other_protocols_with_a_pseudo_header(protocol: int) -> None:
    segment = struct.pack("!HHHHI", 1, 2, 8, 0, 0)
    value = p.checksum(p.pseudo(SENDER, TARGET, protocol, len(segment)) + segment)
    segment = segment[:6] + struct.pack("!H", value) + segment[8:]
    got = bytes(INBOUND.deliver(p.cleared(p.ip(SENDER, TARGET, protocol, segment))))
    assert p.valid(p.pseudo(PEER, HOST, protocol, len(segment)) + got[20:])


@pytest.mark.parametrize("protocol", [p.UDP_LITE, p.DCCP])
def test_other_protocols_cut_short_are_left_to_the_kernel(protocol: int) -> None:
    for size in range(8):
        sent = p.ip(SENDER, TARGET, protocol, b"\1" * size)
        assert INBOUND.deliver(p.cleared(sent))[20:] == sent[20:]


@given(protocol=st.sampled_from([0, 2, 4, 41, 47, 50, 132, 253, 255]), payload=data)
def test_protocols_that_do_not_sum_addresses_are_left_as_they_are(protocol: int, payload: bytes) -> None:
    sent = p.ip(SENDER, TARGET, protocol, payload)
    got = bytes(INBOUND.deliver(p.cleared(sent)))
    same_but_readdressed(got, sent)
    assert got[20:] == sent[20:]


def test_padding_is_cut_off() -> None:
    sent = p.udp_packet(SENDER, TARGET, b"data")
    assert INBOUND.deliver(p.cleared(sent) + bytes(500)) == INBOUND.deliver(p.cleared(sent))


@given(st.binary(max_size=120))
def test_never_fails_otherwise_than_by_refusing(raw: bytes) -> None:
    for packet in (raw, b"\x45" + raw[1:], b"\x45\0" + len(raw).to_bytes(2, "big") + raw[4:]):
        got = None
        with contextlib.suppress(MessageError):
            got = INBOUND.deliver(packet)
        if got is not None:
            assert got[12:20] == IPv4Address(PEER).packed + IPv4Address(HOST).packed


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp", "options", "fragment"])
def test_every_truncated_size_is_refused(kind: str) -> None:
    segment = p.udp(SENDER, TARGET, b"payload!")
    packet = {
        "tcp": p.tcp_packet(SENDER, TARGET, b"x"),
        "udp": p.udp_packet(SENDER, TARGET),
        "icmp": p.ip(SENDER, TARGET, p.ICMP, p.icmp(3, 3, bytes(4) + p.udp_packet(HOST, PEER))),
        "options": p.ip(SENDER, TARGET, p.UDP, segment, options=b"\1" * 8),
        "fragment": p.ip(SENDER, TARGET, p.UDP, segment, fragment=0x2000),
    }[kind]
    INBOUND.deliver(p.cleared(packet))
    for size in range(len(packet)):
        assert reason(packet[:size]) == ("inner_short" if size < 20 else "inner_total_length")


def test_every_transport_header_cut_short_is_refused() -> None:
    for size in range(20):
        assert reason(p.ip(SENDER, TARGET, p.TCP, bytes(size))) == "inner_tcp_length"
    for size in range(8):
        assert reason(p.ip(SENDER, TARGET, p.UDP, bytes(size))) == "inner_udp_length"
    for length in (0, 7, 13, 0xFFFF):
        datagram = struct.pack("!HHHH", 1, 2, length, 0) + bytes(4)
        assert reason(p.ip(SENDER, TARGET, p.UDP, datagram)) == "inner_udp_length"


def test_header_faults_are_refused() -> None:
    packet = bytearray(p.udp_packet(SENDER, TARGET))
    for version in (0, 5, 6, 7, 15):
        assert reason(bytes([version << 4 | 5]) + packet[1:]) == "inner_not_ipv4"
    for words in range(5):
        assert reason(bytes([0x40 | words]) + packet[1:]) == "inner_header_length"
    assert reason(b"\x4f" + packet[1:]) == "inner_header_length"  # longer than the packet
    assert reason(bytes(packet[:2]) + b"\0\x13" + packet[4:]) == "inner_header_length"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (bytes([131, 7, 4, 192, 0, 2, 1, 0]), "inner_source_route"),
        (bytes([137, 7, 4, 192, 0, 2, 1, 0]), "inner_source_route"),
        (bytes([1, 1, 137, 7, 4, 192, 0, 2]), "inner_source_route"),
        (bytes([7, 4, 4, 0, 131, 3, 4, 0]), "inner_source_route"),
        (bytes([1, 1, 1, 7]), "inner_options"),
        (bytes([7, 1, 4, 0]), "inner_options"),
        (bytes([7, 0, 4, 0]), "inner_options"),
        (bytes([7, 5, 4, 0]), "inner_options"),
    ],
)
def test_options_are_refused(options: bytes, expected: str) -> None:
    assert reason(p.ip(SENDER, TARGET, p.UDP, p.udp(SENDER, TARGET, b""), options=options)) == expected


def test_harmless_options_pass() -> None:
    for options in (b"\x94\x04\0\0", b"\1\1\1\0", b"\0\x83\x83\x83", bytes([7, 7, 4, 0, 0, 0, 0, 0])):
        check_options(options)


@pytest.mark.parametrize(
    ("fragment", "size", "protocol"),
    [
        (0x2000, 12, 50),  # not in units of 8 bytes
        (0x2000, 0, 50),
        (0x0001, 0, 50),
        (0x1FFF, 16, 50),  # ends past 65535
        (0x1FFD, 16, 50),  # only with its header
        (0x2000, 8, p.TCP),  # splits the TCP header
        (0x2000, 16, p.TCP),
        (0x0001, 8, p.TCP),  # would overwrite the flags
        (0x0002, 8, p.TCP),
        (0x0001, 8, p.DCCP),
    ],
)
def test_bad_fragments_are_refused(fragment: int, size: int, protocol: int) -> None:
    assert reason(p.ip(SENDER, TARGET, protocol, bytes(size), fragment=fragment)) == "inner_fragment"


def test_good_fragments_pass() -> None:
    for fragment, size, protocol in (
        (0x2000, 24, p.TCP),
        (3, 8, p.TCP),
        (0x2000, 8, p.UDP),
        (1, 5, p.UDP),
        (0x1FFC, 5, 50),
    ):
        INBOUND.deliver(p.ip(SENDER, TARGET, protocol, bytes(size), fragment=fragment))


# -- ICMP errors: HOST:2000 sent `ours` to PEER; the peer saw it as TARGET -> SENDER and complains.


def as_peer_saw(ours: bytes) -> bytes:
    return bytes(Inbound(IPv4Address(TARGET), IPv4Address(SENDER)).deliver(p.cleared(ours)))


@given(
    payload=data,
    kind=st.sampled_from([(3, 3), (3, 4), (4, 0), (11, 0), (12, 0)]),
    protocol=st.sampled_from([p.TCP, p.UDP]),
    cut=st.integers(28, 548),
)
def test_icmp_errors_quote_what_we_sent(payload: bytes, kind: tuple[int, int], protocol: int, cut: int) -> None:
    segment = (p.tcp if protocol == p.TCP else p.udp)(HOST, PEER, payload)
    ours = p.ip(HOST, PEER, protocol, segment, ttl=63)
    error = p.ip(SENDER, TARGET, p.ICMP, p.icmp(*kind, b"\0\0\x04\xb0" + as_peer_saw(ours)[:cut]))
    got = bytes(INBOUND.deliver(p.cleared(error)))
    same_but_readdressed(got, error)
    assert got[20:22] == bytes(kind)
    assert got[24:28] == b"\0\0\x04\xb0"
    assert p.valid(got[20:])
    # What the peer's kernel quotes is, after all is undone, what ours sent, transport checksum included.
    assert got[28:] == ours[:cut]


def test_icmp_errors_in_fragments_and_short_quotes() -> None:
    ours = p.ip(HOST, PEER, p.UDP, p.udp(HOST, PEER, b"q" * 500))
    for cut in range(20, 36):
        error = p.ip(SENDER, TARGET, p.ICMP, p.icmp(3, 3, bytes(4) + as_peer_saw(ours)[:cut]))
        got = bytes(INBOUND.deliver(p.cleared(error)))
        assert p.valid(got[20:])
        assert got[28:40] + got[40:48] == ours[:12] + ours[12:20]
    parts = p.fragments(p.ip(SENDER, TARGET, p.ICMP, p.icmp(3, 3, bytes(4) + as_peer_saw(ours))), 64)
    whole = p.reassembled([bytes(INBOUND.deliver(p.cleared(part))) for part in parts])
    assert p.valid(whole)
    assert whole[8:] == ours


def test_icmp_error_about_a_later_fragment_leaves_its_payload() -> None:
    ours = p.ip(HOST, PEER, p.UDP, b"payload-of-a-fragment-no-header!", fragment=0x0010)
    error = p.ip(SENDER, TARGET, p.ICMP, p.icmp(11, 1, bytes(4) + as_peer_saw(ours)))
    assert bytes(INBOUND.deliver(p.cleared(error)))[28:] == ours


def test_icmp_queries_pass_unchanged() -> None:
    for kind in (0, 8, 13, 42):
        echo = p.icmp(kind, 0, b"\0\1\0\1" + p.udp_packet(HOST, PEER))
        assert INBOUND.deliver(p.cleared(p.ip(SENDER, TARGET, p.ICMP, echo)))[20:] == echo


def test_icmp_refused() -> None:
    quote = p.udp_packet(SENDER, TARGET)
    assert reason(p.ip(SENDER, TARGET, p.ICMP, p.icmp(5, 1, bytes(4) + quote))) == "inner_icmp_redirect"
    for size in (*range(8), *range(8, 28)):
        message = p.icmp(3, 3, bytes(4) + quote).ljust(size, b"\0")[:size]
        assert reason(p.ip(SENDER, TARGET, p.ICMP, message)) == "inner_icmp_quote"
    for first in (0x44, 0x65, 0x4F):
        message = p.icmp(3, 3, bytes(4) + bytes([first]) + quote[1:])
        assert reason(p.ip(SENDER, TARGET, p.ICMP, message)) == "inner_icmp_quote"


# -- from the TUN device


def outbound_reason(packet: bytes, outbound: Outbound = OUTBOUND) -> str:
    with pytest.raises(MessageError) as caught:
        outbound.destination(packet)
    return caught.value.reason


def test_outbound_accepts_own_sources_to_peers() -> None:
    assert OUTBOUND.destination(p.udp_packet(HOST, PEER)) == IPv4Address(PEER).packed
    both = Outbound(IPv4Address(HOST), IPv4Network("10.42.0.0/16"), IPv4Address("192.0.2.1"))
    for source in (HOST, "192.0.2.1"):
        assert both.destination(p.udp_packet(source, PEER)) == IPv4Address(PEER).packed


@pytest.mark.parametrize(
    "destination",
    [HOST, "10.42.0.0", "10.42.255.255", "10.43.0.2", "224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1"],
)
def test_outbound_refuses_what_is_no_peer(destination: str) -> None:
    assert outbound_reason(p.udp_packet(HOST, destination)) == "tun_destination"


def test_outbound_refuses_other_sources_and_shapes() -> None:
    packet = p.udp_packet(HOST, PEER)
    for source in ("10.42.0.9", PEER, "192.0.2.1", "0.0.0.0", "127.0.0.1"):
        assert outbound_reason(p.udp_packet(source, PEER)) == "tun_source"
    assert outbound_reason(b"\x60" + packet[1:]) == "tun_not_ipv4"
    for size in range(20):
        assert outbound_reason(packet[:size]) == "tun_not_ipv4"
    for size in (*range(20, len(packet)), len(packet) + 1):
        assert outbound_reason(packet.ljust(size, b"\0")[:size]) == "tun_length"
