"""The packet engine in Python, on asyncio: the plain one, and the fallback where the native one is not built."""

import asyncio
import errno
import heapq
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from typing import Final

from pqtun.protocol import cookie
from pqtun.protocol.constants import (
    COOKIE_BYTES,
    COOKIE_PREFIX,
    TID_BYTES,
    TUNNEL,
    TUNNEL_OVERHEAD,
)
from pqtun.protocol.errors import MessageError
from pqtun.protocol.handshake import Session
from pqtun.protocol.primitives import clear_traces
from pqtun.protocol.schedule import KeyBlocks
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump import admission
from pqtun.pump.alarm import Alarm
from pqtun.pump.budget import unconfirmed_prefixes
from pqtun.pump.early import EarlyPackets
from pqtun.pump.engine import (
    Alive,
    Control,
    Cookie,
    Dead,
    Endpoint,
    EngineStats,
    Event,
    Failed,
    HandshakeLimits,
    Listener,
    Roamed,
    TunnelStats,
    Wanted,
)
from pqtun.pump.events import EventQueue
from pqtun.pump.held import HeldPackets
from pqtun.pump.icmp import host_unreachable, too_big
from pqtun.pump.inner import Inbound, Outbound, clear_destination, largest
from pqtun.pump.limits import BATCH, EARLY_SECONDS, HELD_SECONDS, LEAST_MTU, READ_BYTES
from pqtun.pump.link import Link, for_control_plane
from pqtun.pump.mss import clamped
from pqtun.pump.outer import OuterSocket
from pqtun.pump.routes import Routes
from pqtun.rates.buckets import KEY_BYTES

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
        own6: IPv6Interface | None = None,
        deliver_to: IPv4Address | None = None,
        handshakes: HandshakeLimits | None = None,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Packets from tunnels go to ``deliver_to``, by default to ``own``, the address of the TUN device.

        ``own6`` is the address beside ``own`` (``pqtun.protocol.private6``); without it there is no IPv6 in tunnels.
        ``handshakes``: of a server; without it the engine is a client's. ``clock`` gives seconds, counts sleep and
        never goes back (CLOCK_BOOTTIME).
        """
        self._tun = tun_fd
        self._udp = OuterSocket(udp)
        self._host = deliver_to or own
        self._own6 = own6
        self._outbound = Outbound(own, subnet, deliver_to, own6)
        self._admission = admission.Admission(handshakes, os.urandom(KEY_BYTES), clock())
        self._unconfirmed = unconfirmed_prefixes(os.urandom(KEY_BYTES), clock())
        self._clock = clock
        self._loop = loop
        self._events = EventQueue(loop)
        self._routes = Routes()
        self._blocks = KeyBlocks()
        self._held = HeldPackets()
        self._early = EarlyPackets()
        self._drops: Counter[str] = Counter()
        self._alarm = Alarm(loop, clock, self._expire)
        self._closed = False

    # -- the interface ---------------------------------------------------------------------------

    def start(self, listener: Listener) -> None:
        """Begin to move packets and to report."""
        os.set_blocking(self._tun, False)
        self._events.start(listener)
        self._loop.add_reader(self._tun, self._on_tun)
        self._loop.add_reader(self._udp, self._on_udp)

    def add_tunnel(
        self,
        session: Session,
        inner: IPv4Address,
        endpoint: Endpoint,
        *,
        first: bytes | None = None,
        epoch: int = 0,
        confirmed: bool = True,
        standby: bool = False,
    ) -> None:
        """Take a tunnel into use for ``inner``. Raises ValueError: tid in use, ``inner`` not a peer's, closed."""
        inbound = self._inbound(inner)
        if session.tid in self._routes:
            raise ValueError("this tunnel exists already")
        if self._closed:
            raise ValueError("the engine is closed")
        now = self._clock()
        tunnel = Tunnel(session.tid, session.send_root, session.recv_root, now, epoch, self._blocks)
        link = Link(tunnel, inner, inbound, endpoint, now, confirmed=confirmed, standby=standby)
        self._routes.add(link)
        self._alarm.at_latest(self._routes.next_deadline())
        for datagram, source in self._early.take(link.tid):
            self._receive(link, datagram, source, now)
        if first is not None:
            self._send(link, first, now)
        if not standby:
            self._release(link, now)
        clear_traces()

    def move_tunnel(self, tid: bytes, inner: IPv4Address) -> None:
        """Have a tunnel stand for ``inner`` and be sent through. Raises ValueError: ``inner`` not a peer's, unknown."""
        inbound = self._inbound(inner)
        link = self._routes.get(tid)
        if link is None:
            raise ValueError("there is no such tunnel")
        self._routes.move(link, inner, inbound)
        self._release(link, self._clock())
        clear_traces()

    def remove_tunnel(self, tid: bytes) -> None:
        """Erase and forget a tunnel."""
        link = self._routes.remove(tid)
        if link is not None:
            link.tunnel.erase()
            self._drops.update(link.drops)

    def put_aside(self, tid: bytes, key: bytes | bytearray, nonce: bytes, timestamp: int) -> None:
        """Send the peer its tunnel as a cookie, and remove it."""
        link = self._routes.get(tid)
        if link is None:
            return
        now = self._clock()
        try:
            state = link.tunnel.state(now)
            try:
                sealed = cookie.pack(state, key, nonce, timestamp)
            finally:
                state.erase()
        except MessageError as refused:
            link.drops[refused.reason] += 1
        else:
            self._send(link, sealed, now)
        self.remove_tunnel(tid)
        clear_traces()

    def confirm(self, tid: bytes, endpoint: Endpoint) -> None:
        """Send to an endpoint without a budget."""
        link = self._routes.get(tid)
        if link is not None and link.endpoint == endpoint:
            link.budget.confirmed = True

    def set_mtu(self, tid: bytes, mtu: int) -> None:
        """Send the peer no larger packets of programs."""
        link = self._routes.get(tid)
        if link is not None:
            link.mtu = max(mtu, LEAST_MTU)

    def next_epoch(self, tid: bytes) -> None:
        """Begin a new sending epoch."""
        link = self._routes.get(tid)
        if link is not None:
            link.tunnel.next_epoch(self._clock())
            clear_traces()

    def expect(self, host: str) -> None:
        """Let handshakes from the prefix of ``host`` go first."""
        self._admission.expect(host, self._clock())

    def hold(self, inner: IPv4Address, *, report: bool = False) -> None:
        """Hold packets for ``inner``, reporting the next one or none."""
        if not self._held.hold(inner.packed, report=report):
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

    def send_inner(self, tid: bytes, packet: bytes, *, only: Endpoint | None = None) -> None:
        """Seal and send a plaintext of the control plane."""
        link = self._routes.get(tid)
        if link is None:
            self._drops["send_unknown_tunnel"] += 1
        elif only is not None and only != link.endpoint:
            link.drops["moved_on"] += 1
        else:
            self._send(link, packet, self._clock())
            clear_traces()

    def offload(self) -> dict[str, str]:
        """Return nothing: each packet is read and written by itself."""
        return {}

    def stats(self, recent: int | None = None) -> EngineStats:
        """Return a snapshot of all counters, of all tunnels or so many that were used last."""
        links = self._routes if recent is None else heapq.nlargest(recent, self._routes, key=lambda link: link.use)
        drops = dict(self._drops)
        if self._events.listener_errors:
            drops["listener_error"] = self._events.listener_errors
        return EngineStats(
            tunnels=[link.stats() for link in links],
            drops=drops,
            held_addresses=self._held.addresses,
            held_packets=self._held.packets,
            held_bytes=self._held.bytes,
            early_packets=len(self._early),
        )

    def longest_idle(self, count: int) -> list[TunnelStats]:
        """Return the tunnels that nothing was heard in, then those used the longest ago."""
        idle = heapq.nsmallest(count, self._routes, key=lambda link: (link.last_received is not None, link.use))
        return [link.stats() for link in idle]

    def close(self) -> None:
        """Erase all keys and close both descriptors."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._tun)
        self._loop.remove_reader(self._udp)
        self._alarm.cancel()
        self._events.close()
        for link in self._routes:
            self.remove_tunnel(link.tid)
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
        if now >= self._alarm.deadline:
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
        if inner in self._held:
            self._hold_packet(inner, packet, now)
            return
        link = self._routes.through(inner)
        if link is not None:
            self._send_program(link, packet, now)
        elif self._held.hold(inner, report=True):
            self._hold_packet(inner, packet, now)
        else:
            self._drops["held_addresses_full"] += 1

    def _hold_packet(self, inner: bytes, packet: bytes, now: float) -> None:
        if self._held.add(inner, packet, now):
            self._alarm.at_latest(now + HELD_SECONDS)
        else:
            self._drops["held_full"] += 1
        if self._held.report(inner):
            self._report(Wanted(IPv4Address(inner)))

    def _release(self, link: Link, now: float) -> None:
        """Send what was held for the address that the tunnel stands for."""
        for packet in self._held.take(link.inner.packed):
            self._send_program(link, packet, now)

    def _send_program(self, link: Link, packet: bytes, now: float) -> None:
        """Send a packet of a program here, as far as the path to the peer takes it."""
        if link.mtu is not None:
            if len(packet) > largest(packet, link.mtu):
                link.drops["tun_too_big"] += 1
                answer = too_big(packet, link.mtu)
                if answer is not None:
                    self._write_tun(answer, link.drops)
                return
            packet = bytes(clamped(packet, link.mtu))
        if self._send(link, clear_destination(packet), now):
            link.last_used = now

    def _send(self, link: Link, plaintext: bytes, now: float) -> bool:
        size = TUNNEL_OVERHEAD + len(plaintext) + len(link.cookie or b"")
        if not link.budget.take(size, link.endpoint[0], self._unconfirmed, now):
            link.drops["unconfirmed"] += 1
            return False
        try:
            datagram = link.tunnel.seal(plaintext, now)
        except MessageError as refused:
            link.drops[refused.reason] += 1
            return False
        if link.cookie is not None:
            # The server has put its state aside and needs it back to read what follows (section 7).
            self._send_udp(link.cookie, link.endpoint, link.drops)
            link.cookie = None
        if not self._send_udp(datagram, link.endpoint, link.drops):
            return False
        link.last_sent = now
        link.packets_sent += 1
        link.bytes_sent += len(plaintext)
        return True

    def _send_udp(self, datagram: bytes, endpoint: Endpoint, drops: Counter[str]) -> bool:
        try:
            self._udp.send(datagram, endpoint)
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
        if now >= self._alarm.deadline:
            self._expire(now)
        for _ in range(BATCH):
            try:
                datagram, source = self._udp.receive(READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # an error that the kernel kept for this socket; reading it clears it
                self._drops["receive_" + _errno_name(error)] += 1
                continue
            try:
                self._from_network(datagram, source, now)
            except MessageError as refused:
                self._drops[refused.reason] += 1
            except Exception:  # no datagram may end the reading of datagrams
                self._drops["internal_error"] += 1
                if self._drops["internal_error"] == 1:
                    log.exception("a datagram met a fault; further ones are only counted")

    def _from_network(self, datagram: bytes, source: Endpoint, now: float) -> None:
        if datagram[:2] != TUNNEL:
            datagram, packet = admission.behind_cookie(datagram)
            self._report(self._admission.admit(datagram, source, now))
            if packet:
                self._from_network(packet, source, now)
            return
        if len(datagram) < TUNNEL_OVERHEAD:
            raise MessageError("tunnel_short")
        tid = datagram[2:_TID_END]
        link = self._routes.get(tid)
        if link is not None:
            self._receive(link, datagram, source, now)
            return
        dropped = self._early.add(tid, datagram, source, now)
        if dropped:
            self._drops["early_full"] += dropped
        self._alarm.at_latest(now + EARLY_SECONDS)

    def _receive(self, link: Link, datagram: bytes, source: Endpoint, now: float) -> None:
        try:
            plaintext = link.tunnel.open(datagram, now)
            first = link.last_received is None
            moved = link.heard(datagram, source, len(plaintext), now)
            if first:
                self._report(Alive(link.tid))
            if moved:
                self._report(Roamed(link.tid, source))
            if plaintext.startswith(COOKIE_PREFIX):
                self._keep_cookie(link, plaintext, now)
            elif for_control_plane(plaintext):
                if not link.control.take(now):
                    raise MessageError("control_limit")
                self._report(Control(link.tid, plaintext))
            else:
                self._deliver(link, plaintext, now)
        except MessageError as refused:
            link.drops[refused.reason] += 1

    def _deliver(self, link: Link, plaintext: bytes, now: float) -> None:
        packet: bytes | bytearray = link.inbound.deliver(plaintext)
        if link.mtu is not None:
            packet = clamped(packet, link.mtu)
        if self._write_tun(packet, link.drops):
            link.last_used = now

    def _keep_cookie(self, link: Link, cookie: bytes, now: float) -> None:
        """The server has gone to the next epoch in both directions; so do we, at once (section 7)."""
        if self._admission.of_server:  # only servers make cookies
            raise MessageError("cookie_unwanted")
        if len(cookie) != COOKIE_BYTES:
            raise MessageError("cookie_length")
        link.tunnel.step(now)
        link.cookie = cookie
        self._report(Cookie(link.tid, cookie))

    def _write_tun(self, packet: bytes | bytearray, drops: Counter[str]) -> bool:
        try:
            os.write(self._tun, packet)
        except OSError as error:  # EIO: the device is down
            drops["tun_write_" + _errno_name(error)] += 1
            return False
        return True

    # -- deadlines and events --------------------------------------------------------------------

    def _report(self, event: Event) -> None:
        if not self._events.put(event):
            self._drops["events_full"] += 1

    def _inbound(self, inner: IPv4Address) -> Inbound:
        """What readdresses the packets of a tunnel for ``inner``. Raises ValueError if no tunnel can be for it."""
        if not self._outbound.is_peer(inner.packed):
            raise ValueError(f"{inner} cannot stand for a peer")
        return Inbound(inner, self._host, self._own6)

    def _expire(self, now: float) -> None:
        """Do all that is due, and set the alarm for what is due next."""
        late = self._early.expire(now)
        if late:
            self._drops["unknown_tunnel"] += late
        waited = self._held.expire(now)
        if waited:
            self._drops["held_timeout"] += waited
        for link in self._routes.expire(now):
            self.remove_tunnel(link.tid)
            self._report(Dead(link.tid))
        waiting = (self._held.next_deadline(), self._early.next_deadline())
        self._alarm.set(min([self._routes.next_deadline(), *(d for d in waiting if d is not None)]))


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "error").lower()
