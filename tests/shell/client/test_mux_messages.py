from __future__ import annotations

from dataclasses import fields
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import MessageError
from pqtun.shell.client import mux_messages
from pqtun.shell.client.mux_messages import (
    MAX_PACKET,
    MAX_VARIABLES,
    PATH_PORT,
    Alive,
    CloseForward,
    Decoder,
    ExitMessage,
    Forward,
    Hello,
    Message,
    NewSession,
    OpenForward,
    SessionOpened,
    StdioForward,
    Unknown,
    decode,
    encode,
)

KINDS = mux_messages.Message.__args__
uints = st.integers(0, 2**32 - 1)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ports = st.one_of(st.integers(0, 65535), st.just(PATH_PORT))
forwards = st.builds(Forward, st.sampled_from([1, 2, 3]), texts, ports, texts, ports)


def values(message: type, name: str, kind: object) -> st.SearchStrategy[object]:
    if message is Hello and name == "extensions":
        return st.lists(st.tuples(texts, texts), max_size=3).map(tuple)
    if name == "environment":
        return st.lists(texts, max_size=3).map(tuple)
    if message is StdioForward and name == "port":
        return ports
    return {int: uints, bool: st.booleans(), str: texts, Forward: forwards}[kind]


messages = st.one_of(
    [st.builds(kind, **{field.name: values(kind, field.name, field.type) for field in fields(kind)}) for kind in KINDS]
)


def wanted(message: Message) -> int:
    return {NewSession: 3, StdioForward: 2}.get(type(message), 0)


KNOWN = [
    (Hello(4), "00000008 00000001 00000004"),
    (
        NewSession(5, "", True, False, True, False, 0x7E, "vt100", "ls", ("A=b",)),
        (
            "00000036 10000002 00000005 00000000 00000001 00000000 00000001 00000000 0000007e"
            "00000005 7674313030 00000002 6c73 00000003 413d62"
        ),
    ),
    (
        OpenForward(6, Forward(2, "", 80, "/s", PATH_PORT)),
        "0000001e 10000006 00000006 00000002 00000000 00000050 00000002 2f73 fffffffe",
    ),
    (StdioForward(7, "", "h", 22), "00000015 10000008 00000007 00000000 00000001 68 00000016"),
    (Alive(1, 99), "0000000c 80000005 00000001 00000063"),
    (SessionOpened(1, 2), "0000000c 80000006 00000001 00000002"),
    (ExitMessage(2, 255), "0000000c 80000004 00000002 000000ff"),
]


@pytest.mark.parametrize(("message", "packet"), KNOWN)
def test_packets_are_as_openssh_sends_them(message: Message, packet: str) -> None:
    assert encode(message) == bytes.fromhex(packet)
    assert decode(bytes.fromhex(packet)[4:]) == message


@given(messages)
def test_round_trip(message: Message) -> None:
    packet = encode(message)
    assert len(packet) == 4 + int.from_bytes(packet[:4])
    assert decode(packet[4:]) == message


@given(messages)
def test_every_truncated_and_every_longer_packet_is_refused_or_another_one(message: Message) -> None:
    body = encode(message)[4:]
    for size in range(len(body)):
        try:
            assert decode(body[:size]) != message
        except MessageError:
            pass
    for more in (b"\0", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff"):
        if isinstance(message, Hello | NewSession):
            with pytest.raises(MessageError):  # these end in a list: what follows would have to be whole
                decode(body + more)
        else:
            with pytest.raises(MessageError, match="over_long"):
                decode(body + more)


@given(st.binary(max_size=200))
def test_nonsense_is_refused_with_a_message_error_alone(data: bytes) -> None:
    for body in (data, *(pack(">I", kind.TYPE) + data for kind in KINDS)):
        try:
            message = decode(body)
        except MessageError:
            continue
        if not isinstance(message, Unknown):
            assert decode(encode(message)[4:]) == message


@pytest.mark.parametrize("port", [65536, PATH_PORT - 1, PATH_PORT + 1])
def test_ports(port: int) -> None:
    for forward in (Forward(1, "", port, "h", 1), Forward(1, "", 1, "h", port)):
        with pytest.raises(MessageError, match="port"):
            decode(encode(CloseForward(1, forward))[4:])
    with pytest.raises(MessageError, match="port"):
        decode(encode(StdioForward(1, "", "h", port))[4:])


def test_bounds() -> None:
    many = NewSession(1, "", False, False, False, False, 0, "", "", ("A=",) * MAX_VARIABLES)
    assert decode(encode(many)[4:]) == many
    with pytest.raises(MessageError, match="too_many"):
        decode(encode(many)[4:] + pack(">I", 0))
    fits = NewSession(1, "", False, False, False, False, 0, "", "x" * (MAX_PACKET - 40))
    assert Decoder().feed(encode(fits)) == []  # its descriptors are yet to come
    with pytest.raises(MessageError, match="too_long"):
        encode(NewSession(1, "", False, False, False, False, 0, "", "x" * (MAX_PACKET - 39)))
    with pytest.raises(MessageError, match="too_long"):
        Decoder().feed(pack(">I", MAX_PACKET + 1))
    with pytest.raises(MessageError, match="zero_byte"):
        decode(pack(">III", StdioForward.TYPE, 1, 1) + b"\0" + pack(">II", 0, 22))


def test_what_is_unknown_keeps_its_number() -> None:
    assert decode(pack(">III", 0x1000000F, 7, 1)) == Unknown(0x1000000F, 7)


@given(st.lists(messages, max_size=4), st.lists(st.integers(1, 40), min_size=1))
def test_a_stream_in_any_pieces_gives_its_messages_with_their_descriptors(sent: list[Message], cuts: list[int]) -> None:
    # Descriptors come beside a byte each, and a read ends behind such a byte.
    pieces: list[tuple[bytes, list[int]]] = []
    expected, number = [], 100
    for message in sent:
        packet = encode(message)
        while packet:
            cut = cuts[len(pieces) % len(cuts)]
            pieces.append((packet[:cut], []))
            packet = packet[cut:]
        numbers = list(range(number, number := number + wanted(message)))
        pieces += [(b"\0", [fd]) for fd in numbers]
        expected.append((message, numbers))
    decoder = Decoder()
    got = [step for data, fds in pieces for step in decoder.feed(data, fds)]
    assert got == expected
    assert decoder.unclaimed == []


def test_descriptors_that_nothing_asks_for_or_that_lack() -> None:
    session = encode(NewSession(1, "", False, False, False, False, 0, "", ""))
    for fds in ([], [5], [5, 6], [5, 6, 7, 8]):
        decoder = Decoder()
        with pytest.raises(MessageError, match="descriptors"):
            decoder.feed(session + b"\0\0\0", fds)
        assert decoder.unclaimed == fds
    decoder = Decoder()
    with pytest.raises(MessageError, match="descriptors"):
        decoder.feed(session + b"\0\1\0", [5, 6, 7])
