"""The packet engine in Python, on asyncio: the plain one, and the fallback where the native one is not built."""

import asyncio
import errno
import heapq
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from math import inf
from typing import Final

from pqtun.protocol.constants import (
    CONTROL_PROTOCOL,
    COOKIE_BYTES,
    COOKIE_PREFIX,
    TID_BYTES,
    TUNNEL,
    TUNNEL_OVERHEAD,
)
from pqtun.protocol.errors import MessageError
from pqtun.protocol.handshake import Session
from pqtun.protocol.primitives import clear_traces
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.early import EarlyPackets
from pqtun.pump.engine import (
    Alive,
    Control,
    Cookie,
    Datagram,
    Dead,
    Endpoint,
    EngineStats,
    Event,
    Failed,
    Listener,
    Roamed,
    Wanted,
)
from pqtun.pump.events import EventQueue
from pqtun.pump.held import HeldPackets
from pqtun.pump.icmp import host_unreachable
from pqtun.pump.inner import IPV4_HEADER_BYTES, Outbound, clear_destination
from pqtun.pump.limits import (
    BATCH,
    DATAGRAM_BYTES,
    EARLY_SECONDS,
    HELD_SECONDS,
    READ_BYTES,
    TIMER_SECONDS,
)
from pqtun.pump.link import Link

log = logging.getLogger(__name__)

_TID_END = 2 + TID_BYTES
_PASSING = (errno.ENOBUFS, errno.ENOMEM)


class PythonEngine:
    """See ``pqtun.pump.engine.Engine``."""

    name: Final = "python"
    workers: Final = 1

    def __init__(
        self,
        tun_fd: int,
        udp: socket.socket,
        *,
        own: IPv4Address,
        subnet: IPv4Network,
        deliver_to: IPv4Address | None = None,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Packets from tunnels go to ``deliver_to``, by default to ``own``, the address of the TUN device.

        ``clock`` gives seconds, counts sleep and never goes back (CLOCK_BOOTTIME).
        """
        self._tun = tun_fd
        self._udp = udp
        self._host = deliver_to or own
        self._outbound = Outbound(own, subnet, deliver_to)
        self._clock = clock
        self._loop = loop
        self._events = EventQueue(loop)
        self._links: dict[bytes, Link] = {}
        self._routes: dict[bytes, list[Link]] = {}  # by inner address; the last one is sent through
        self._held = HeldPackets()
        self._early = EarlyPackets()
        self._drops: Counter[str] = Counter()
        self._link_deadlines: list[tuple[float, bytes]] = []  # heap; a tunnel's deadline only ever moves later
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # -- the interface ---------------------------------------------------------------------------

    def start(self, listener: Listener) -> None:
        """Begin to move packets and to report."""
        os.set_blocking(self._tun, False)
        self._udp.setblocking(False)
        self._events.start(listener)
        self._loop.add_reader(self._tun, self._on_tun)
        self._loop.add_reader(self._udp, self._on_udp)

    def add_tunnel(
        self, session: Session, inner: IPv4Address, endpoint: Endpoint, *, first: bytes | None = None
    ) -> None:
        """Take a tunnel into use for ``inner``. Raises ValueError: tid in use, ``inner`` not a peer's, closed."""
        if not self._outbound.is_peer(inner.packed):
            raise ValueError(f"{inner} cannot stand for a peer")
        if session.tid in self._links:
            raise ValueError("this tunnel exists already")
        if self._closed:
            raise ValueError("the engine is closed")
        now = self._clock()
        tunnel = Tunnel(session.tid, session.send_root, session.recv_root, now)
        link = Link(tunnel, inner, self._host, endpoint, now)
        self._links[link.tid] = link
        self._routes.setdefault(inner.packed, []).append(link)
        self._watch(link)
        for datagram, source in self._early.take(link.tid):
            self._receive(link, datagram, source, now)
        if first is not None:
            self._send(link, first, now)
        for packet in self._held.take(inner.packed):
            self._send(link, clear_destination(packet), now)
        clear_traces()

    def remove_tunnel(self, tid: bytes) -> None:
        """Erase and forget a tunnel."""
        link = self._links.pop(tid, None)
        if link is None:
            return
        link.tunnel.erase()
        self._drops.update(link.drops)
        links = self._routes[link.inner.packed]
        links.remove(link)
        if not links:
            del self._routes[link.inner.packed]

    def hold(self, inner: IPv4Address) -> None:
        """Hold packets for ``inner`` without reporting Wanted."""
        if inner.packed not in self._routes and not self._held.hold(inner.packed):
            self._drops["held_addresses_full"] += 1

    def drop_held(self, inner: IPv4Address, *, unreachable: bool) -> None:
        """Drop what is held for ``inner``; tell its senders if ``unreachable``."""
        for packet in self._held.take(inner.packed):
            self._drops["held_dropped"] += 1
            answer = host_unreachable(packet) if unreachable else None
            if answer is not None:
                self._write_tun(answer, self._drops)

    def send_datagram(self, data: bytes, endpoint: Endpoint) -> None:
        """Send a datagram of the control plane."""
        self._send_udp(data, endpoint, self._drops)

    def send_inner(self, tid: bytes, packet: bytes) -> None:
        """Seal and send a plaintext of the control plane."""
        link = self._links.get(tid)
        if link is None:
            self._drops["send_unknown_tunnel"] += 1
        else:
            self._send(link, packet, self._clock())
            clear_traces()

    def offload(self) -> dict[str, str]:
        """Return nothing: each packet is read and written by itself."""
        return {}

    def stats(self) -> EngineStats:
        """Return a snapshot of all counters."""
        drops = dict(self._drops)
        if self._events.listener_errors:
            drops["listener_error"] = self._events.listener_errors
        return EngineStats(
            tunnels=[link.stats() for link in self._links.values()],
            drops=drops,
            held_addresses=self._held.addresses,
            held_packets=self._held.packets,
            held_bytes=self._held.bytes,
            early_packets=len(self._early),
        )

    def close(self) -> None:
        """Erase all keys and close both descriptors."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._tun)
        self._loop.remove_reader(self._udp)
        if self._timer is not None:
            self._timer.cancel()
        self._events.close()
        for tid in list(self._links):
            self.remove_tunnel(tid)
        self._held.clear()
        self._early.clear()
        self._udp.close()
        os.close(self._tun)

    # -- from the programs to the network --------------------------------------------------------

    def _on_tun(self) -> None:
        self._read_tun()
        clear_traces()

    def _read_tun(self) -> None:
        now = self._clock()
        if now >= self._deadline:
            self._expire(now)
        for _ in range(BATCH):
            try:
                packet = os.read(self._tun, READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._read_failed(error)
                return
            if not packet:
                self._tun_gone("end of file")
                return
            try:
                self._from_tun(packet, now)
            except MessageError as refused:
                self._drops[refused.reason] += 1
            except Exception:  # no packet may end the reading of packets
                self._drops["internal_error"] += 1
                if self._drops["internal_error"] == 1:
                    log.exception("a packet from the TUN device met a fault; further ones are only counted")

    def _from_tun(self, packet: bytes, now: float) -> None:
        inner = self._outbound.destination(packet)
        links = self._routes.get(inner)
        if links is not None:
            self._send(links[-1], clear_destination(packet), now)
        elif inner in self._held:
            self._hold_packet(inner, packet, now)
        elif not self._held.hold(inner):
            self._drops["held_addresses_full"] += 1
        else:
            self._hold_packet(inner, packet, now)
            self._report(Wanted(IPv4Address(inner)))

    def _hold_packet(self, inner: bytes, packet: bytes, now: float) -> None:
        if self._held.add(inner, packet, now):
            self._wake_at(now + HELD_SECONDS)
        else:
            self._drops["held_full"] += 1

    def _send(self, link: Link, plaintext: bytes, now: float) -> None:
        try:
            datagram = link.tunnel.seal(plaintext, now)
        except MessageError as refused:
            link.drops[refused.reason] += 1
            return
        if link.cookie is not None:
            # The server has put its state aside and needs it back to read what follows (section 7).
            self._send_udp(link.cookie, link.endpoint, link.drops)
            link.cookie = None
        if self._send_udp(datagram, link.endpoint, link.drops):
            link.last_sent = now
            link.packets_sent += 1
            link.bytes_sent += len(plaintext)

    def _send_udp(self, datagram: bytes, endpoint: Endpoint, drops: Counter[str]) -> bool:
        try:
            self._udp.sendto(datagram, endpoint)
        except OSError as error:
            drops["send_" + _errno_name(error)] += 1
            return False
        return True

    def _read_failed(self, error: OSError) -> None:
        if error.errno in _PASSING:
            self._drops["tun_read_" + _errno_name(error)] += 1
        else:
            self._tun_gone(error.strerror or "read error")

    def _tun_gone(self, reason: str) -> None:
        self._loop.remove_reader(self._tun)
        self._report(Failed(reason))

    # -- from the network to the programs --------------------------------------------------------

    def _on_udp(self) -> None:
        self._read_udp()
        clear_traces()

    def _read_udp(self) -> None:
        now = self._clock()
        if now >= self._deadline:
            self._expire(now)
        for _ in range(BATCH):
            try:
                datagram, source = self._udp.recvfrom(READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # an error that the kernel kept for this socket; reading it clears it
                self._drops["receive_" + _errno_name(error)] += 1
                continue
            try:
                self._from_network(datagram, source, now)
            except Exception:  # no datagram may end the reading of datagrams
                self._drops["internal_error"] += 1
                if self._drops["internal_error"] == 1:
                    log.exception("a datagram met a fault; further ones are only counted")

    def _from_network(self, datagram: bytes, source: Endpoint, now: float) -> None:
        if datagram[:2] == TUNNEL:
            if len(datagram) < TUNNEL_OVERHEAD:
                self._drops["tunnel_short"] += 1
                return
            tid = datagram[2:_TID_END]
            link = self._links.get(tid)
            if link is not None:
                self._receive(link, datagram, source, now)
            else:
                dropped = self._early.add(tid, datagram, source, now)
                if dropped:
                    self._drops["early_full"] += dropped
                self._wake_at(now + EARLY_SECONDS)
        elif not 2 <= len(datagram) <= DATAGRAM_BYTES:
            self._drops["datagram_length"] += 1
        else:
            self._report(Datagram(datagram, source))

    def _receive(self, link: Link, datagram: bytes, source: Endpoint, now: float) -> None:
        try:
            plaintext = link.tunnel.open(datagram, now)
        except MessageError as refused:
            link.drops[refused.reason] += 1
            return
        first = link.last_received is None
        moved = link.heard(datagram, source, len(plaintext), now)
        if first:
            self._report(Alive(link.tid))
        if moved:
            self._report(Roamed(link.tid, source))
        if plaintext.startswith(COOKIE_PREFIX):
            self._keep_cookie(link, plaintext, now)
        elif len(plaintext) >= IPV4_HEADER_BYTES and plaintext[9] == CONTROL_PROTOCOL and plaintext[0] >> 4 == 4:
            self._report(Control(link.tid, plaintext))
        else:
            try:
                packet = link.inbound.deliver(plaintext)
            except MessageError as refused:
                link.drops[refused.reason] += 1
            else:
                self._write_tun(packet, link.drops)

    def _keep_cookie(self, link: Link, cookie: bytes, now: float) -> None:
        """The server has gone to the next epoch in both directions; so do we, at once (section 7)."""
        try:
            if len(cookie) != COOKIE_BYTES:
                raise MessageError("cookie_length")
            link.tunnel.step(now)
        except MessageError as refused:
            link.drops[refused.reason] += 1
        else:
            link.cookie = cookie
            self._report(Cookie(link.tid, cookie))

    def _write_tun(self, packet: bytes | bytearray, drops: Counter[str]) -> None:
        try:
            os.write(self._tun, packet)
        except OSError as error:  # EIO: the device is down
            drops["tun_write_" + _errno_name(error)] += 1

    # -- deadlines and events --------------------------------------------------------------------

    def _report(self, event: Event) -> None:
        if not self._events.put(event):
            self._drops["events_full"] += 1

    def _watch(self, link: Link) -> None:
        deadline = link.tunnel.next_deadline
        if deadline is not None:
            heapq.heappush(self._link_deadlines, (deadline, link.tid))
            self._wake_at(deadline)

    def _wake_at(self, deadline: float) -> None:
        if deadline < self._deadline:
            self._deadline = deadline
            self._set_timer(self._clock())

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadline < inf:
            delay = min(max(self._deadline - now, 0.0), TIMER_SECONDS)
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        now = self._clock()
        if now >= self._deadline:
            self._expire(now)
        else:
            self._set_timer(now)

    def _expire(self, now: float) -> None:
        """Do all that is due, and set the timer for what is due next."""
        late = self._early.expire(now)
        if late:
            self._drops["unknown_tunnel"] += late
        waited = self._held.expire(now)
        if waited:
            self._drops["held_timeout"] += waited
        while self._link_deadlines and self._link_deadlines[0][0] <= now:
            _, tid = heapq.heappop(self._link_deadlines)
            link = self._links.get(tid)
            if link is None:
                continue
            link.tunnel.expire(now)
            if link.tunnel.dead:
                self.remove_tunnel(tid)
                self._report(Dead(tid))
            else:
                self._watch(link)
        deadlines = [self._held.next_deadline(), self._early.next_deadline()]
        if self._link_deadlines:
            deadlines.append(self._link_deadlines[0][0])
        self._deadline = min((d for d in deadlines if d is not None), default=inf)
        self._set_timer(now)


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "error").lower()
