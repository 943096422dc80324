"""Control packets between two pqtun ends (doc/protocol.md section 8).

A control packet is an inner IPv4 packet of protocol 253 (RFC 3692) whose payload is the 6 bytes ``pqtun`` 01, then
TLVs: type (1 byte), length (2 bytes BE), value. A PQConnect host's kernel discards it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import IPv4Address
from struct import Struct
from typing import Final

from pqtun.protocol.constants import CONTROL_MAGIC, CONTROL_PROTOCOL, KEY_BYTES, TID_BYTES
from pqtun.protocol.errors import MessageError

PROTOCOL_VERSION: Final = 1
FEATURE_RESUME: Final = 1 << 0
FEATURE_IPV6_INSIDE: Final = 1 << 1
FEATURE_PADDING: Final = 1 << 2

BYE_STOPPING: Final = 0  # the program ends, and with it what it remembers
BYE_MAKING_ROOM: Final = 1  # the tunnel goes to make room for others; it may be resumed

_IPV4_HEADER = Struct(">BBHHHBBH4s4s")
_TLV = Struct(">BH")
_HELLO = Struct(">BIH")
_HELLO_TYPE, _PING_TYPE, _PONG_TYPE, _RESUME_TYPE, _BYE_TYPE = range(1, 6)
_PADDING_TYPE = 255  # zeros, for probes of a path; skipped like every unknown type
_TTL = 64

# Items of one packet: a hello, a ping, four tunnels to continue and padding, several times over. 65,000 bytes would
# hold 5900 pings, and their answer take 10 ms.
MAX_ITEMS: Final = 32


@dataclass(frozen=True, slots=True)
class Hello:
    """First packet of a client, answered by the server with its own: version, feature bits, MTU in bytes."""

    version: int
    features: int
    mtu: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a Pong with the same 8 bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a Ping."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """This tunnel continues the one that had this id; the proof (32 bytes) shows knowledge of its resume secret."""

    tid: bytes
    proof: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender is going away."""

    reason: int


Item = Hello | Ping | Pong | Resume | Bye


def encode(items: Sequence[Item], source: IPv4Address, size: int = 0) -> bytes:
    """Return the inner packet that carries ``items``, from ``source`` (its TUN address) to 0.0.0.0.

    It is padded to ``size`` bytes (at most 65535) if it is shorter by 3 or more.
    """
    payload = CONTROL_MAGIC + b"".join(_TLV.pack(kind, len(value)) + value for kind, value in map(_pack, items))
    padding = size - _IPV4_HEADER.size - len(payload) - _TLV.size
    if padding >= 0:
        payload += _TLV.pack(_PADDING_TYPE, padding) + bytes(padding)
    total = _IPV4_HEADER.size + len(payload)
    fields = [0x45, 0, total, 0, 0, _TTL, CONTROL_PROTOCOL, 0, source.packed, bytes(4)]
    words = int.from_bytes(_IPV4_HEADER.pack(*fields), "big")
    fields[7] = 0xFFFF - (words % 0xFFFF)
    return _IPV4_HEADER.pack(*fields) + payload


def resume_proof(resume_secret: bytes | bytearray, tid: bytes) -> bytes:
    """Return the proof (32 bytes) that the new tunnel ``tid`` continues the one that yielded ``resume_secret``."""
    return blake2b(tid, key=resume_secret).digest()[:KEY_BYTES]


def is_control(packet: bytes) -> bool:
    """Say whether an inner packet (IPv4 from its first byte) is meant as a control packet."""
    if len(packet) < _IPV4_HEADER.size or packet[0] >> 4 != 4 or packet[9] != CONTROL_PROTOCOL:
        return False
    return packet[4 * (packet[0] & 15) :].startswith(CONTROL_MAGIC)


def parse(packet: bytes) -> list[Item]:
    """Return the items of a control packet; unknown types are skipped, bytes past the IP total length ignored.

    Raises MessageError("control") if it is no control packet, a TLV does not fit or there are more than ``MAX_ITEMS``.
    """
    if not is_control(packet):
        raise MessageError("control")
    header, total = 4 * (packet[0] & 15), int.from_bytes(packet[2:4], "big")
    if not header + len(CONTROL_MAGIC) <= total <= len(packet):
        raise MessageError("control")
    items: list[Item] = []
    offset = header + len(CONTROL_MAGIC)
    seen = 0
    while offset < total:
        start = offset + _TLV.size
        seen += 1
        if start > total or seen > MAX_ITEMS:
            raise MessageError("control")
        kind, length = _TLV.unpack_from(packet, offset)
        offset = start + length
        if offset > total:
            raise MessageError("control")
        item = _unpack(kind, packet[start:offset])
        if item is not None:
            items.append(item)
    return items


def _pack(item: Item) -> tuple[int, bytes]:
    match item:
        case Hello(version, features, mtu):
            return _HELLO_TYPE, _HELLO.pack(version, features, mtu)
        case Ping(data):
            return _PING_TYPE, data
        case Pong(data):
            return _PONG_TYPE, data
        case Resume(tid, proof):
            return _RESUME_TYPE, tid + proof
        case Bye(reason):
            return _BYE_TYPE, reason.to_bytes(1, "big")


_SIZES: dict[int, int] = {
    _HELLO_TYPE: _HELLO.size,
    _PING_TYPE: 8,
    _PONG_TYPE: 8,
    _RESUME_TYPE: TID_BYTES + KEY_BYTES,
    _BYE_TYPE: 1,
}


def _unpack(kind: int, value: bytes) -> Item | None:
    if kind not in _SIZES:
        return None
    if len(value) != _SIZES[kind]:
        raise MessageError("control")
    if kind == _HELLO_TYPE:
        return Hello(*_HELLO.unpack(value))
    if kind == _PING_TYPE:
        return Ping(value)
    if kind == _PONG_TYPE:
        return Pong(value)
    if kind == _RESUME_TYPE:
        return Resume(value[:TID_BYTES], value[TID_BYTES:])
    return Bye(value[0])
