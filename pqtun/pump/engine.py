"""The interface of the packet engines, and what they report.

An engine moves packets between the TUN device and the UDP socket, both of which it owns from ``start`` on. Tunnel
keys go in and never come out. Everything above it sees events, on the event loop's thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from pqtun.protocol.handshake import Session

# Outer address (dotted IPv4, or IPv6 as RFC 5952 writes it) and UDP port.
Endpoint = tuple[str, int]


@dataclass(frozen=True)
class Datagram:
    """A handshake (1299 bytes), a returned cookie (144) or a hint ``03 00``, within the limits; not authenticated.

    A tunnel packet behind a cookie in the same datagram, as PQConnect sends it, is kept like one that came early.
    """

    data: bytes
    source: Endpoint
    expected: bool = False  # its source had been named to ``expect``; such datagrams are delivered first


@dataclass(frozen=True)
class Wanted:
    """First packet to an address without a tunnel. It and what follows are held; not repeated while they are."""

    inner: IPv4Address


@dataclass(frozen=True)
class Alive:
    """First packet of that tunnel that authenticated."""

    tid: bytes


@dataclass(frozen=True)
class Roamed:
    """An authenticated packet, newer than all before it, came from this source, which is now sent to.

    Within a budget (``limits.UNCONFIRMED_*``), until ``confirm`` says that the peer is reached there.
    """

    tid: bytes
    endpoint: Endpoint


@dataclass(frozen=True)
class Dead:
    """All receiving epochs are gone; the engine has removed the tunnel."""

    tid: bytes


@dataclass(frozen=True)
class Control:
    """An authenticated inner packet of IP protocol 253, or the answer to an echo of ours (``icmp.echo_token``).

    As it came (doc/protocol.md section 8); at most ``limits.CONTROL_RATE`` a second of each tunnel.
    """

    tid: bytes
    packet: bytes


@dataclass(frozen=True)
class Cookie:
    """An authenticated plaintext that is a cookie's, by its first bytes and its length; at a client only."""

    tid: bytes
    cookie: bytes


@dataclass(frozen=True)
class Failed:
    """The TUN device is gone for good (removed by somebody): no packet will move any more. Sent once."""

    reason: str


Event = Datagram | Wanted | Alive | Roamed | Dead | Control | Cookie | Failed
Listener = Callable[[Event], None]


@dataclass(frozen=True)
class HandshakeLimits:
    """How many handshakes and returned cookies a second an engine reports: from expected sources, and from a prefix.

    A quarter of the first figure is for sources that are not expected. A prefix is an IPv4 /24 or an IPv6 /56.
    """

    per_second: int
    per_prefix: int


@dataclass(frozen=True)
class TunnelStats:
    """Counters of one tunnel. Times are readings of the engine's clock; bytes are those of inner packets."""

    tid: bytes
    inner: IPv4Address
    endpoint: Endpoint
    send_epoch: int
    recv_epoch: int
    created: float
    last_sent: float | None
    last_received: float | None
    last_used: float | None  # when a program's packet passed, either way
    confirmed: bool  # whether the endpoint was shown to reach the peer
    mtu: int | None  # bytes of the largest inner packet that is sent, None if nobody said
    packets_sent: int
    packets_received: int
    bytes_sent: int
    bytes_received: int
    drops: dict[str, int]

    @property
    def use(self) -> float:
        """When it was used last, or made."""
        return self.created if self.last_used is None else self.last_used


@dataclass(frozen=True)
class EngineStats:
    """Counters of an engine. ``drops`` are those that belong to no live tunnel, by reason."""

    tunnels: list[TunnelStats]
    drops: dict[str, int]
    held_addresses: int
    held_packets: int
    held_bytes: int
    early_packets: int


class Engine(Protocol):
    """What both engines offer. All calls on the event loop's thread; none blocks."""

    @property
    def name(self) -> str:
        """Return ``native`` or ``python``."""

    @property
    def workers(self) -> int:
        """Return how many threads move packets."""

    def offload(self) -> dict[str, str]:
        """Return what becomes of each offload that the engine knows (``pqtun.pump.offload.NAMES``).

        ``on``; ``off``: by the settings; ``unsupported``: the kernel has it not; ``failed``: it was given up.
        """

    def start(self, listener: Listener) -> None:
        """Begin to move packets. Events come in turns of the event loop, never out of a call here.

        Those of tunnels come in order, datagrams after them. Of a peer that moves about only the last place is told.
        """

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
        """Take a tunnel into use for the private address ``inner``.

        Before this returns, tunnel packets that came early are opened, and sent are: ``first``, a plaintext of the
        control plane, if given; then, unless ``standby``, what was held for ``inner``, in order. ``epoch``: the one
        that the session's roots are of. ``confirmed``: whether the peer is known to be reached at ``endpoint``.
        An older tunnel of ``inner`` still receives until it dies, and while this one is a ``standby`` it is still sent
        through. Raises ValueError if the tid is in use, ``inner`` cannot stand for a peer (outside the subnet, own or
        broadcast address) or the engine is closed.
        """

    def move_tunnel(self, tid: bytes, inner: IPv4Address) -> None:
        """Have a tunnel stand for ``inner``, and send through it what is for ``inner``, held packets first.

        ``inner`` may be the address that it has: a standby becomes the tunnel that is sent through, and so does an
        older tunnel. Raises ValueError if ``inner`` cannot stand for a peer or there is no such tunnel.
        """

    def remove_tunnel(self, tid: bytes) -> None:
        """Erase the tunnel's keys and forget it; no Dead is reported. Unknown: nothing happens.

        What is for its address then goes through the next older tunnel of that address that is no standby.
        """

    def put_aside(self, tid: bytes, key: bytes | bytearray, nonce: bytes, timestamp: int) -> None:
        """Send the peer its tunnel as a cookie (section 7), and remove the tunnel. Unknown: nothing happens.

        ``key`` has 32 bytes, ``nonce`` 12, and the two together are used once; ``timestamp`` is in seconds.
        """

    def confirm(self, tid: bytes, endpoint: Endpoint) -> None:
        """The peer was shown to be reached at ``endpoint``. Unknown tunnel, or it has moved on: nothing happens."""

    def set_mtu(self, tid: bytes, mtu: int) -> None:
        """Send the peer no inner packet of more than ``mtu`` bytes (576 at least; for IPv6 packets 1280 at least).

        Programs that send larger ones are told (ICMP), and TCP connections that begin learn of it (MSS), from both
        sides. Unknown tunnel: nothing happens.
        """

    def next_epoch(self, tid: bytes) -> None:
        """Begin a new sending epoch with the next packet: a peer that has lost its way in this one hears it.

        Unknown tunnel, or there is no next epoch: nothing happens.
        """

    def expect(self, host: str) -> None:
        """The next handshake may well come from this outer address: its prefix goes first for some time."""

    def hold(self, inner: IPv4Address, *, report: bool = False) -> None:
        """Hold what programs send to ``inner`` from now on, also where there is a tunnel, without reporting Wanted.

        ``report``: the next packet is reported as Wanted, once. ``add_tunnel``, ``move_tunnel`` and ``drop_held`` end
        it.
        """

    def drop_held(self, inner: IPv4Address, *, unreachable: bool) -> None:
        """Drop what is held for ``inner``; if ``unreachable``, its senders get ICMP host unreachable.

        The next packet to ``inner`` goes through its tunnel or, without one, reports Wanted again.
        """

    def send_datagram(self, data: bytes, endpoint: Endpoint) -> None:
        """Send a datagram of the control plane from the tunnel's socket. What cannot be sent is counted."""

    def send_inner(self, tid: bytes, packet: bytes, *, only: Endpoint | None = None) -> None:
        """Seal a plaintext of the control plane and send it. For an unknown tunnel it is dropped and counted.

        ``only``: not if the peer is sent to at another endpoint by now. A question whether it is reached there would
        else tell its answer to somebody who was there for a moment.
        """

    def stats(self, recent: int | None = None) -> EngineStats:
        """Return a snapshot of all counters; with ``recent``, of so many tunnels only, those used last (or made since).

        All of 65,000 take a second.
        """

    def longest_idle(self, count: int) -> list[TunnelStats]:
        """Return so many tunnels: those that nothing was heard in, oldest first, then those used the longest ago."""

    def close(self) -> None:
        """Erase all keys, close both descriptors, report nothing more. May be called twice."""
