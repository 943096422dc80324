"""One engine between sockets of the test's own: the programs of its host on one side, a peer on the other."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from typing import Any, Protocol, TypeVar

from pqtun.protocol import control, private6
from pqtun.protocol.handshake import Session
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.engine import Alive, Engine, Event, HandshakeLimits, Listener, TunnelStats
from tests.pump import packets as p

T = TypeVar("T")

OWN = "10.43.0.1"
PEER = "10.43.0.7"
OTHER = "10.43.0.8"
SUBNET = IPv4Network("10.43.0.0/16")
# How the far end calls us and itself.
FAR_OWN, FAR_US = "10.42.0.1", "10.42.0.9"
# The same over IPv6. Each end has a prefix of its own.
_HERE, _THERE = private6.prefix(SUBNET), private6.prefix(IPv4Network("10.42.0.0/16"))
OWN_6, PEER_6, OTHER_6 = (str(private6.address6(_HERE, IPv4Address(inner))) for inner in (OWN, PEER, OTHER))
FAR_OWN_6, FAR_US_6 = (str(private6.address6(_THERE, IPv4Address(inner))) for inner in (FAR_OWN, FAR_US))
OWN6 = IPv6Interface(f"{OWN_6}/{private6.PREFIX_BITS}")
# The tunnels that the rig marks its own packets with.
_MARKED = "10.43.254.254"
_FIRST_MARKER = 50_000
TIMEOUT = 10.0


class FakeClock:
    """Time passes only when the test says so."""

    def __init__(self) -> None:
        self._now = 1000.0
        self.watchers: list[Callable[[float], None]] = []  # clocks that are to show the same

    def __call__(self) -> float:
        return self._now

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        for watcher in self.watchers:
            watcher(now)


class EngineFactory(Protocol):
    """Makes the engine under test."""

    def __call__(
        self,
        tun_fd: int,
        udp: socket.socket,
        *,
        own: IPv4Address,
        subnet: IPv4Network,
        own6: IPv6Interface | None,
        deliver_to: IPv4Address | None,
        handshakes: HandshakeLimits | None,
        clock: FakeClock,
        loop: asyncio.AbstractEventLoop,
    ) -> Engine: ...


def session(number: int) -> tuple[Session, Session]:
    """The two ends of a tunnel: ours and the peer's. Another number is another tunnel."""
    tid, up, down, resume = (bytes([kind]) * 30 + number.to_bytes(2, "big") for kind in (1, 2, 3, 4))
    ours = Session(tid, bytearray(up), bytearray(down), bytearray(resume))
    return ours, Session(tid, bytearray(down), bytearray(up), bytearray(resume))


class Far:
    """The other end of a tunnel, played by the test: one UDP socket and the protocol's own Tunnel."""

    def __init__(self, rig: "Rig", number: int, *, epoch: int = 0, six: bool = False) -> None:
        self.rig = rig
        self.ours, theirs = session(number)
        self.tid = theirs.tid
        self.tunnel = Tunnel(theirs.tid, theirs.send_root, theirs.recv_root, rig.clock(), epoch)
        self.socket = rig.udp_socket(six=six)
        self.endpoint = endpoint_of(self.socket)

    def seal(self, plaintext: bytes) -> bytes:
        return self.tunnel.seal(plaintext, self.rig.clock())

    def send(self, datagram: bytes, via: socket.socket | None = None) -> None:
        sock = via or self.socket
        sock.sendto(datagram, self.rig.address6 if sock.family == socket.AF_INET6 else self.rig.address)

    def send_packet(self, data: bytes) -> None:
        self.send(self.seal(from_far(data)))

    async def datagram(self) -> bytes:
        return await self.rig.read(self.socket)

    async def plaintext(self) -> bytes:
        return self.tunnel.open(await self.datagram(), self.rig.clock())

    def quiet(self) -> bool:
        """Whether nothing waits to be read. Only says something after a later sign of life of the engine."""
        try:
            self.socket.recv(65535, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False


def endpoint_of(sock: socket.socket) -> tuple[str, int]:
    host, port, *_ = sock.getsockname()
    return host, port


def to_far(data: bytes, destination: str = PEER) -> bytes:
    """A packet as a program here sends it."""
    return p.udp_packet(OWN, destination, data)


def from_far(data: bytes) -> bytes:
    """The plaintext of a packet that the peer sends us."""
    return p.cleared(p.udp_packet(FAR_OWN, FAR_US, data))


def delivered(data: bytes, peer: str = PEER, host: str = OWN) -> bytes:
    """The packet of ``from_far`` as it reaches our programs."""
    return p.udp_packet(peer, host, data)


_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Rig:
    """The engine, both its descriptors' other ends, its events and its clock."""

    def __init__(
        self,
        factory: EngineFactory,
        *,
        deliver_to: str | None = None,
        handshakes: HandshakeLimits | None = None,
        own6: IPv6Interface | None = None,
        dual: bool = False,
    ) -> None:
        """``dual``: the engine has a socket of both families."""
        self.clock = FakeClock()
        self._sockets: list[socket.socket] = []
        self.programs, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.programs.setblocking(False)
        self._sockets.append(self.programs)
        self.tun_fd = tun.detach()
        udp = self.udp_socket(ours=False, dual=dual)
        self.udp_fd = udp.fileno()
        port = udp.getsockname()[1]
        self.address = ("127.0.0.1", port)
        self.address6 = ("::1", port)
        self.engine = factory(
            self.tun_fd,
            udp,
            own=IPv4Address(OWN),
            subnet=SUBNET,
            own6=own6,
            deliver_to=None if deliver_to is None else IPv4Address(deliver_to),
            handshakes=handshakes,
            clock=self.clock,
            loop=asyncio.get_running_loop(),
        )
        self.events: list[Event] = []
        self.listener: Listener = lambda event: self.events.append(event)
        self._heard = 0
        self._markers = 0
        self._marked: set[bytes] = set()
        self._prober = self.udp_socket()

    def udp_socket(
        self, host: str = "127.0.0.1", *, ours: bool = True, six: bool = False, dual: bool = False
    ) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if six or dual else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        if dual:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::" if dual else "::1" if six else host, 0))
        if os.geteuid() == 0:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 20)  # as the daemon's parent does
        if ours:
            self._sockets.append(sock)
        return sock

    def start(self) -> "Rig":
        self.engine.start(self._hear)
        return self

    def _hear(self, event: Event) -> None:
        self._heard += 1
        tid = getattr(event, "tid", None)
        if tid is not None and int.from_bytes(tid[-2:], "big") > _FIRST_MARKER:
            if isinstance(event, Alive):
                self._marked.add(event.tid)
        else:
            self.listener(event)

    def far(self, number: int = 1, inner: str | None = PEER, *, six: bool = False) -> Far:
        """A peer; its tunnel is added for ``inner`` unless that is None. ``six``: it has an IPv6 endpoint."""
        far = Far(self, number, six=six)
        if inner is not None:
            self.add(far, inner)
        return far

    def add(self, far: Far, inner: str = PEER) -> None:
        self.engine.add_tunnel(far.ours, IPv4Address(inner), far.endpoint)

    def write(self, packet: bytes) -> None:
        """A packet of a program here."""
        self.programs.send(packet)

    async def until(self, condition: Callable[[], T], what: str) -> T:
        """Poll until the condition is true."""
        loop = asyncio.get_running_loop()
        end = loop.time() + TIMEOUT
        turns = 0
        while not (value := condition()):
            assert loop.time() < end, f"waited in vain for {what}; events {self.events}, {self.engine.stats()}"
            turns += 1
            await asyncio.sleep(0 if turns < 100 else 0.001)
        return value

    async def read(self, sock: socket.socket) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await asyncio.get_running_loop().sock_recv(sock, 65535)

    async def delivered(self) -> bytes:
        """The next packet that the engine hands to our programs."""
        return await self.read(self.programs)

    async def event(self, kind: type[T]) -> T:
        """Wait for the first event of a kind and take it off the list."""
        found = await self.until(lambda: [e for e in self.events if isinstance(e, kind)], kind.__name__)
        self.events.remove(found[0])
        return found[0]

    async def settle(self) -> None:
        """Wait until the engine has handled all that was sent to it before, and the events about it have come.

        A marker comes behind all datagrams. An engine with threads counts at the end of a turn: when the second
        packet has been counted, the turn of the marker is over. The last marker comes behind all events but those of
        datagrams, of which each turn of the event loop delivers one at least.
        """
        self.drops()  # what is due is done before the first marker
        await self._marker()
        await self._probe()
        await self._probe()
        await self._marker()
        heard = -1
        while heard != self._heard:
            heard = self._heard
            for _ in range(2):
                await asyncio.sleep(0)

    async def _marker(self) -> None:
        """The first packet of a tunnel of its own is reported, whatever else is full."""
        self._markers += 1
        ours, theirs = session(_FIRST_MARKER + self._markers)
        now = self.clock()
        self.engine.add_tunnel(ours, IPv4Address(_MARKED), endpoint_of(self._prober))
        tunnel = Tunnel(theirs.tid, theirs.send_root, theirs.recv_root, now)
        self._prober.sendto(tunnel.seal(control.encode([], IPv4Address(FAR_OWN)), now), self.address)
        await self.until(lambda: ours.tid in self._marked, "the marker")
        self.engine.remove_tunnel(ours.tid)

    async def _probe(self) -> None:
        refused = self.drops().get("tun_not_ipv4", 0)
        await asyncio.get_running_loop().sock_sendall(self.programs, b"\0")  # there may be no room yet
        await self.until(lambda: self.drops().get("tun_not_ipv4", 0) > refused, "the probe")

    def drops(self) -> dict[str, int]:
        return self.engine.stats().drops

    def stats(self, far: Far) -> TunnelStats:
        """The counters of a peer's tunnel."""
        return next(t for t in self.engine.stats().tunnels if t.tid == far.tid)

    def tunnel_drops(self, tid: bytes) -> dict[str, int]:
        return next(t.drops for t in self.engine.stats().tunnels if t.tid == tid)

    async def pass_time(self, seconds: float) -> None:
        """Move the clock, and have the engine do what is due."""
        self.clock.now += seconds
        await self.settle()

    def close(self) -> None:
        self.engine.close()
        for sock in self._sockets:
            sock.close()


@contextlib.contextmanager
def rig(factory: EngineFactory, **options: Any) -> Iterator[Rig]:
    made = Rig(factory, **options)
    try:
        yield made.start()
    finally:
        made.close()


def is_open(fd: int, inode: int) -> bool:
    """Whether the descriptor still is the open file that it was."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False
