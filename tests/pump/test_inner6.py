"""pqtun.pump.inner with IPv6 packets: what is made of them, and what is refused."""

import contextlib
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import MessageError
from pqtun.protocol.private6 import address6, prefix
from pqtun.pump.inner import Inbound, Outbound, clear_destination, largest
from tests.pump import packets as p

# The sender is SENDER at home and wrote to TARGET; here it is PEER and we are HOST.
HOME, HERE = (prefix(IPv4Network(subnet)) for subnet in ("10.43.0.0/16", "10.42.0.0/16"))
SENDER, TARGET = (str(address6(HOME, IPv4Address(f"10.43.0.{n}"))) for n in (1, 2))
PEER, HOST = (str(address6(HERE, IPv4Address(f"10.42.0.{n}"))) for n in (7, 1))
PEER4, HOST4 = IPv4Address("10.42.0.7"), IPv4Address("10.42.0.1")
OWN6 = IPv6Interface(f"{HOST}/64")
INBOUND = Inbound(PEER4, HOST4, OWN6)
OUTBOUND = Outbound(HOST4, IPv4Network("10.42.0.0/16"), None, OWN6)

# Padding, and an option of a kind that nobody knows.
OPTIONS = bytes([0, 1, 1, 4, 0, 0, 0, 0, 0x1E, 2, 9, 9, 0, 0, 1, 0])
ROUTE = bytes([0, 0, 0, 0, 0, 0, 0, 0])

data = st.binary(max_size=1500) | st.sampled_from([b"", b"\0", b"\xff", b"\0" * 64, b"\xff" * 64, b"\xff" * 65])
inners = st.integers(0x0A2A0001, 0x0A2AFFFE).filter(lambda n: n != int(HOST4)).map(IPv4Address)
chains = st.lists(st.just((p.DESTINATION_OPTIONS, OPTIONS)), max_size=2)


def reason(packet: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        INBOUND.deliver(packet)
    return caught.value.reason


def fragment(protocol: int, word: int, payload: bytes) -> bytes:
    """One fragment with this offset and these flags."""
    header = struct.pack("!BBHI", 0, 0, word, 77)
    return p.extended(p.ip6(SENDER, TARGET, protocol, payload), (p.FRAGMENT, header))


def error(kind: int, quote: bytes, code: int = 0) -> bytes:
    return p.ip6(SENDER, TARGET, p.ICMP6, p.icmp6(SENDER, TARGET, kind, code, b"\0\0\x04\xb0" + quote))


@given(inner=inners, payload=data, headers=chains)
def test_tcp(inner: IPv4Address, payload: bytes, headers: list[tuple[int, bytes]]) -> None:
    peer = str(address6(HERE, inner))
    sent = p.extended(p.tcp_packet(SENDER, TARGET, payload), *headers)
    got = Inbound(inner, HOST4, OWN6).deliver(clear_destination(sent))
    assert got == p.extended(p.tcp_packet(peer, HOST, payload), *headers)
    assert got[40:] == sent[40:]  # the checksum holds as it is


@given(payload=data, trailer=data, headers=chains)
def test_udp(payload: bytes, trailer: bytes, headers: list[tuple[int, bytes]]) -> None:
    # Bytes behind the UDP length but within the IP length are legal (RFC 9868) and not summed up.
    sent = p.ip6(SENDER, TARGET, p.UDP, p.udp(SENDER, TARGET, payload) + trailer)
    got = INBOUND.deliver(p.cleared(p.extended(sent, *headers)))
    want = p.ip6(PEER, HOST, p.UDP, p.udp(PEER, HOST, payload) + trailer)
    assert got == p.extended(want, *headers)


def test_only_the_destination_is_cleared() -> None:
    sent = p.udp_packet(SENDER, TARGET)
    assert clear_destination(sent) == sent[:24] + bytes(16) + sent[40:]
    assert p.transport_valid(clear_destination(sent))


def test_a_wrong_checksum_is_computed_anew_and_none_stays_none() -> None:
    sent = bytearray(p.tcp_packet(SENDER, TARGET, b"data"))
    sent[56:58] = b"\x12\x34"
    assert INBOUND.deliver(p.cleared(bytes(sent))) == p.tcp_packet(PEER, HOST, b"data")
    sent = bytearray(p.ip6(SENDER, TARGET, p.UDP, p.udp(SENDER, TARGET, b"data", summed=False)))
    assert INBOUND.deliver(p.cleared(bytes(sent)))[46:48] == b"\0\0"


def test_udp_checksum_is_never_zero() -> None:
    # One of the 65536 payloads sums up to 0, which must go out as 0xffff.
    corner = p.checksum(p.pseudo(PEER, HOST, p.UDP, 10) + struct.pack("!HHHH", 1000, 2000, 10, 0))
    for value in ((corner - 1) % 65536, corner, (corner + 1) % 65536):
        got = INBOUND.deliver(p.cleared(p.udp_packet(SENDER, TARGET, struct.pack("!H", value))))
        assert (got[46:48] == b"\xff\xff") == (value == corner)
        assert got[46:48] != b"\0\0"


@given(payload=st.binary(min_size=64, max_size=1200), size=st.integers(3, 20), protocol=st.sampled_from([p.TCP, p.UDP]))
def test_fragments_join_to_a_valid_packet(payload: bytes, size: int, protocol: int) -> None:
    segment = (p.tcp if protocol == p.TCP else p.udp)(SENDER, TARGET, payload)
    sent = p.fragments6(p.ip6(SENDER, TARGET, protocol, segment), 8 * size)
    got = [bytes(INBOUND.deliver(p.cleared(part))) for part in sent]
    for before, after in zip(sent, got, strict=True):
        assert after == before[:8] + IPv6Address(PEER).packed + IPv6Address(HOST).packed + before[40:]
    assert p.transport_valid(p.ip6(PEER, HOST, protocol, b"".join(part[48:] for part in got)))


@pytest.mark.parametrize(
    ("word", "size", "protocol"),
    [
        (1, 12, 50),  # not in units of 8 bytes
        (1, 0, 50),
        (8, 0, 50),
        (0xFFF8, 9, 50),  # ends past 65535
        (1, 16, p.TCP),  # splits the header
        (0, 16, p.TCP),
        (0, 7, p.ICMP6),
        (8, 8, p.TCP),  # would overwrite the flags
        (16, 8, p.TCP),
        (8, 8, p.DCCP),
        (1, 8, p.FRAGMENT),
    ],
)
def test_bad_fragments_are_refused(word: int, size: int, protocol: int) -> None:
    assert reason(fragment(protocol, word, bytes(size))) == "inner6_fragment"


def test_good_fragments_pass() -> None:
    for word, size, protocol in (
        (1, 24, p.TCP),
        (24, 8, p.TCP),
        (1, 8, p.UDP),
        (8, 5, p.UDP),
        (0xFFF8, 7, 50),
        (0, 5, 50),
    ):
        INBOUND.deliver(fragment(protocol, word, bytes(size)))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(p.HOP_BY_HOP, OPTIONS)], "inner6_hop_by_hop"),
        ([(p.DESTINATION_OPTIONS, OPTIONS), (p.HOP_BY_HOP, OPTIONS)], "inner6_hop_by_hop"),
        ([(p.ROUTING, ROUTE)], "inner6_routing"),
        ([(p.DESTINATION_OPTIONS, OPTIONS), (p.ROUTING, ROUTE)], "inner6_routing"),
        ([(p.FRAGMENT, bytes(8)), (p.ROUTING, ROUTE)], "inner6_routing"),
        ([(p.FRAGMENT, bytes([0, 0, 0, 8, 0, 0, 0, 1])), (p.ROUTING, ROUTE)], "inner6_routing"),
        ([(p.FRAGMENT, bytes(8)), (p.FRAGMENT, bytes(8))], "inner6_fragment"),
        ([(p.DESTINATION_OPTIONS, OPTIONS)] * 5, "inner6_options"),
        ([(p.DESTINATION_OPTIONS, bytes([0, 0, 201, 4, 0, 0, 0, 0]))], "inner6_options"),
        ([(p.DESTINATION_OPTIONS, bytes([0, 0, 1, 5, 0, 0, 0, 0]))], "inner6_options"),
        ([(p.DESTINATION_OPTIONS, bytes([0, 0, 0, 0, 0, 0, 0, 1]))], "inner6_options"),
    ],
)
def test_extension_headers_are_refused(headers: list[tuple[int, bytes]], expected: str) -> None:
    assert reason(p.extended(p.udp_packet(SENDER, TARGET), *headers)) == expected


def test_harmless_extension_headers_pass() -> None:
    options = (p.DESTINATION_OPTIONS, OPTIONS)
    for headers in ([options] * 4, [options, (p.FRAGMENT, bytes(8)), options]):
        INBOUND.deliver(p.extended(p.udp_packet(SENDER, TARGET), *headers))


@given(protocol=st.sampled_from([2, 4, 41, 47, 50, 51, 59, p.DCCP, p.UDP_LITE, 132, 253, 255]), payload=data)
def test_other_protocols_are_left_as_they_are(protocol: int, payload: bytes) -> None:
    sent = p.ip6(SENDER, TARGET, protocol, payload)
    assert INBOUND.deliver(p.cleared(sent)) == p.ip6(PEER, HOST, protocol, payload)


def test_padding_is_cut_off() -> None:
    sent = p.udp_packet(SENDER, TARGET)
    assert INBOUND.deliver(p.cleared(sent) + bytes(500)) == p.udp_packet(PEER, HOST)


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp", "options", "fragment"])
def test_every_truncated_size_is_refused(kind: str) -> None:
    packet = {
        "tcp": p.tcp_packet(SENDER, TARGET, b"x"),
        "udp": p.udp_packet(SENDER, TARGET),
        "icmp": error(1, p.udp_packet(TARGET, SENDER)),
        "options": p.extended(p.udp_packet(SENDER, TARGET), (p.DESTINATION_OPTIONS, OPTIONS)),
        "fragment": fragment(p.UDP, 1, bytes(16)),
    }[kind]
    INBOUND.deliver(p.cleared(packet))
    for size in range(len(packet)):
        expected = "inner_short" if not size else "inner6_short" if size < 40 else "inner6_length"
        assert reason(packet[:size]) == expected


def test_every_header_cut_short_is_refused() -> None:
    for size in range(20):
        assert reason(p.ip6(SENDER, TARGET, p.TCP, bytes(size))) == "inner6_tcp_length"
    for size in range(8):
        assert reason(p.ip6(SENDER, TARGET, p.UDP, bytes(size))) == "inner6_udp_length"
        assert reason(p.ip6(SENDER, TARGET, p.FRAGMENT, bytes(size))) == "inner6_fragment"
    for length in (0, 7, 13, 0xFFFF):
        datagram = struct.pack("!HHHH", 1, 2, length, 0) + bytes(4)
        assert reason(p.ip6(SENDER, TARGET, p.UDP, datagram)) == "inner6_udp_length"
    for size in range(16):
        header = bytes([59]) + OPTIONS[1:]
        assert reason(p.ip6(SENDER, TARGET, p.DESTINATION_OPTIONS, header[:size])) == "inner6_options"


@given(st.binary(max_size=120), st.sampled_from([p.TCP, p.UDP, p.ICMP6, p.FRAGMENT, p.DESTINATION_OPTIONS]))
def test_never_fails_otherwise_than_by_refusing(raw: bytes, protocol: int) -> None:
    for packet in (b"\x60" + raw, p.ip6(SENDER, TARGET, protocol, raw)):
        got = None
        with contextlib.suppress(MessageError):
            got = INBOUND.deliver(packet)
        assert got is None or got[8:40] == IPv6Address(PEER).packed + IPv6Address(HOST).packed


# -- ICMPv6: HOST sent `ours` to PEER; the peer saw it as TARGET -> SENDER and complains.


@given(payload=data, kind=st.integers(1, 4), code=st.integers(0, 4), cut=st.integers(40, 1232))
def test_errors_quote_what_we_sent(payload: bytes, kind: int, code: int, cut: int) -> None:
    ours, seen = p.udp_packet(HOST, PEER, payload), p.udp_packet(TARGET, SENDER, payload)
    sent = error(kind, seen[:cut], code)
    got = bytes(INBOUND.deliver(p.cleared(sent)))
    assert got[40:48] == sent[40:48]
    assert p.transport_valid(got)
    assert got[48:] == ours[:cut]


def test_an_error_in_fragments() -> None:
    ours, seen = p.udp_packet(HOST, PEER, b"q" * 500), p.udp_packet(TARGET, SENDER, b"q" * 500)
    parts = [INBOUND.deliver(p.cleared(part)) for part in p.fragments6(error(3, seen), 64)]
    whole = b"".join(bytes(part[48:]) for part in parts)
    assert p.transport_valid(p.ip6(PEER, HOST, p.ICMP6, whole))
    assert whole[8:] == ours


def test_a_quote_with_other_addresses_keeps_the_checksum_right() -> None:
    got = bytes(INBOUND.deliver(p.cleared(error(1, p.udp_packet("2001:db8::1", "2001:db8::2")))))
    assert p.transport_valid(got)
    assert got[56:88] == IPv6Address(HOST).packed + IPv6Address(PEER).packed


def test_echoes_pass_and_all_else_is_refused() -> None:
    for kind in range(256):
        sent = error(kind, p.udp_packet(TARGET, SENDER))
        if kind in (128, 129):
            assert INBOUND.deliver(p.cleared(sent))[40:] == sent[40:]
        elif kind not in (1, 2, 3, 4):
            assert reason(sent) == "inner6_icmp_type"


def test_quotes_cut_short_are_refused() -> None:
    sent = error(1, p.udp_packet(TARGET, SENDER))
    for size in range(48):
        assert reason(p.ip6(SENDER, TARGET, p.ICMP6, sent[40 : 40 + size])) == "inner6_icmp_quote"
    assert reason(error(1, b"\x45" + p.udp_packet(TARGET, SENDER)[1:])) == "inner6_icmp_quote"


# -- from the TUN device, and without IPv6


def outbound_reason(packet: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        OUTBOUND.destination(packet)
    return caught.value.reason


@given(inners)
def test_outbound_finds_the_peer(inner: IPv4Address) -> None:
    assert OUTBOUND.destination(p.udp_packet(HOST, str(address6(HERE, inner)))) == inner.packed


def test_outbound_refuses_what_is_no_peer() -> None:
    none = [str(address6(HERE, IPv4Address(inner))) for inner in ("10.42.0.0", "10.42.255.255", "10.43.0.1")]
    for destination in (HOST, TARGET, "::", "ff02::1", "fe80::1", *none):
        assert outbound_reason(p.udp_packet(HOST, destination)) == "tun_destination"
    for byte in range(16):
        wrong = bytearray(IPv6Address(PEER).packed)
        wrong[byte] ^= 1
        assert outbound_reason(p.udp_packet(HOST, str(IPv6Address(bytes(wrong))))) == "tun_destination"


def test_outbound_has_one_form_of_each_address() -> None:
    # A balance of 0xffff means the same as 0, which is the form that is used.
    inner = next(
        n for n in map(IPv4Address, range(0x0A2A0002, 0x0A2AFFFE)) if address6(HERE, n).packed[10:12] == bytes(2)
    )
    good = address6(HERE, inner)
    other = IPv6Address(good.packed[:10] + b"\xff\xff" + good.packed[12:])
    assert OUTBOUND.destination(p.udp_packet(HOST, str(good))) == inner.packed
    assert outbound_reason(p.udp_packet(HOST, str(other))) == "tun_destination"


def test_outbound_refuses_other_sources_and_shapes() -> None:
    packet = p.udp_packet(HOST, PEER)
    for source in (PEER, SENDER, "::", "fe80::1"):
        assert outbound_reason(p.udp_packet(source, PEER)) == "tun_source"
    assert outbound_reason(b"") == "tun_not_ipv4"
    for size in (*range(1, len(packet)), len(packet) + 1):
        assert outbound_reason(packet.ljust(size, b"\0")[:size]) == "tun_length"


def test_without_an_address_of_its_own_a_host_refuses_ipv6() -> None:
    with pytest.raises(MessageError, match="tun_not_ipv4"):
        Outbound(HOST4, IPv4Network("10.42.0.0/16"), None).destination(p.udp_packet(HOST, PEER))
    with pytest.raises(MessageError, match="inner_not_ipv4"):
        Inbound(PEER4, HOST4).deliver(p.udp_packet(SENDER, TARGET))


def test_the_least_mtu_of_ipv6() -> None:
    for mtu, expected in ((576, 1280), (1280, 1280), (1281, 1281)):
        assert largest(p.udp_packet(HOST, PEER), mtu) == expected
        assert largest(p.udp_packet(str(HOST4), str(PEER4)), mtu) == mtu
