"""The key server: answers each request with a datagram of the same length, and nothing else with nothing."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable

from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.admission import Admission
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

_MAPPED = "::ffff:"
_IP_PKTINFO = 8  # <linux/in.h>; Python 3.11 has no name for it
_CONTROL_BYTES = socket.CMSG_SPACE(20)  # room for struct in6_pktinfo, the larger of the two


class KeyServer:
    """Sans-IO. All static requests and responses are made at the start (2.2 MB).

    `counters` has the answers by kind and the drops by reason. `admission` bounds the answers; without it nothing does.
    `expect` is told each source of a request for ephemeral keys, from where a handshake may come next.
    """

    def __init__(
        self,
        tree: KeyTree,
        ring: EphemeralRing,
        admission: Admission | None = None,
        expect: Callable[[str], None] | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._ring = ring
        self._admission = admission
        self._expect = expect
        self._static: dict[bytes, tuple[bytes, bytes]] = {}
        for node in NODES:
            request = static_request(node)
            self._static[request[:_HEADER]] = request, static_response(node, tree.node(node))
        self._ephemeral_request = ephemeral_request()
        self._ephemeral_key: EphemeralPublicKey | None = None
        self._ephemeral_response = b""

    def answer(self, datagram: bytes, host: str = "", now: float = 0.0) -> bytes | None:
        """The response, exactly as long as the request; None (and a counted drop) for whatever is no request.

        Where there is an admission, also for one too many of `host`, the source's address, at the time `now` (seconds).
        """
        known = self._static.get(datagram[:_HEADER])
        if known is not None and known[0] == datagram:
            return known[1] if self._admits("static", host, now) else None
        if datagram[:2] == EPHEMERAL_REQUEST and datagram == self._ephemeral_request:
            if not self._admits("ephemeral", host, now):
                return None
            if self._expect is not None:
                self._expect(host)
            return self._ephemeral()
        self.counters[f"dropped_{_fault(datagram, known is not None)}"] += 1
        return None

    def _admits(self, kind: str, host: str, now: float) -> bool:
        refusal = None
        if self._admission is not None:
            refusal = self._admission.refusal(host, ephemeral=kind == "ephemeral", now=now)
        self.counters[kind if refusal is None else f"dropped_{refusal}"] += 1
        return refusal is None

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

    def __init__(
        self, server: KeyServer, socks: Iterable[socket.socket], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds and never goes back."""
        self.server = server
        self._clock = clock
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
        now = self._clock()
        for _ in range(BATCH):
            try:
                datagram, control, _flags, peer = sock.recvmsg(MAX_DATAGRAM, _CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                counters["dropped_receive_error"] += 1
                return
            response = answer(datagram, _plain(peer[0]), now)
            if response is None:
                continue
            try:
                sock.sendmsg((response,), [_from_asked(*item) for item in control], 0, peer)
            except BlockingIOError:
                counters["dropped_send_buffer"] += 1
            except OSError:
                counters["dropped_send_error"] += 1


def _plain(host: str) -> str:
    """A source without scope, and an IPv4 one as such also where an IPv6 socket met it (RFC 4291, 2.5.5.2)."""
    if ":" not in host:
        return host
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host.partition("%")[0]


def _from_asked(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """The packet-info message that makes an answer leave from the address that the request came to.

    The interface index becomes 0, so that the routing table chooses: the way back may be another one.
    """
    if level == socket.IPPROTO_IP:
        return level, kind, bytes(4) + data[4:8] + bytes(4)  # struct in_pktinfo: index, local address, header address
    return level, kind, data[:16] + bytes(4)  # struct in6_pktinfo: address, index
