"""pqtun.pump.icmp: what a program is told when its peer cannot be reached."""

from ipaddress import IPv4Address

import pytest

from pqtun.pump.icmp import host_unreachable
from tests.pump import packets as p

OWN, PEER = "10.43.0.1", "10.43.0.7"


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
