import hashlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol import control
from pqtun.protocol.errors import MessageError

SOURCE = IPv4Address("10.43.0.1")
EIGHT, THIRTY_TWO = st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32)
ITEM = st.one_of(
    st.builds(control.Hello, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 65535)),
    st.builds(control.Ping, EIGHT),
    st.builds(control.Pong, EIGHT),
    st.builds(control.Resume, THIRTY_TWO, THIRTY_TWO),
    st.builds(control.Bye, st.integers(0, 255)),
)


@given(st.lists(ITEM, max_size=6), st.binary(max_size=20))
def test_round_trip_with_padding(items, padding):
    packet = control.encode(items, SOURCE)
    assert control.is_control(packet)
    assert control.parse(packet + padding) == items
    header = packet[:20]
    assert sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2)) % 0xFFFF == 0  # RFC 1071
    assert header[12:16] == SOURCE.packed
    assert header[16:20] == bytes(4)


def test_hello_on_the_wire():
    packet = control.encode([control.Hello(1, 0b101, 1396)], SOURCE)
    assert packet[20:] == b"pqtun\x01" + b"\x01\x00\x07" + b"\x01" + b"\x00\x00\x00\x05" + b"\x05\x74"


def test_unknown_types_are_skipped():
    packet = bytearray(control.encode([control.Bye(3), control.Bye(4)], SOURCE))
    packet[26] = 200
    assert control.parse(bytes(packet)) == [control.Bye(4)]


@pytest.mark.parametrize("item", [control.Hello(1, 0, 0), control.Ping(bytes(8)), control.Resume(bytes(32), bytes(32))])
def test_truncated_and_over_long(item):
    packet = control.encode([item], SOURCE)
    for size in range(len(packet)):
        with pytest.raises(MessageError):
            control.parse(packet[:size])
    for change in (-1, 1):
        wrong = bytearray(packet + b"\0")
        wrong[2:4] = (len(packet) + change).to_bytes(2, "big")
        with pytest.raises(MessageError):  # a TLV cut short, or one byte that is no TLV
            control.parse(bytes(wrong))
        wrong[28] += change  # the TLV itself has another size
        with pytest.raises(MessageError):
            control.parse(bytes(wrong))


@given(st.binary(max_size=100))
def test_random_payloads(data):
    packet = control.encode([], SOURCE)
    total = len(packet) + len(data)
    packet = packet[:2] + total.to_bytes(2, "big") + packet[4:] + data
    try:
        items = control.parse(packet)
    except MessageError:
        return
    assert control.parse(control.encode(items, SOURCE)) == items


@pytest.mark.parametrize("packet", [b"", b"\x45", bytes(26), b"\x60" + bytes(40)])
def test_other_packets(packet):
    assert not control.is_control(packet)
    with pytest.raises(MessageError, match="control"):
        control.parse(packet)


@given(st.lists(ITEM, max_size=3), st.integers(0, 65535))
def test_padded_to_a_size(items, size):
    bare = control.encode(items, SOURCE)
    padded = control.encode(items, SOURCE, size)
    assert control.parse(padded) == items
    assert len(padded) == (size if size >= len(bare) + 3 else len(bare))
    assert int.from_bytes(padded[2:4], "big") == len(padded)


def test_resume_proof():
    """The first half of BLAKE2b-512 (protocol.md section 8), which BLAKE2b-256 is not."""
    proof = control.resume_proof(bytearray(range(32)), bytes(32))
    assert proof == hashlib.blake2b(bytes(32), key=bytes(range(32)), digest_size=64).digest()[:32]
    assert proof != hashlib.blake2b(bytes(32), key=bytes(range(32)), digest_size=32).digest()


@pytest.mark.parametrize("kind", [2, 200])  # known or not
def test_only_so_many_items_are_looked_at(kind):
    item = bytes([kind]) + b"\0\x08" + bytes(8)
    for number in (control.MAX_ITEMS, control.MAX_ITEMS + 1):
        packet = bytearray(control.encode([], SOURCE) + number * item)
        packet[2:4] = len(packet).to_bytes(2, "big")
        if number <= control.MAX_ITEMS:
            assert control.parse(bytes(packet)) == [control.Ping(bytes(8))] * (number if kind == 2 else 0)
        else:
            with pytest.raises(MessageError):
                control.parse(bytes(packet))
