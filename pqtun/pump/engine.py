"""The interface of the packet engines, and what they report.

An engine moves packets between the TUN device and the UDP socket, both of which it owns from ``start`` on. Tunnel
keys go in and never come out. Everything above it sees events, on the event loop's thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from pqtun.protocol.handshake import Session

# Outer address (IPv4, dotted) and UDP port.
Endpoint = tuple[str, int]


@dataclass(frozen=True)
class Datagram:
    """A datagram that is no tunnel packet (handshake, cookie, ...): 2 to 2048 bytes, not authenticated."""

    data: bytes
    source: Endpoint


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
    """An authenticated packet, newer than all before it, came from this source, which is now sent to."""

    tid: bytes
    endpoint: Endpoint


@dataclass(frozen=True)
class Dead:
    """All receiving epochs are gone; the engine has removed the tunnel."""

    tid: bytes


@dataclass(frozen=True)
class Control:
    """An authenticated inner packet of IP protocol 253, as it came (doc/protocol.md section 8)."""

    tid: bytes
    packet: bytes


@dataclass(frozen=True)
class Cookie:
    """An authenticated plaintext that begins as a cookie does; its length is not checked."""

    tid: bytes
    cookie: bytes


@dataclass(frozen=True)
class Failed:
    """The TUN device is gone for good (removed by somebody): no packet will move any more. Sent once."""

    reason: str


Event = Datagram | Wanted | Alive | Roamed | Dead | Control | Cookie | Failed
Listener = Callable[[Event], None]


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
    packets_sent: int
    packets_received: int
    bytes_sent: int
    bytes_received: int
    drops: dict[str, int]


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
        """Begin to move packets. Events come in order, each in a turn of the event loop, never out of a call here."""

    def add_tunnel(
        self, session: Session, inner: IPv4Address, endpoint: Endpoint, *, first: bytes | None = None
    ) -> None:
        """Take a tunnel into use for the private address ``inner``.

        Before this returns, tunnel packets that came early are opened, and sent are: ``first``, a plaintext of the
        control plane, if given; then what was held for ``inner``, in order.
        An older tunnel of ``inner`` still receives until it dies. Raises ValueError if the tid is in use, ``inner``
        cannot stand for a peer (outside the subnet, own or broadcast address) or the engine is closed.
        """

    def remove_tunnel(self, tid: bytes) -> None:
        """Erase the tunnel's keys and forget it; no Dead is reported. Unknown: nothing happens."""

    def hold(self, inner: IPv4Address) -> None:
        """Hold packets for ``inner`` without reporting Wanted. Nothing happens where a tunnel exists."""

    def drop_held(self, inner: IPv4Address, *, unreachable: bool) -> None:
        """Drop what is held for ``inner``; if ``unreachable``, its senders get ICMP host unreachable.

        The next packet to ``inner`` reports Wanted again.
        """

    def send_datagram(self, data: bytes, endpoint: Endpoint) -> None:
        """Send a datagram of the control plane from the tunnel's socket. What cannot be sent is counted."""

    def send_inner(self, tid: bytes, packet: bytes) -> None:
        """Seal a plaintext of the control plane and send it. For an unknown tunnel it is dropped and counted."""

    def stats(self) -> EngineStats:
        """Return a snapshot of all counters."""

    def close(self) -> None:
        """Erase all keys, close both descriptors, report nothing more. May be called twice."""
