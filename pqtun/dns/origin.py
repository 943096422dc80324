"""Which resolver a redirected lookup was meant for.

TCP: the socket option SO_ORIGINAL_DST. UDP has nothing like it, and asking conntrack needs CAP_NET_ADMIN each time. So
the privileged parent opens a socket with conntrack's events (conntrack.py). The kernel queues the event of a new flow
before it delivers the flow's first packet, so that it is there when the proxy has read the packet.
"""

import errno
import socket
import struct
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pqtun.dns.conntrack import MAX_EVENT, Endpoint, parse_event
from pqtun.protocol.errors import MessageError

DNS_PORT: Final = 53
# Flows to remember, those used last. Conntrack forgets a silent one after 30 to 120 s: enough for 100 new ones a second.
MAX_FLOWS: Final = 12_000

_SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_SOCKADDR_IN: Final = struct.Struct("=2sH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("=2sHI16sI")
_INTERFACES: Final = Path("/proc/net/if_inet6")

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a lookup was meant to go, and where its answer goes.

    ``upstream`` is for people and other libraries: a link-local address has its interface, "fe80::1%eth0". The other
    two are for sockets.
    """

    upstream: tuple[str, int]
    connect: SocketAddress
    reply_to: SocketAddress


class OriginalDestinations:
    """Finds the original destinations. ``events``: the socket of conntrack.open_events()."""

    def __init__(self, events: socket.socket, limit: int = MAX_FLOWS) -> None:
        self._events = events
        self._limit = limit
        self._buffer = bytearray(MAX_EVENT)
        self._flows: OrderedDict[Endpoint, tuple[Endpoint, Endpoint]] = OrderedDict()
        self.counters: Counter[str] = Counter()

    def of_datagram(self, family: int, source: SocketAddress) -> Origin | None:
        """Return the origin of a UDP query from ``source``; None if it is not known, or no lookup that was redirected."""
        self._read_events()
        key = (socket.inet_pton(family, source[0]), source[1])
        flow = self._flows.get(key)
        if flow is None:
            return None
        self._flows.move_to_end(key)
        asker, resolver = flow
        if resolver[1] != DNS_PORT:
            return None
        if family == socket.AF_INET:
            address = (socket.inet_ntop(family, resolver[0]), DNS_PORT)
            return Origin(address, address, source)
        return _origin6(asker[0], resolver[0], source)

    def of_stream(self, sock: socket.socket) -> Origin | None:
        """Return the origin of an accepted TCP connection; None if it was not redirected from port 53."""
        try:
            if sock.family == socket.AF_INET:
                option = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
                _family, port, packed = _SOCKADDR_IN.unpack(option)
            else:
                option = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
                _family, port, _flow, packed, _scope = _SOCKADDR_IN6.unpack(option)
            peer = sock.getpeername()
        except (OSError, struct.error):  # not a tracked connection, or it is over
            return None
        if socket.ntohs(port) != DNS_PORT:
            return None
        host = socket.inet_ntop(sock.family, packed)
        return Origin((host, DNS_PORT), (host, DNS_PORT), peer)

    def close(self) -> None:
        """Close the socket with events and forget all flows."""
        self._events.close()
        self._flows.clear()

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
            self._flows[flow.seen_source] = (flow.source, flow.destination)
            self._flows.move_to_end(flow.seen_source)
            if len(self._flows) > self._limit:
                self._flows.popitem(last=False)


def _origin6(asker: bytes, resolver: bytes, source: SocketAddress) -> Origin | None:
    """An IPv6 origin. Link-local addresses get the interface that has the asking one: the loopback has lost it."""
    host = socket.inet_ntop(socket.AF_INET6, resolver)
    upstream = (host, DNS_PORT)
    if not (_link_local(asker) or _link_local(resolver)):
        return Origin(upstream, (*upstream, 0, 0), source)
    interface = _interface_of(asker)
    if interface is None:
        return None
    name, index = interface
    reply_to = (source[0], source[1], 0, index if _link_local(asker) else 0)
    if not _link_local(resolver):
        return Origin(upstream, (*upstream, 0, 0), reply_to)
    return Origin((f"{host}%{name}", DNS_PORT), (*upstream, 0, index), reply_to)


def _link_local(address: bytes) -> bool:
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _interface_of(address: bytes) -> tuple[str, int] | None:
    """Name and index of the interface that has an IPv6 address."""
    for line in _INTERFACES.read_text().splitlines():
        digits, index, _prefix, _scope, _flags, name = line.split()
        if digits == address.hex():
            return name, int(index, 16)
    return None
