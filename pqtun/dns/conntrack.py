"""The kernel's events of new UDP flows towards the DNS proxy: their netlink socket and their format.

Format: linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h, netlink(7).
"""

import ctypes
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pqtun.protocol.errors import MessageError

RECEIVE_BYTES: Final = 4 << 20  # some 3,000 events that nobody has read yet
MAX_EVENT: Final = 8192

_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NFNLGRP_CONNTRACK_NEW: Final = 1
# NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW, _GET, _DELETE
_CONNTRACK_NEW: Final = 0x0100
_CONNTRACK_GET: Final = 0x0101
_CONNTRACK_DELETE: Final = 0x0102
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 0x01
_NLM_F_ACK: Final = 0x04
_NLM_F_DUMP: Final = 0x300
_ANSWER_SECONDS: Final = 5.0
_DUMP_BYTES: Final = 65536
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_FILTER: Final = 26

_HEADERS: Final = struct.Struct("=IHHIIBBH")  # struct nlmsghdr, struct nfgenmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_CTA_TUPLE_ORIG: Final = 1
_CTA_TUPLE_REPLY: Final = 2
_CTA_ZONE: Final = 18
_CTA_TUPLE_IP: Final = 1
_CTA_TUPLE_PROTO: Final = 2
_CTA_PROTO_NUM: Final = 1
_CTA_PROTO_SRC_PORT: Final = 2
_CTA_PROTO_DST_PORT: Final = 3
# CTA_IP_V4_SRC, CTA_IP_V4_DST, bytes; CTA_IP_V6_SRC, CTA_IP_V6_DST, bytes.
_ADDRESSES: Final = {int(socket.AF_INET): (1, 2, 4), int(socket.AF_INET6): (3, 4, 16)}

# Instructions of classic BPF (linux/filter.h); the two FIND look in A for the attribute numbered X, A = 0 if missing.
_LOAD_IMMEDIATE: Final = 0x00
_LOAD_X_IMMEDIATE: Final = 0x01
_RETURN: Final = 0x06
_COPY_TO_X: Final = 0x07
_JUMP_IF_EQUAL: Final = 0x15
_LOAD_ANCILLARY: Final = 0x20
_LOAD_HALF_AT_X: Final = 0x48
_LOAD_BYTE_AT_X: Final = 0x50
_FIND: Final = 0xFFFFF000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR
_FIND_NESTED: Final = 0xFFFFF000 + 16  # SKF_AD_OFF + SKF_AD_NLATTR_NEST

Endpoint = tuple[bytes, int]  # packed address of 4 or 16 bytes, port


@dataclass(frozen=True, slots=True)
class Flow:
    """A new UDP flow that was redirected: whom a program asked, and who the program is in the eyes of the proxy."""

    destination: Endpoint
    seen_source: Endpoint


def open_events(asked: int, answering: int) -> socket.socket:
    """Open the non-blocking netlink socket with an event for each new UDP flow to port ``asked`` that is redirected.

    ``answering`` is the port that it is redirected to. What anybody, on the network too, sends straight to that port
    makes no event. Opening needs CAP_NET_ADMIN; reading needs nothing. Raises OSError.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
        program = _filter(asked, answering)
        buffer = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_CONNTRACK_NEW)
    except BaseException:
        sock.close()
        raise
    return sock


def _filter(asked: int, answering: int) -> bytes:
    """The BPF program that passes events of UDP flows to the port ``asked`` whose answers come from ``answering``."""
    reject = -1

    def find(where: int, attribute: int) -> list[tuple[int, int, int, int]]:
        return [
            (_LOAD_X_IMMEDIATE, 0, 0, attribute),
            (_LOAD_ANCILLARY, 0, 0, where),
            (_JUMP_IF_EQUAL, reject, 0, 0),
        ]

    def require(side: int, attribute: int, load: int, value: int) -> list[tuple[int, int, int, int]]:
        return [
            (_LOAD_IMMEDIATE, 0, 0, _HEADERS.size),
            *find(_FIND, side),
            *find(_FIND_NESTED, _CTA_TUPLE_PROTO),
            *find(_FIND_NESTED, attribute),
            (_COPY_TO_X, 0, 0, 0),
            (load, 0, 0, _ATTRIBUTE.size),
            (_JUMP_IF_EQUAL, 0, reject, value),
        ]

    program = [
        *require(_CTA_TUPLE_REPLY, _CTA_PROTO_SRC_PORT, _LOAD_HALF_AT_X, answering),
        *require(_CTA_TUPLE_REPLY, _CTA_PROTO_NUM, _LOAD_BYTE_AT_X, socket.IPPROTO_UDP),
        *require(_CTA_TUPLE_ORIG, _CTA_PROTO_DST_PORT, _LOAD_HALF_AT_X, asked),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    ]
    last = len(program) - 1
    code = b""
    for position, (operation, *jumps, value) in enumerate(program):
        true, false = (last - position - 1 if jump == reject else jump for jump in jumps)
        code += struct.pack("=HBBI", operation, true, false, value)
    return code


def forget_flows(port: int) -> None:
    """Make conntrack forget all UDP flows towards ``port``, so that their next packets meet the rules of now.

    A program that asks through one socket for hours would else go on as it began. Needs CAP_NET_ADMIN. Raises OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        sock.settimeout(_ANSWER_SECONDS)
        for family in _ADDRESSES:
            for flow in _dump(sock, family, port):
                if _leads_to(flow, family, port):
                    kept = b"".join(
                        _attribute(kind, flow[kind]) for kind in (_CTA_TUPLE_ORIG, _CTA_ZONE) if kind in flow
                    )
                    sock.send(_request(_CONNTRACK_DELETE, _NLM_F_REQUEST | _NLM_F_ACK, family, kept))
                    sock.recv(_DUMP_BYTES)  # it may have ended by itself: whatever the answer says is fine


def _dump(sock: socket.socket, family: int, port: int) -> list[dict[int, bytes]]:
    """The attributes of the flows of a family that have ``port`` as a destination, in either direction."""
    # There may be hundreds of thousands of others, not worth being taken apart.
    needle = _attribute(_CTA_PROTO_DST_PORT, port.to_bytes(2, "big"))[:6]
    sock.send(_request(_CONNTRACK_GET, _NLM_F_REQUEST | _NLM_F_DUMP, family, b""))
    found: list[dict[int, bytes]] = []
    while True:
        data = sock.recv(_DUMP_BYTES)
        position = 0
        while position + _HEADERS.size <= len(data):
            length, kind, *_ = _HEADERS.unpack_from(data, position)
            if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADERS.size:
                return found
            if needle in data[position : position + length]:
                found.append(_attributes(data[position + _HEADERS.size : position + length]))
            position += (length + 3) & ~3  # NLMSG_ALIGN


def _leads_to(flow: dict[int, bytes], family: int, port: int) -> bool:
    try:
        return _endpoints(flow.get(_CTA_TUPLE_ORIG), family)[1][1] == port
    except MessageError:  # not UDP
        return False


def _request(kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    return _HEADERS.pack(_HEADERS.size + len(attributes), kind, flags, 0, 0, family, 0, 0) + attributes


def _attribute(kind: int, value: bytes) -> bytes:
    nested = 0x8000 if kind == _CTA_TUPLE_ORIG else 0  # NLA_F_NESTED
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind | nested) + value + bytes(-len(value) % 4)


def parse_event(event: bytes) -> Flow:
    """Read one netlink datagram with one event of a new UDP flow.

    Raises MessageError("conntrack_event") for anything else.
    """
    if len(event) < _HEADERS.size:
        raise MessageError("conntrack_event")
    length, kind, _flags, _sequence, _pid, family, _version, _resource = _HEADERS.unpack_from(event)
    if length != len(event) or kind != _CONNTRACK_NEW or family not in _ADDRESSES:
        raise MessageError("conntrack_event")
    tuples = _attributes(event[_HEADERS.size :])
    _source, destination = _endpoints(tuples.get(_CTA_TUPLE_ORIG), family)
    _proxy, seen_source = _endpoints(tuples.get(_CTA_TUPLE_REPLY), family)
    return Flow(destination, seen_source)


def _endpoints(nested: bytes | None, family: int) -> tuple[Endpoint, Endpoint]:
    """Source and destination in a CTA_TUPLE attribute."""
    source_type, destination_type, size = _ADDRESSES[family]
    parts = _attributes(nested)
    addresses = _attributes(parts.get(_CTA_TUPLE_IP))
    protocol = _attributes(parts.get(_CTA_TUPLE_PROTO))
    if protocol.get(_CTA_PROTO_NUM) != bytes((socket.IPPROTO_UDP,)):
        raise MessageError("conntrack_event")
    source = addresses.get(source_type, b""), protocol.get(_CTA_PROTO_SRC_PORT, b"")
    destination = addresses.get(destination_type, b""), protocol.get(_CTA_PROTO_DST_PORT, b"")
    return _endpoint(*source, size), _endpoint(*destination, size)


def _endpoint(address: bytes, port: bytes, size: int) -> Endpoint:
    if len(address) != size or len(port) != 2:
        raise MessageError("conntrack_event")
    return address, int.from_bytes(port, "big")


def _attributes(data: bytes | None) -> dict[int, bytes]:
    if data is None:
        raise MessageError("conntrack_event")
    return dict(_each_attribute(data))


def _each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        if len(data) - position < _ATTRIBUTE.size:
            raise MessageError("conntrack_event")
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if not _ATTRIBUTE.size <= length <= len(data) - position:
            raise MessageError("conntrack_event")
        yield kind & _TYPE_MASK, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3  # NLA_ALIGN
