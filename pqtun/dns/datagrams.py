"""Lookups over UDP: each query goes on through a socket of its own, the answer comes back through the proxy's."""

import asyncio
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pqtun.dns.origin import OriginalDestinations, SocketAddress, Upstream
from pqtun.dns.question import empty_answer, is_answer, question_section

Rewrite = Callable[[bytes, Upstream], bytes]

MAX_QUERIES: Final = 400  # under way; each holds a descriptor, and a process has 1024 by default
ANSWER_SECONDS: Final = 10.0  # resolvers give up sooner, programs too
BATCH: Final = 64  # queries taken from a socket before others have their turn
MAX_DATAGRAM: Final = 65535


@dataclass(slots=True)
class _Query:
    """A query under way."""

    proxy: socket.socket
    source: SocketAddress
    resolver: Upstream
    upstream: socket.socket
    message: bytes
    question: bytes
    deadline: float


class DatagramProxy:
    """Serves the given UDP sockets. A raw socket per query: a source port of the kernel's choice, connected, so that
    only the resolver's address can answer and its ICMP errors are seen.
    """

    def __init__(
        self,
        socks: Sequence[socket.socket],
        origins: OriginalDestinations,
        rewrite: Rewrite,
        clock: Callable[[], float],
        counters: Counter[str],
    ) -> None:
        self._socks = socks
        self._origins = origins
        self._rewrite = rewrite
        self._clock = clock
        self._counters = counters
        self._queries: OrderedDict[int, _Query] = OrderedDict()  # by descriptor, oldest first
        self._buffer = bytearray(MAX_DATAGRAM)
        self._view = memoryview(self._buffer)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to serve, in the running loop."""
        self._loop = asyncio.get_running_loop()
        for sock in self._socks:
            self._loop.add_reader(sock.fileno(), self._take_queries, sock)

    def close(self) -> None:
        """Stop, and end all queries without an answer. The sockets stay open."""
        for sock in self._socks:
            self._loop.remove_reader(sock.fileno())
        while self._queries:
            self._end(next(iter(self._queries.values())))
        if self._timer is not None:
            self._timer.cancel()

    @property
    def outstanding(self) -> int:
        """Queries under way."""
        return len(self._queries)

    def _take_queries(self, proxy: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                size, source = proxy.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            self._counters["udp_queries"] += 1
            self._forward(proxy, bytes(self._view[:size]), source)

    def _forward(self, proxy: socket.socket, message: bytes, source: SocketAddress) -> None:
        question = question_section(message)
        if question is None:
            self._counters["udp_bad_query"] += 1
            return
        resolver = self._origins.of_datagram(proxy.family, source)
        if resolver is None:
            self._counters["udp_unknown_origin"] += 1
            return
        if len(self._queries) >= MAX_QUERIES:
            self._counters["udp_evicted"] += 1
            self._end(next(iter(self._queries.values())))
        try:
            upstream = socket.socket(proxy.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            self._counters["udp_no_socket"] += 1
            return
        query = _Query(proxy, source, resolver, upstream, message, question, self._clock() + ANSWER_SECONDS)
        try:
            upstream.connect(resolver)
            upstream.send(message)
        except OSError:
            upstream.close()
            self._fail(query)
            return
        self._queries[upstream.fileno()] = query
        self._loop.add_reader(upstream.fileno(), self._take_answers, query)
        if self._timer is None:
            self._timer = self._loop.call_later(ANSWER_SECONDS, self._expire)

    def _take_answers(self, query: _Query) -> None:
        while True:
            try:
                size = query.upstream.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:  # ICMP: nobody is there
                self._end(query)
                self._fail(query)
                return
            answer = bytes(self._view[:size])
            if is_answer(query.message, query.question, answer):
                break
            self._counters["udp_wrong_answer"] += 1
        self._end(query)
        rewritten = self._rewrite(answer, query.resolver)
        self._counters["answers_passed" if rewritten is answer else "answers_rewritten"] += 1
        self._reply(query, rewritten)

    def _fail(self, query: _Query) -> None:
        """Tell the program at once: it asks its next resolver."""
        self._counters["udp_unreachable"] += 1
        self._reply(query, empty_answer(query.message))

    def _reply(self, query: _Query, answer: bytes) -> None:
        try:
            query.proxy.sendto(answer, query.source)
        except OSError:  # no room, or the program's address is gone
            self._counters["udp_reply_failed"] += 1

    def _end(self, query: _Query) -> None:
        descriptor = query.upstream.fileno()
        del self._queries[descriptor]
        self._loop.remove_reader(descriptor)
        query.upstream.close()

    def _expire(self) -> None:
        self._timer = None
        now = self._clock()
        while self._queries:
            oldest = next(iter(self._queries.values()))
            if oldest.deadline > now:
                self._timer = self._loop.call_later(oldest.deadline - now, self._expire)
                return
            self._counters["udp_timeout"] += 1
            self._end(oldest)
