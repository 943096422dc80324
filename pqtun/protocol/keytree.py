"""The long-term public key as a hash tree, so that each piece is verified on its own (doc/protocol.md section 3)."""

from dataclasses import dataclass, field

from pqtun.protocol.constants import KEY_BYTES, MCELIECE_PK_BYTES, NODE_BYTES, X25519_BYTES
from pqtun.protocol.primitives import hash32

NodeId = tuple[int, int]  # depth 0 to 3, position from 0

_LENGTHS = [KEY_BYTES, 0, 0, MCELIECE_PK_BYTES + X25519_BYTES]  # bytes in a whole level


def _count(length: int) -> int:
    return -(-length // NODE_BYTES)


_LENGTHS[2] = KEY_BYTES * _count(_LENGTHS[3])
_LENGTHS[1] = KEY_BYTES * _count(_LENGTHS[2])

WIDTHS: tuple[int, ...] = tuple(_count(length) for length in _LENGTHS)  # 1, 1, 26, 910 nodes
NODES: tuple[NodeId, ...] = tuple((depth, pos) for depth, width in enumerate(WIDTHS) for pos in range(width))
DEPTH = len(WIDTHS) - 1
_HASHES_A_NODE = NODE_BYTES // KEY_BYTES


@dataclass(frozen=True, slots=True)
class ServerPublicKey:
    """A server's long-term public key: Classic McEliece (1047319 bytes) and X25519 (32 bytes)."""

    mceliece_pk: bytes = field(repr=False)
    x25519_pk: bytes


def is_node(node: NodeId) -> bool:
    """Say whether the tree has such a node."""
    depth, pos = node
    return 0 <= depth <= DEPTH and 0 <= pos < WIDTHS[depth]


def node_length(node: NodeId) -> int:
    """Return the size of a node in bytes. Raises ValueError for a node that the tree does not have."""
    if not is_node(node):
        raise ValueError("no such node")
    depth, pos = node
    return min(NODE_BYTES, _LENGTHS[depth] - pos * NODE_BYTES)


class KeyTree:
    """The whole tree over a public key, as a server holds it."""

    def __init__(self, key: ServerPublicKey) -> None:
        """Build the tree. Raises ValueError for keys of another size."""
        if len(key.mceliece_pk) != MCELIECE_PK_BYTES or len(key.x25519_pk) != X25519_BYTES:
            raise ValueError("public key of another size")
        level = key.mceliece_pk + key.x25519_pk
        self._nodes: dict[NodeId, bytes] = {}
        for depth in range(DEPTH, -1, -1):
            nodes = [level[i : i + NODE_BYTES] for i in range(0, len(level), NODE_BYTES)]
            self._nodes.update({(depth, pos): node for pos, node in enumerate(nodes)})
            level = b"".join(map(hash32, nodes))
        self.keyhash = self._nodes[0, 0]

    def node(self, node: NodeId) -> bytes:
        """Return a node's bytes. Raises KeyError for a node that the tree does not have."""
        return self._nodes[node]


@dataclass(frozen=True, slots=True)
class Added:
    """What one arriving node changed: nodes that are verified now, and nodes that turned out wrong."""

    verified: list[NodeId]
    rejected: list[NodeId]


class PartialTree:
    """A tree being downloaded for a known key hash. Nodes may come in any order.

    A node is verified by its parent. One that comes before its parent is held; of several different ones for the same
    place the newest is held. Memory is bounded by the size of the tree.
    """

    def __init__(self, keyhash: bytes) -> None:
        """Raises ValueError for a hash that has not 32 bytes."""
        if len(keyhash) != KEY_BYTES:
            raise ValueError("the key hash has 32 bytes")
        self._verified: dict[NodeId, bytes] = {(0, 0): keyhash}
        self._held: dict[NodeId, bytes] = {}

    @property
    def verified_count(self) -> int:
        """Number of verified nodes, the root (the key hash itself) included."""
        return len(self._verified)

    @property
    def complete(self) -> bool:
        """Whether every node is there and verified."""
        return len(self._verified) == len(NODES)

    def is_verified(self, node: NodeId) -> bool:
        """Whether this node is there and verified."""
        return node in self._verified

    def is_held(self, node: NodeId) -> bool:
        """Whether this node is there but waits for its parent."""
        return node in self._held

    def add(self, node: NodeId, data: bytes) -> Added:
        """Take a node that arrived; say what became verified and what must be asked for again."""
        if not is_node(node) or len(data) != node_length(node):
            return Added([], [node])
        if node in self._verified:
            return Added([], [] if data == self._verified[node] else [node])
        if self._expected_hash(node) is None:
            self._held[node] = data
            return Added([], [])
        added = Added([], [])
        waiting = {node: data}
        while waiting:
            place, piece = waiting.popitem()
            if hash32(piece) != self._expected_hash(place):
                added.rejected.append(place)
                continue
            self._verified[place] = piece
            added.verified.append(place)
            for child in _children(place):
                held = self._held.pop(child, None)
                if held is not None:
                    waiting[child] = held
        return added

    def public_key(self) -> ServerPublicKey:
        """Return the verified key. Raises ValueError before the tree is complete."""
        if not self.complete:
            raise ValueError("the tree is not complete")
        whole = b"".join(self._verified[DEPTH, pos] for pos in range(WIDTHS[DEPTH]))
        return ServerPublicKey(whole[:MCELIECE_PK_BYTES], whole[MCELIECE_PK_BYTES:])

    def _expected_hash(self, node: NodeId) -> bytes | None:
        depth, pos = node
        if depth == 1:
            return self._verified[0, 0]
        parent = self._verified.get((depth - 1, pos // _HASHES_A_NODE))
        if parent is None:
            return None
        offset = pos % _HASHES_A_NODE * KEY_BYTES
        return parent[offset : offset + KEY_BYTES]


def _children(node: NodeId) -> list[NodeId]:
    depth, pos = node
    if depth == DEPTH:
        return []
    if depth == 0:
        return [(1, 0)]
    first = pos * _HASHES_A_NODE
    return [(depth + 1, child) for child in range(first, min(first + _HASHES_A_NODE, WIDTHS[depth + 1]))]
