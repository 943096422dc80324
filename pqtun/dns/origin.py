"""Which resolver a redirected lookup was meant for.

TCP: the socket option SO_ORIGINAL_DST. UDP has nothing like it, and asking conntrack needs CAP_NET_ADMIN each time. So
the privileged parent opens a socket with conntrack's events (conntrack.py). The kernel queues the event of a new flow
before it delivers the flow's first packet, so that it is there when the proxy has read the packet.
"""

import errno
import socket
import struct
from collections import Counter, OrderedDict
from typing import Final

from pqtun.dns.conntrack import MAX_EVENT, Endpoint, parse_event
from pqtun.protocol.errors import MessageError

DNS_PORT: Final = 53
# Flows to remember, those used last: one for each port of an address, 25 MB. Conntrack remembers a silent flow for 30
# to 120 s; a program that gets the port again in that time makes no event, and no answer if its flow is forgotten here.
MAX_FLOWS: Final = 65_536

_SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_SOCKADDR_IN: Final = struct.Struct("=2sH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("=2sHI16sI")

Upstream = tuple[str, int]
SocketAddress = tuple[str, int] | tuple[str, int, int, int]


class OriginalDestinations:
    """Finds the original destinations. ``events``: the socket of conntrack.open_events()."""

    def __init__(self, events: socket.socket, limit: int = MAX_FLOWS) -> None:
        self._events = events
        self._limit = limit
        self._buffer = bytearray(MAX_EVENT)
        self._flows: OrderedDict[Endpoint, Endpoint] = OrderedDict()
        self.counters: Counter[str] = Counter()

    def of_datagram(self, family: int, source: SocketAddress) -> Upstream | None:
        """Return whom a UDP query from ``source`` was for; None if that is not known or it was not redirected."""
        self._read_events()
        key = (socket.inet_pton(family, source[0]), source[1])
        destination = self._flows.get(key)
        if destination is None:
            return None
        self._flows.move_to_end(key)
        if destination[1] != DNS_PORT:
            return None
        return socket.inet_ntop(family, destination[0]), DNS_PORT

    def of_stream(self, sock: socket.socket) -> Upstream | None:
        """Return whom an accepted TCP connection was for; None if it was not redirected from port 53."""
        try:
            if sock.family == socket.AF_INET:
                option = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
                _family, port, packed = _SOCKADDR_IN.unpack(option)
            else:
                option = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
                _family, port, _flow, packed, _scope = _SOCKADDR_IN6.unpack(option)
        except (OSError, struct.error):  # not a tracked connection, or it is over
            return None
        if socket.ntohs(port) != DNS_PORT:
            return None
        return socket.inet_ntop(sock.family, packed), DNS_PORT

    def _read_events(self) -> None:
        while True:
            try:
                size, (sender, _groups) = self._events.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Any entry may have been replaced by a lost event: a wrong resolver is worse than a repeated query.
                self._flows.clear()
                self.counters["events_lost"] += 1
                continue
            if sender != 0:  # not from the kernel
                self.counters["conntrack_event"] += 1
                continue
            try:
                flow = parse_event(bytes(memoryview(self._buffer)[:size]))
            except MessageError as error:
                self.counters[error.reason] += 1
                continue
            self._flows[flow.seen_source] = flow.destination
            self._flows.move_to_end(flow.seen_source)
            if len(self._flows) > self._limit:
                self._flows.popitem(last=False)
