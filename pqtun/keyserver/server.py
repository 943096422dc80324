"""The key server: answers each request with a datagram of the same length, and nothing else with nothing."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterable

from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.limits import BATCH, MAX_DATAGRAM
from pqtun.protocol.constants import EPHEMERAL_REQUEST, STATIC_REQUEST
from pqtun.protocol.handshake import EphemeralPublicKey
from pqtun.protocol.keydatagram import (
    ephemeral_request,
    ephemeral_response,
    static_request,
    static_response,
)
from pqtun.protocol.keytree import NODES, KeyTree, is_node

# Type, length and depth, length and pos, length: what tells one request from another; the rest is zeros.
_HEADER = 11

_IP_PKTINFO = 8  # <linux/in.h>; Python 3.11 has no name for it
_CONTROL_BYTES = socket.CMSG_SPACE(20)  # room for struct in6_pktinfo, the larger of the two


class KeyServer:
    """Sans-IO. All static requests and responses are made at the start (2.2 MB).

    `counters` has the answers by kind and the drops by reason.
    """

    def __init__(self, tree: KeyTree, ring: EphemeralRing) -> None:
        self.counters: Counter[str] = Counter()
        self._ring = ring
        self._static: dict[bytes, tuple[bytes, bytes]] = {}
        for node in NODES:
            request = static_request(node)
            self._static[request[:_HEADER]] = request, static_response(node, tree.node(node))
        self._ephemeral_request = ephemeral_request()
        self._ephemeral_key: EphemeralPublicKey | None = None
        self._ephemeral_response = b""

    def answer(self, datagram: bytes) -> bytes | None:
        """The response, exactly as long as the request; None (and a counted drop) for whatever is no request."""
        known = self._static.get(datagram[:_HEADER])
        if known is not None and known[0] == datagram:
            self.counters["static"] += 1
            return known[1]
        if datagram[:2] == EPHEMERAL_REQUEST and datagram == self._ephemeral_request:
            self.counters["ephemeral"] += 1
            return self._ephemeral()
        self.counters[f"dropped_{_fault(datagram, known is not None)}"] += 1
        return None

    def _ephemeral(self) -> bytes:
        key = self._ring.current()
        if key is not self._ephemeral_key:
            self._ephemeral_key = key
            self._ephemeral_response = ephemeral_response(key.sntrup_pk, key.x25519_pk)
        return self._ephemeral_response


def _fault(datagram: bytes, header_known: bool) -> str:
    """Why a datagram is no request, in parse_request()'s words, but at a cost that the sender cannot raise."""
    if datagram[:2] not in (STATIC_REQUEST, EPHEMERAL_REQUEST):
        return "type"
    if header_known:
        return "padding" if len(datagram) == _HEADER + int.from_bytes(datagram[9:_HEADER], "big") else "length"
    if datagram[:4] != STATIC_REQUEST + b"\0\1" or datagram[5:7] != b"\0\2" or len(datagram) < _HEADER:
        return "shape"
    return "length" if is_node((datagram[4], int.from_bytes(datagram[7:9], "little"))) else "node"


class KeyServerSocket:
    """Serves over bound UDP sockets (IPv4 or IPv6), which it closes at the end.

    Their buffers stay as they are: who may have larger ones than others sets them, and the worker may not.
    Each answer leaves from the address that was asked, which a connected client insists on: IP_PKTINFO of ip(7) and
    IPV6_RECVPKTINFO of RFC 3542, 6.1.
    """

    def __init__(self, server: KeyServer, socks: Iterable[socket.socket]) -> None:
        self.server = server
        self._socks = list(socks)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begins to serve on the running event loop. Raises OSError if a socket is not what it must be."""
        self._loop = asyncio.get_running_loop()
        for sock in self._socks:
            sock.setblocking(False)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._loop.add_reader(sock, self._readable, sock)

    def close(self) -> None:
        """Stops serving and closes the sockets. May be called again."""
        for sock in self._socks:
            if self._loop is not None:
                self._loop.remove_reader(sock)
            sock.close()
        self._socks.clear()

    def _readable(self, sock: socket.socket) -> None:
        answer = self.server.answer
        counters = self.server.counters
        for _ in range(BATCH):
            try:
                datagram, control, _flags, peer = sock.recvmsg(MAX_DATAGRAM, _CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                counters["dropped_receive_error"] += 1
                return
            response = answer(datagram)
            if response is None:
                continue
            try:
                sock.sendmsg((response,), [_from_asked(*item) for item in control], 0, peer)
            except BlockingIOError:
                counters["dropped_send_buffer"] += 1
            except OSError:
                counters["dropped_send_error"] += 1


def _from_asked(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """The packet-info message that makes an answer leave from the address that the request came to.

    The interface index becomes 0, so that the routing table chooses: the way back may be another one.
    """
    if level == socket.IPPROTO_IP:
        return level, kind, bytes(4) + data[4:8] + bytes(4)  # struct in_pktinfo: index, local address, header address
    return level, kind, data[:16] + bytes(4)  # struct in6_pktinfo: address, index
