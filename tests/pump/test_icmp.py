"""pqtun.pump.icmp: what a program is told when its peer cannot be reached, and echoes to peers."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.pump.icmp import echo_request, echo_token, host_unreachable, too_big
from tests.pump import packets as p

OWN, PEER = "10.43.0.1", "10.43.0.7"
OWN6, PEER6 = "fd00::1", "fd00::7"


def test_host_unreachable_is_a_valid_answer() -> None:
    packet = p.tcp_packet(OWN, PEER)
    answer = host_unreachable(packet)
    assert answer is not None
    assert answer[0] == 0x45
    assert int.from_bytes(answer[2:4], "big") == len(answer)
    assert answer[9] == p.ICMP
    assert answer[12:20] == IPv4Address(PEER).packed + IPv4Address(OWN).packed
    assert p.valid(answer[:20])
    assert answer[20:22] == b"\3\1"
    assert p.valid(answer[20:])
    assert answer[24:28] == bytes(4)
    assert answer[28:] == packet


@pytest.mark.parametrize("size", [0, 1, 519, 520, 521, 1400])
def test_quotes_at_most_548_bytes(size: int) -> None:
    packet = p.udp_packet(OWN, PEER, b"x" * size)
    answer = host_unreachable(packet)
    assert answer is not None
    assert answer[28:] == packet[:548]
    assert len(answer) <= 576
    assert p.valid(answer[20:])


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_none_about_icmp_errors(kind: int) -> None:
    assert host_unreachable(p.ip(OWN, PEER, p.ICMP, p.icmp(kind, 0, bytes(4) + p.udp_packet(PEER, OWN)))) is None


def test_one_about_a_ping() -> None:
    assert host_unreachable(p.ip(OWN, PEER, p.ICMP, p.icmp(8, 0, b"\0\1\0\1"))) is not None


def test_only_about_the_first_fragment() -> None:
    first, second, last = p.fragments(p.udp_packet(OWN, PEER, b"x" * 64), 32)
    assert host_unreachable(first) is not None
    assert host_unreachable(second) is None
    assert host_unreachable(last) is None


def test_none_about_what_is_too_short() -> None:
    packet = p.udp_packet(OWN, PEER)
    for size in range(28):
        assert host_unreachable(packet[:size]) is None
    assert host_unreachable(packet[:28]) is not None


@pytest.mark.parametrize("mtu", [576, 1100, 1400])
def test_too_big_says_what_the_way_takes(mtu: int) -> None:
    packet = p.udp_packet(OWN, PEER, bytes(1400))
    answer = too_big(packet, mtu)
    assert answer is not None
    assert answer[12:20] == IPv4Address(PEER).packed + IPv4Address(OWN).packed
    assert answer[20:22] == b"\3\4"
    assert answer[24:28] == mtu.to_bytes(4, "big")
    assert answer[28:] == packet[:548]
    assert p.valid(answer[:20])
    assert p.valid(answer[20:])
    assert too_big(p.ip(OWN, PEER, p.ICMP, p.icmp(3, 0, bytes(1400))), mtu) is None


@pytest.mark.parametrize("size", [0, 1, 1183, 1184, 1185, 1400])
def test_errors_of_ipv6(size: int) -> None:
    packet = p.udp_packet(OWN6, PEER6, b"x" * size)
    cases = (
        (host_unreachable(packet), b"\1\3", 0),
        (too_big(packet, 1300), b"\2\0", 1300),
        (too_big(packet, 600), b"\2\0", 1280),
    )
    for answer, kind, rest in cases:
        assert answer is not None
        assert answer[0] >> 4 == 6
        assert int.from_bytes(answer[4:6], "big") == len(answer) - 40
        assert answer[6] == p.ICMP6
        assert answer[8:40] == IPv6Address(PEER6).packed + IPv6Address(OWN6).packed
        assert answer[40:42] == kind
        assert answer[44:48] == rest.to_bytes(4, "big")
        assert answer[48:] == packet[:1232]
        assert p.transport_valid(answer)


def test_none_about_icmpv6_errors_and_redirects() -> None:
    for kind in range(256):
        answer = host_unreachable(p.ip6(OWN6, PEER6, p.ICMP6, p.icmp6(OWN6, PEER6, kind, 0, bytes(4))))
        assert (answer is None) == (kind < 128 or kind == 137)


def test_none_about_later_fragments_and_scraps_of_ipv6() -> None:
    first, *later = p.fragments6(p.udp_packet(OWN6, PEER6, b"x" * 64), 32)
    assert host_unreachable(first) is not None
    assert [host_unreachable(part) for part in later] == [None] * len(later)
    packet = p.udp_packet(OWN6, PEER6)
    for size in range(48):
        assert host_unreachable(packet[:size]) is None
    assert host_unreachable(packet[:48]) is not None
    assert host_unreachable(p.extended(packet, (p.ROUTING, bytes(8)))) is None


# -- echoes


def answered(request: bytes, *, options: bytes = b"") -> bytes:
    """What a peer makes of an echo request."""
    return p.ip(PEER, "0.0.0.0", p.ICMP, p.icmp(0, 0, request[24:]), options=options)


@given(token=st.binary(min_size=8, max_size=8), size=st.integers(0, 1500))
def test_an_echo_comes_back(token: bytes, size: int) -> None:
    request = echo_request(IPv4Address(OWN), token, size)
    assert len(request) == max(44, size)
    assert int.from_bytes(request[2:4], "big") == len(request)
    assert request[12:20] == IPv4Address(OWN).packed + bytes(4)
    assert request[20] == 8
    assert p.valid(request[:20])
    assert p.valid(request[20:])
    assert echo_token(request) is None
    assert echo_token(answered(request)) == token
    assert echo_token(answered(request, options=b"\1" * 8)) == token
    assert echo_token(answered(request) + bytes(9)) == token


def test_a_plain_echo_has_a_token_too() -> None:
    assert echo_token(answered(echo_request(IPv4Address(OWN)))) == bytes(8)


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0x65), (0, 0x44), (7, 1), (9, p.UDP), (20, 8), (24, 1), (28, 0), (35, 0)]
)
def test_other_packets_are_no_answers(at: int, value: int) -> None:
    packet = bytearray(answered(echo_request(IPv4Address(OWN), b"12345678")))
    packet[at] = value
    assert echo_token(bytes(packet)) is None


def test_answers_cut_short() -> None:
    packet = answered(echo_request(IPv4Address(OWN), b"12345678", 100))
    for size in range(len(packet)):
        assert echo_token(packet[:size]) is None
    for total in range(44):
        assert echo_token(packet[:2] + bytes([0, total]) + packet[4:]) is None
    # The first fragment of a long answer will do.
    first, second = p.fragments(packet, 48)
    assert echo_token(first) == b"12345678"
    assert echo_token(second) is None
