"""pqtun.pump.mss: connections that begin learn how large their segments may be."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.pump.inner import largest
from pqtun.pump.mss import clamped
from tests.pump import packets as p

ENDS = {4: ("10.43.0.1", "10.43.0.7"), 6: ("fd00::1", "fd00::2")}
HEADERS = {4: 40, 6: 60}
TRANSPORT = {4: 20, 6: 40}
SYN, SYN_ACK = 2, 0x12
TIMESTAMPS = bytes([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0])


def mss(size: int) -> bytes:
    return struct.pack("!BBH", 2, 4, size)


def tcp(version: int, options: bytes, *, flags: int = SYN, data: bytes = b"", before: bytes = b"") -> bytes:
    """A TCP packet; ``before``: options of IPv4."""
    source, destination = ENDS[version]
    offset = (20 + len(options)) // 4 << 4
    segment = struct.pack("!HHIIBBHHH", 1000, 80, 1, 0, offset, flags, 1024, 0, 0) + options + data
    value = p.checksum(p.pseudo(source, destination, p.TCP, len(segment)) + segment)
    segment = segment[:16] + struct.pack("!H", value) + segment[18:]
    if version == 6:
        return p.ip6(source, destination, p.TCP, segment)
    return p.ip(source, destination, p.TCP, segment, options=before)


@pytest.mark.parametrize(("version", "mtu"), [(4, 576), (4, 1100), (6, 1300), (6, 1400)])
@pytest.mark.parametrize("flags", [SYN, SYN_ACK, 0xC2])
def test_a_larger_one_is_lowered(version: int, mtu: int, flags: int) -> None:
    most = mtu - HEADERS[version]
    want = tcp(version, mss(most) + TIMESTAMPS, flags=flags)
    for said in (most + 1, 1460, 0xFFFF):
        packet = tcp(version, mss(said) + TIMESTAMPS, flags=flags)
        assert clamped(packet, mtu) == want
        assert clamped(bytearray(packet), mtu) == want
        assert packet == tcp(version, mss(said) + TIMESTAMPS, flags=flags), "what is given stays"


def test_every_path_of_ipv6_takes_1280_bytes() -> None:
    assert clamped(tcp(6, mss(1460)), 600) == tcp(6, mss(1220))


@pytest.mark.parametrize("said", [0, 1, 536, 1059, 1060])
def test_it_is_never_raised(said: int) -> None:
    packet = tcp(4, mss(said))
    assert clamped(packet, 1100) is packet


@pytest.mark.parametrize("before", [b"\1", b"\1\1", b"\1\1\1", b"\3\3\7", b"\x1e\5\1\2\3"])
def test_at_odd_places_and_more_than_once(before: bytes) -> None:
    def options(size: int) -> bytes:
        found = before + mss(size) + b"\1" + mss(size) + mss(9)
        return found + bytes(-len(found) % 4)

    assert clamped(tcp(4, options(1460)), 1100) == tcp(4, options(1060))


@pytest.mark.parametrize(
    "options",
    [
        bytes([0, 2, 4, 9, 9, 0, 0, 0]),  # behind the end
        bytes([2, 5, 9, 9, 9, 1, 1, 1]),  # of another length
        bytes([2, 3, 9, 1]),
        bytes([2, 0, 9, 9]),
        bytes([3, 1, 2, 4, 9, 9, 1, 1]),
        bytes([3, 9, 2, 4, 9, 9, 1, 1]),
        bytes([1, 1, 2, 4]),
        bytes([1, 1, 1, 2]),
        b"",
    ],
)
def test_what_makes_no_sense_stays(options: bytes) -> None:
    packet = tcp(4, options, data=b"\2\4\xff\xff")
    assert clamped(packet, 1100) is packet


@pytest.mark.parametrize("version", [4, 6])
def test_only_whole_syns(version: int) -> None:
    good, mtu = tcp(version, mss(1460)), 1300
    assert clamped(good, mtu) != good
    for flags in (0x10, 0x18, 0x11, 4):
        packet = tcp(version, mss(1460), flags=flags)
        assert clamped(packet, mtu) is packet
    for size in range(len(good)):
        assert clamped(good[:size], mtu) == good[:size]


@pytest.mark.parametrize(("at", "value"), [(0, 0x44), (0, 0x55), (6, 0x20), (7, 1), (9, p.UDP), (32, 0x40), (32, 0xF0)])
def test_headers_that_are_something_else(at: int, value: int) -> None:
    packet = bytearray(tcp(4, mss(1460)))
    packet[at] = value
    assert clamped(packet, 1100) is packet


@pytest.mark.parametrize(("version", "at"), [(4, 3), (6, 5)])
def test_padding_is_no_part_of_a_header(version: int, at: int) -> None:
    packet, mtu = tcp(version, mss(1460)), 1300
    assert clamped(packet + b"padding", mtu) == tcp(version, mss(mtu - HEADERS[version])) + b"padding"
    for change in (-1, -4, 1):  # a length that ends within the header, and one that nothing is behind
        other = bytearray(packet)
        other[at] += change
        assert clamped(other, mtu) is other


def test_behind_options_of_ipv4_and_ipv6() -> None:
    assert clamped(tcp(4, mss(1460), before=bytes([1] * 8)), 1100) == tcp(4, mss(1060), before=bytes([1] * 8))
    options = (p.DESTINATION_OPTIONS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    assert clamped(p.extended(tcp(6, mss(1460)), options), 1300) == p.extended(tcp(6, mss(1240)), options)
    for header in ((p.FRAGMENT, bytes([0, 0, 0, 1, 0, 0, 0, 0])), (p.ROUTING, bytes(8))):
        packet = p.extended(tcp(6, mss(1460)), options, header)
        assert clamped(packet, 1300) is packet


@given(
    options=st.binary(max_size=40) | st.lists(st.sampled_from([1, 2, 4, 9]), max_size=40).map(bytes),
    flags=st.sampled_from([SYN, SYN_ACK, 0x10]),
    mtu=st.integers(576, 65535),
    version=st.sampled_from([4, 6]),
)
def test_any_options_end_in_a_packet_that_is_as_valid(options: bytes, flags: int, mtu: int, version: int) -> None:
    packet = tcp(version, options + bytes(-len(options) % 4), flags=flags)
    got = bytes(clamped(packet, mtu))
    at = TRANSPORT[version]
    assert got[: at + 16] == packet[: at + 16]
    assert p.transport_valid(got)
    assert bytes(clamped(got, mtu)) == got
    lowered = mss(largest(packet, mtu) - HEADERS[version])
    for place in range(at + 20, len(got) - 3):
        if got[place : place + 2] == lowered[:2]:
            assert got[place : place + 4] in (lowered, packet[place : place + 4])
