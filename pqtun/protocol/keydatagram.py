"""The key server's datagrams (doc/protocol.md section 4): a 2-byte type, then fields with 2-byte BE lengths.

A request is exactly as long as its response. Parsers accept exactly the shapes of the specification and raise
MessageError for anything else.
"""

from dataclasses import dataclass, field

from pqtun.protocol.constants import (
    EPHEMERAL_REQUEST,
    EPHEMERAL_RESPONSE,
    SNTRUP_PK_BYTES,
    STATIC_REQUEST,
    STATIC_RESPONSE,
    X25519_BYTES,
)
from pqtun.protocol.errors import MessageError
from pqtun.protocol.keytree import NodeId, is_node, node_length

_MAX_FIELDS = 3  # no datagram has more, and a forged one must not cost more


@dataclass(frozen=True, slots=True)
class StaticRequest:
    """Asks for one node of the key tree."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class EphemeralRequest:
    """Asks for the ephemeral public keys of this moment."""


@dataclass(frozen=True, slots=True)
class StaticResponse:
    """Brings one node, not yet verified."""

    node: NodeId
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EphemeralResponse:
    """Brings the server's ephemeral public keys: sntrup761 (1158) and X25519 (32); nothing authenticates them here."""

    sntrup_pk: bytes = field(repr=False)
    x25519_pk: bytes


def static_request(node: NodeId) -> bytes:
    """Return the request for a node. Raises ValueError for a node that the tree does not have."""
    return _pack_static(STATIC_REQUEST, node, bytes(node_length(node)))


def static_response(node: NodeId, data: bytes) -> bytes:
    """Return the response that brings a node. Raises ValueError if the size is not the node's."""
    if len(data) != node_length(node):
        raise ValueError("node of another size")
    return _pack_static(STATIC_RESPONSE, node, data)


def ephemeral_request() -> bytes:
    """Return the 1196-byte request for ephemeral keys."""
    return _pack(EPHEMERAL_REQUEST, bytes(SNTRUP_PK_BYTES), bytes(X25519_BYTES))


def ephemeral_response(sntrup_pk: bytes, x25519_pk: bytes) -> bytes:
    """Return the 1196-byte response. Raises ValueError for keys of another size."""
    if len(sntrup_pk) != SNTRUP_PK_BYTES or len(x25519_pk) != X25519_BYTES:
        raise ValueError("ephemeral key of another size")
    return _pack(EPHEMERAL_RESPONSE, sntrup_pk, x25519_pk)


def parse_request(datagram: bytes) -> StaticRequest | EphemeralRequest:
    """Return what a request asks for. Raises MessageError for any other datagram."""
    if datagram[:2] == STATIC_REQUEST:
        node, padding = _static_fields(datagram)
        if padding.count(0) != len(padding):
            raise MessageError("padding")
        return StaticRequest(node)
    if datagram[:2] == EPHEMERAL_REQUEST:
        if datagram != ephemeral_request():
            raise MessageError("shape")
        return EphemeralRequest()
    raise MessageError("type")


def parse_response(datagram: bytes) -> StaticResponse | EphemeralResponse:
    """Return what a response brings. Raises MessageError for any other datagram."""
    if datagram[:2] == STATIC_RESPONSE:
        return StaticResponse(*_static_fields(datagram))
    if datagram[:2] == EPHEMERAL_RESPONSE:
        fields = _unpack(datagram)
        if [len(piece) for piece in fields] != [SNTRUP_PK_BYTES, X25519_BYTES]:
            raise MessageError("shape")
        return EphemeralResponse(*fields)
    raise MessageError("type")


def _pack(kind: bytes, *fields: bytes) -> bytes:
    return kind + b"".join(len(piece).to_bytes(2, "big") + piece for piece in fields)


def _pack_static(kind: bytes, node: NodeId, data: bytes) -> bytes:
    depth, pos = node
    return _pack(kind, depth.to_bytes(1, "big"), pos.to_bytes(2, "little"), data)


def _unpack(datagram: bytes) -> list[bytes]:
    fields: list[bytes] = []
    offset = 2
    while offset < len(datagram):
        start = offset + 2
        offset = start + int.from_bytes(datagram[offset:start], "big")
        if start > len(datagram) or offset > len(datagram):
            raise MessageError("length")
        fields.append(datagram[start:offset])
        if len(fields) > _MAX_FIELDS:
            raise MessageError("shape")
    return fields


def _static_fields(datagram: bytes) -> tuple[NodeId, bytes]:
    fields = _unpack(datagram)
    if len(fields) != 3 or len(fields[0]) != 1 or len(fields[1]) != 2:
        raise MessageError("shape")
    node = fields[0][0], int.from_bytes(fields[1], "little")
    if not is_node(node):
        raise MessageError("node")
    if len(fields[2]) != node_length(node):
        raise MessageError("length")
    return node, fields[2]
