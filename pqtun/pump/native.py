"""The native packet engine: threads of their own move the packets of tunnels, and none of them enters Python.

This is its control side, on asyncio: events, timers and calls. The rest is the Rust crate in native/.
"""

import asyncio
import errno
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from typing import Any, Final

from pqtun.protocol.handshake import Session
from pqtun.pump import _native
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
    HandshakeLimits,
    Listener,
    Roamed,
    TunnelStats,
    Wanted,
)
from pqtun.pump.events import EventQueue
from pqtun.pump.limits import DATAGRAM_TURN_SECONDS, TIMER_SECONDS

_EVENTS: Final[dict[str, Any]] = {
    "Datagram": Datagram,
    "Wanted": lambda inner: Wanted(IPv4Address(inner)),
    "Alive": Alive,
    "Roamed": Roamed,
    "Dead": Dead,
    "Control": Control,
    "Cookie": Cookie,
    "Failed": Failed,
}


class NativeEngine:
    """See ``pqtun.pump.engine.Engine``."""

    name: Final = "native"

    def __init__(
        self,
        tuns: Sequence[int],
        sockets: Sequence[socket.socket],
        *,
        own: IPv4Address,
        subnet: IPv4Network,
        own6: IPv6Interface | None = None,
        deliver_to: IPv4Address | None = None,
        handshakes: HandshakeLimits | None = None,
        virtio: bool,
        offload: Iterable[str],
        loop: asyncio.AbstractEventLoop,
        clock: _native.ManualClock | None = None,
        clock_scale: float = 1.0,
    ) -> None:
        """One TUN queue and one UDP socket for each thread; all of them are the engine's from now on.

        ``own6`` is the address beside ``own`` (``pqtun.protocol.private6``); without it there is no IPv6 in tunnels.
        ``handshakes``: of a server; without it the engine is a client's.
        ``virtio``: the queues were opened with IFF_VNET_HDR. ``offload``: names of pqtun.pump.offload that may be used.
        The engine's time is CLOCK_BOOTTIME; tests have it pass ``clock_scale`` times as fast, or give a ``clock``.
        Raises OSError, ValueError.
        """
        self._core = _native.Core(
            list(tuns),
            [sock.detach() for sock in sockets],
            own=own.packed,
            own6=None if own6 is None else own6.ip.packed,
            network=int(subnet.network_address),
            mask=int(subnet.netmask),
            deliver_to=None if deliver_to is None else deliver_to.packed,
            virtio=virtio,
            offload=list(offload),
            handshakes=None if handshakes is None else (handshakes.per_second, handshakes.per_prefix),
            clock=clock,
            clock_scale=clock_scale,
        )
        self.workers: Final = len(tuns)
        self._loop = loop
        self._events = EventQueue(loop, DATAGRAM_TURN_SECONDS)
        self._events_full = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # -- the interface ---------------------------------------------------------------------------

    def start(self, listener: Listener) -> None:
        """Begin to move packets and to report."""
        self._events.start(listener)
        self._loop.add_reader(self._core.fileno(), self._take_events)
        self._core.start()
        self._expire()

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
        self._core.add_tunnel(
            session.tid,
            session.send_root,
            session.recv_root,
            inner.packed,
            endpoint,
            first=first,
            epoch=epoch,
            confirmed=confirmed,
            standby=standby,
        )

    def move_tunnel(self, tid: bytes, inner: IPv4Address) -> None:
        """Have a tunnel stand for ``inner``, and be sent through. Raises ValueError: not a peer's, no such tunnel."""
        self._core.move_tunnel(tid, inner.packed)

    def remove_tunnel(self, tid: bytes) -> None:
        """Erase and forget a tunnel."""
        self._core.remove_tunnel(tid)

    def put_aside(self, tid: bytes, key: bytes | bytearray, nonce: bytes, timestamp: int) -> None:
        """Send the peer its tunnel as a cookie, and remove it."""
        self._core.put_aside(tid, key, nonce, timestamp)

    def confirm(self, tid: bytes, endpoint: Endpoint) -> None:
        """Lift the bound on what is sent to ``endpoint``."""
        self._core.confirm(tid, endpoint)

    def set_mtu(self, tid: bytes, mtu: int) -> None:
        """Send no inner packet of more than ``mtu`` bytes."""
        self._core.set_mtu(tid, mtu)

    def next_epoch(self, tid: bytes) -> None:
        """Begin a new sending epoch."""
        self._core.next_epoch(tid)

    def expect(self, host: str) -> None:
        """Let handshakes from the prefix of ``host`` go first."""
        self._core.expect(host)

    def hold(self, inner: IPv4Address, *, report: bool = False) -> None:
        """Hold packets for ``inner`` from now on; report the next one as Wanted if ``report``."""
        self._core.hold(inner.packed, report)

    def drop_held(self, inner: IPv4Address, *, unreachable: bool) -> None:
        """Drop what is held for ``inner``; tell its senders if ``unreachable``."""
        self._core.drop_held(inner.packed, unreachable)

    def send_datagram(self, data: bytes, endpoint: Endpoint) -> None:
        """Send a datagram of the control plane."""
        self._core.send_datagram(data, endpoint)

    def send_inner(self, tid: bytes, packet: bytes, *, only: Endpoint | None = None) -> None:
        """Seal and send a plaintext of the control plane."""
        self._core.send_inner(tid, packet, only)

    def stats(self, recent: int | None = None) -> EngineStats:
        """Do what is due, and return a snapshot of all counters."""
        self._expire()
        drops, held_addresses, held_packets, held_bytes, early_packets = self._core.stats()
        counters = _counters(drops)
        if self._events_full:
            counters["events_full"] = counters.get("events_full", 0) + self._events_full
        if self._events.listener_errors:
            counters["listener_error"] = self._events.listener_errors
        return EngineStats(
            tunnels=[_tunnel(tunnel) for tunnel in self._core.tunnels(recent)],
            drops=counters,
            held_addresses=held_addresses,
            held_packets=held_packets,
            held_bytes=held_bytes,
            early_packets=early_packets,
        )

    def longest_idle(self, count: int) -> list[TunnelStats]:
        """Return the tunnels that nothing was heard in, then those used the longest ago."""
        return [_tunnel(tunnel) for tunnel in self._core.tunnels(count, idle=True)]

    def offload(self) -> dict[str, str]:
        """State of each offload: on, off (by the settings), unsupported, or failed (it was used, and refused)."""
        return {**dict(self._core.offload()), "multi-queue": "on" if self.workers > 1 else "off"}

    def close(self) -> None:
        """Erase all keys and close all descriptors."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._core.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._events.close()
        self._core.close()

    # -- events and deadlines --------------------------------------------------------------------

    def _take_events(self) -> None:
        for name, *fields in self._core.events():
            event: Event = _EVENTS[name](*fields)
            if not self._events.put(event):
                self._events_full += 1

    def _expire(self) -> None:
        """Do all that is due, and set the timer. A deadline that comes up meanwhile waits for a second at most."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        delay = self._core.expire()
        self._timer = self._loop.call_later(min(max(delay, 0.0), TIMER_SECONDS), self._expire)


def _tunnel(tunnel: dict[str, Any]) -> TunnelStats:
    return TunnelStats(
        **{**tunnel, "inner": IPv4Address(tunnel["inner"]), "drops": _counters(tunnel["drops"])},
    )


def _counters(drops: Iterable[tuple[str, int, int]]) -> dict[str, int]:
    """Name the counters as the Python engine does: a reason, and the error's name where there is one."""
    counters: dict[str, int] = {}
    for reason, number, count in drops:
        name = f"{reason}_{errno.errorcode.get(number, 'error').lower()}" if number else reason
        counters[name] = counters.get(name, 0) + count
    return counters
