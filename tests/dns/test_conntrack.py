from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.dns.conntrack import Flow, parse_event
from pqtun.protocol.errors import MessageError

# Recorded: 192.0.2.1 asks 9.9.9.9, 2001:db8::1 asks 2001:db8::53; the proxy is on port 54756.
EVENT4 = bytes.fromhex(
    "9400000000010006000000000000000002000000340001801400018008000100c000020108000200090909091c000280"
    "05000100110000000600020096a1000006000300003500003400028014000180080001007f00000108000200c0000201"
    "1c000280050001001100000006000200d5e400000600030096a1000008000c0011c5d75008000300000001a808000700"
    "0000001e"
)
EVENT6 = bytes.fromhex(
    "c40000000001000600000000000000000a0000004c0001802c0001801400030020010db8000000000000000000000001"
    "1400040020010db80000000000000000000000531c0002800500010011000000060002008bdb00000600030000350000"
    "4c0002802c00018014000300000000000000000000000000000000011400040020010db8000000000000000000000001"
    "1c000280050001001100000006000200d5e40000060003008bdb000008000c00362ae8d308000300000001a808000700"
    "0000001e"
)


def test_recorded_events() -> None:
    asker = bytes((192, 0, 2, 1)), 0x96A1
    assert parse_event(EVENT4) == Flow((bytes((9, 9, 9, 9)), 53), asker)
    asker6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 0x8BDB
    assert parse_event(EVENT6) == Flow((socket.inet_pton(socket.AF_INET6, "2001:db8::53"), 53), asker6)


@pytest.mark.parametrize("event", [EVENT4, EVENT6])
def test_every_other_size_is_rejected(event: bytes) -> None:
    for size in range(len(event)):
        with pytest.raises(MessageError):
            parse_event(event[:size])
    for more in (b"\0", bytes(4), event):
        with pytest.raises(MessageError):
            parse_event(event + more)


def relength(event: bytes) -> bytes:
    return struct.pack("=I", len(event)) + event[4:]


@pytest.mark.parametrize("event", [EVENT4, EVENT6])
def test_every_cut_with_a_fitting_length_is_read_or_rejected(event: bytes) -> None:
    tuples_end = event.index(b"\x08\x00\x0c\x00")
    for size in range(20, len(event)):
        cut = relength(event[:size])
        if size < tuples_end or (size - tuples_end) % 4:
            with pytest.raises(MessageError, match="conntrack_event"):
                parse_event(cut)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"\x00\x01\x00\x06", b"\x02\x01\x00\x06", "conntrack_event"),  # a flow's end
        (b"\x05\x00\x01\x00\x11", b"\x05\x00\x01\x00\x06", "conntrack_event"),  # TCP
        (b"\x02\x00\x00\x00\x34", b"\x0a\x00\x00\x00\x34", "conntrack_event"),  # IPv6 with IPv4 addresses
        (b"\x08\x00\x02\x00\x09\x09\x09\x09", b"\x08\x00\x03\x00\x09\x09\x09\x09", "conntrack_event"),
        (b"\x06\x00\x03\x00\x00\x35", b"\x05\x00\x03\x00\x00\x35", "conntrack_event"),
        (b"\x09\x09\x09\x09\x1c\x00\x02\x80", b"\x7f\x00\x00\x01\x1c\x00\x02\x80", None),
    ],
)
def test_other_events_are_rejected(old: bytes, new: bytes, reason: str | None) -> None:
    changed = EVENT4.replace(old, new, 1)
    assert changed != EVENT4
    if reason is None:  # a lookup that was meant for the loopback's own resolver
        assert parse_event(changed).destination == (bytes((127, 0, 0, 1)), 53)
    else:
        with pytest.raises(MessageError, match=reason):
            parse_event(changed)


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_rejected(data: bytes, headed: bool) -> None:
    event = relength(EVENT4[:20] + data) if headed else data
    with pytest.raises(MessageError):
        parse_event(event)


@given(st.sampled_from([EVENT4, EVENT6]), st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=5))
def test_damaged_events_raise_nothing_else(event: bytes, damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(event)
    for position, value in damage:
        damaged[position % len(damaged)] = value
    try:
        parse_event(bytes(damaged))
    except MessageError:
        pass
