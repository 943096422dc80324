"""An engine, a connector and a server that a test of a link directs, in virtual time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from pqtun.daemon.connector import ConnectError, Contact
from pqtun.daemon.link import Link
from pqtun.daemon.peers import Peer
from pqtun.daemon.upkeep import Own
from pqtun.protocol import control
from pqtun.protocol.handshake import Session
from pqtun.pump.engine import EngineStats, TunnelStats
from tests.daemon.virtual import now

OWN, INNER = IPv4Address("10.43.0.1"), IPv4Address("10.43.0.2")
FIRST, SECOND, THIRD = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
SERVER_HELLO = control.Hello(1, control.FEATURE_RESUME, 1396)
TICK = 0.5


def peer(**changes: Any) -> Peer:
    known = Peer(2, INNER, b"k" * 32, "pq1k.example.net", (FIRST, SECOND), 42424, 42425, None, 0.0, False)
    return replace(known, **changes)


@dataclass
class Tunnel:
    """What the fake engine knows of one."""

    tid: bytes
    standby: bool
    created: float
    last_sent: float | None = None
    last_received: float | None = None
    last_used: float | None = None
    epoch: int = 0


class World:
    """Engine, connector and server; ``log`` has what the link asked for."""

    def __init__(self, known: Peer | None = None) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.reachable = True  # packets pass
        self.pqtun = True  # the server knows control packets
        self.remembers = True  # and old tunnels
        self.delay = 0.01  # of each packet, in seconds
        self.refuses: set[IPv4Address] = set()  # addresses whose key server does not answer
        self.error: ConnectError | None = None
        self.sessions = 0
        self.secrets: dict[bytes, bytes] = {}
        self.tunnels: dict[bytes, Tunnel] = {}
        self.route: bytes | None = None
        self.inner_of: dict[bytes, int] = {}  # at the server: which client a tunnel is taken for
        self.used = self.connected = True
        self.failures = 0
        self.index: dict[bytes, Link] = {}
        self.link = Link(
            known or peer(),
            self,
            self,
            Own(OWN, 1396, 1),
            now,
            index=self.index,
            failed=self._failed,
        )

    def _failed(self, _link: Link) -> None:
        self.failures += 1

    # -- the connector

    async def contact(
        self, known: Peer, resolver: object, *, avoid: object = (), on_progress: object = None
    ) -> Contact:
        self.log.append(("contact", tuple(avoid)))
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        addresses = [address for address in known.candidates if address not in self.refuses]
        if not addresses or not self.reachable:
            await asyncio.sleep(10)
            raise ConnectError("no_answer", "the key server does not answer")
        address = min(addresses, key=lambda address: address in avoid)
        self.sessions += 1
        tid, secret = bytes([self.sessions]) * 32, bytes([self.sessions + 100]) * 32
        self.secrets[tid] = secret
        return Contact(
            b"handshake",
            Session(tid, bytearray(32), bytearray(32), bytearray(secret)),
            (str(address), 42424),
            address,
            2 * self.delay,
        )

    # -- the engine

    def hold(self, inner: IPv4Address, *, report: bool = False) -> None:
        self.log.append(("hold", report))

    def drop_held(self, inner: IPv4Address, *, unreachable: bool) -> None:
        self.log.append(("drop_held", unreachable))

    def send_datagram(self, data: bytes, endpoint: object) -> None:
        self.log.append(("handshake", endpoint))

    def add_tunnel(
        self, session: Session, inner: IPv4Address, endpoint: object, *, first: bytes, standby: bool
    ) -> None:
        self.tunnels[session.tid] = Tunnel(session.tid, standby, now())
        self.log.append(("add", session.tid[0], standby))
        if not standby:
            self.route = session.tid
        self.send_inner(session.tid, first)

    def move_tunnel(self, tid: bytes, inner: IPv4Address) -> None:
        self.tunnels[tid].standby = False
        self.route = tid
        self.log.append(("move", tid[0]))

    def remove_tunnel(self, tid: bytes) -> None:
        if self.tunnels.pop(tid, None):
            self.log.append(("remove", tid[0]))

    def set_mtu(self, tid: bytes, mtu: int) -> None:
        self.log.append(("mtu", tid[0], mtu))

    def confirm(self, tid: bytes, endpoint: object) -> None:
        self.log.append(("confirm", tid[0], endpoint))

    def stats(self) -> EngineStats:
        return EngineStats([self._stats(tunnel) for tunnel in self.tunnels.values()], {}, 0, 0, 0, 0)

    def _stats(self, tunnel: Tunnel) -> TunnelStats:
        return TunnelStats(
            tunnel.tid,
            INNER,
            ("192.0.2.1", 42424),
            tunnel.epoch,
            tunnel.epoch,
            tunnel.created,
            tunnel.last_sent,
            tunnel.last_received,
            tunnel.last_used,
            True,
            None,
            *(0,) * 4,
            {},
        )

    def send_inner(self, tid: bytes, packet: bytes, *, only: object = None) -> None:
        """The server answers 20 ms later, if it gets to hear of it."""
        tunnel = self.tunnels.get(tid)
        if tunnel is None:
            return
        tunnel.last_sent = now()
        if self.reachable:
            asyncio.get_running_loop().call_later(self.delay, self._serve, tid, packet)

    def _serve(self, tid: bytes, packet: bytes) -> None:
        if not control.is_control(packet):
            self._deliver(tid, lambda: None)
            return
        if not self.pqtun:
            return
        for item in control.parse(packet):
            match item:
                case control.Resume(old, proof) if self.remembers and old in self.inner_of:
                    if tid not in self.inner_of and proof == control.resume_proof(self.secrets[old], tid):
                        self.inner_of[tid] = self.inner_of.pop(old)
                case control.Hello():
                    self._deliver(tid, lambda: self.link.introduced(tid, SERVER_HELLO))
                case control.Ping(data):
                    self._deliver(tid, lambda data=data: self.link.answered(tid, data))
        self.inner_of.setdefault(tid, self.sessions)

    def _deliver(self, tid: bytes, action: Callable[[], None]) -> None:
        def arrive() -> None:
            if tid in self.tunnels:
                self.tunnels[tid].last_received = now()
                self.link.alive(tid)
                action()

        if self.reachable:
            asyncio.get_running_loop().call_later(self.delay, arrive)

    # -- the client service

    async def run(self, seconds: float, *, packets: float | None = None) -> None:
        """Let time pass; every ``packets`` seconds a program sends one."""
        end, due = now() + seconds, now()
        while now() < end:
            if packets is not None and now() >= due:
                due += packets
                self.program_sends()
            stats = {tunnel.tid: tunnel for tunnel in self.stats().tunnels}
            if self.link.tick(stats.get(self.link.tid or b""), used=self.used, connected=self.connected):
                self.link.want()
            await asyncio.sleep(TICK)

    def program_sends(self) -> None:
        if self.route in self.tunnels:
            assert self.route is not None
            self.tunnels[self.route].last_sent = self.tunnels[self.route].last_used = now()
            if self.reachable:
                self._deliver(self.route, lambda: None)
        else:
            self.link.want()

    async def up(self) -> None:
        self.link.want()
        await self.until(lambda: self.link.state == "up")
        await asyncio.sleep(0.2)

    async def until(self, condition: Callable[[], bool], seconds: float = 200) -> float:
        begin = now()
        while not condition():
            assert now() < begin + seconds, self.log[-20:]
            await asyncio.sleep(0.005)
        return now() - begin

    def names(self) -> list[str]:
        return [entry[0] for entry in self.log]

    def die(self) -> None:
        """The engine removes the tunnel, as after 120 s of silence."""
        assert self.link.tid is not None
        tid = self.link.tid
        del self.tunnels[tid]
        self.route = None
        self.link.dead(tid)
