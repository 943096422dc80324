"""One peer's link in virtual time, with an engine, a connector and a server that the test directs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from pqtun.daemon import link as link_module
from pqtun.daemon import liveness
from pqtun.daemon.connector import ConnectError, Contact
from pqtun.daemon.link import Link
from pqtun.daemon.peers import Peer
from pqtun.daemon.upkeep import Own
from pqtun.protocol import control
from pqtun.protocol.handshake import Session
from pqtun.pump.engine import EngineStats, TunnelStats
from tests.daemon.virtual import now, play

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
        await asyncio.sleep(0.01)
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
            b"handshake", Session(tid, bytearray(32), bytearray(32), bytearray(secret)), (str(address), 42424), address
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

    def send_inner(self, tid: bytes, packet: bytes) -> None:
        """The server answers 20 ms later, if it gets to hear of it."""
        tunnel = self.tunnels.get(tid)
        if tunnel is None:
            return
        tunnel.last_sent = now()
        if self.reachable:
            asyncio.get_running_loop().call_later(0.01, self._serve, tid, packet)

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
            asyncio.get_running_loop().call_later(0.01, arrive)

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


def test_connects_once_however_often_wanted() -> None:
    async def scenario() -> None:
        world = World()
        assert world.link.state == "idle"
        world.link.want()
        world.link.want()
        assert world.link.state == "connecting"
        await world.until(lambda: world.link.state == "up")
        world.link.want()
        assert [name for name in world.names() if name != "mtu"] == ["hold", "contact", "handshake", "add"]
        assert world.log[-1] != ("add", 1, True)
        assert world.index == {b"\1" * 32: world.link}

    play(scenario())


def test_a_lost_handshake_is_followed_by_a_fresh_one_after_a_second() -> None:
    async def scenario() -> None:
        world = World()
        world.link.want()
        await world.until(lambda: "handshake" in world.names())
        world.reachable = False
        sent = now()
        await asyncio.sleep(0.5)
        world.reachable = True
        world.tunnels.clear()  # what was sent is lost
        await world.until(lambda: world.names().count("handshake") == 2)
        assert 1.0 <= now() - sent <= 2.5
        await world.until(lambda: world.link.state == "up")
        assert list(world.tunnels) == [world.link.tid]
        assert world.index == {world.link.tid: world.link}

    play(scenario())


def test_silence_for_90_seconds_then_programs_are_told() -> None:
    async def scenario() -> None:
        world = World()
        world.reachable = False
        world.link.want()
        await asyncio.sleep(85)
        assert world.link.state == "connecting"
        assert ("drop_held", True) not in world.log
        await world.until(lambda: world.link.state == "failed", 30)
        assert world.log[-1] == ("drop_held", True)
        assert world.link.error is not None
        assert world.failures == 1
        assert not world.tunnels
        await asyncio.sleep(link_module.MIN_PAUSE)
        world.reachable = True
        world.link.want()  # the next packet: quietly, once more
        assert await world.until(lambda: world.link.state == "up") < 1
        assert world.link.error is None

    play(scenario())


def test_a_known_failure_is_told_sooner() -> None:
    """While the server stays out of reach, each try fails within seconds; never more than one a second."""

    async def scenario() -> None:
        world = World()
        world.reachable = False
        world.link.want()
        await world.until(lambda: world.link.state == "failed")
        world.link.want()
        assert world.link.state == "failed"
        assert world.log[-1] == ("drop_held", True)
        await asyncio.sleep(link_module.MIN_PAUSE)
        world.link.want()
        assert world.link.state == "connecting"
        assert await world.until(lambda: world.link.state == "failed") < 15

    play(scenario())


@pytest.mark.parametrize(
    ("proven", "reason", "repeats"),
    [
        (False, "wrong_key", False),
        (True, "wrong_key", False),
        (False, "network", False),
        (True, "network", True),
    ],
)
def test_what_a_server_says_for_certain_is_not_waited_for(proven: bool, reason: str, repeats: bool) -> None:
    async def scenario() -> None:
        world = World(peer(good=FIRST) if proven else None)
        world.error = ConnectError(reason, "for certain")
        world.link.want()
        await asyncio.sleep(5)
        assert world.link.state == ("connecting" if repeats else "failed")

    play(scenario())


def test_a_packet_hurries_the_next_attempt() -> None:
    async def scenario() -> None:
        world = World()
        world.error = ConnectError("no_answer", "silent")
        world.link.want()
        await asyncio.sleep(50)
        assert world.log[-1] == ("hold", True)  # the next packet is told of
        tried = world.names().count("contact")
        assert tried < 12
        world.error = None
        world.link.want()
        assert await world.until(lambda: world.link.state == "up") <= 1.2

    play(scenario())


def test_the_address_that_did_not_answer_comes_last() -> None:
    async def scenario() -> None:
        world = World()
        real = world._serve
        world._serve = lambda tid, packet: None
        world.link.want()
        await asyncio.sleep(4.5)
        world._serve = real
        await world.until(lambda: world.link.state == "up")
        assert [entry[1] for entry in world.log if entry[0] == "contact"][:3] == [(), (FIRST,), (FIRST, SECOND)]

    play(scenario())


def test_an_idle_tunnel_is_kept_while_a_program_is_connected_and_no_longer() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        await world.run(600)
        assert world.link.state == "up"
        assert world.sessions == 1
        world.used = world.connected = False
        tunnel = world.tunnels[world.link.tid or b""]
        await world.run(10)
        sent = tunnel.last_sent
        await world.run(100)
        assert tunnel.last_sent == sent

    play(scenario())


def test_a_cut_of_five_minutes_is_outlived() -> None:
    """The new tunnel takes over the old one's address, although that was dead long ago."""

    async def scenario() -> None:
        world = World()
        await world.up()
        place = world.inner_of[world.link.tid or b""]
        world.reachable = False
        await world.run(120, packets=15)
        if world.link.tid is not None:
            world.die()
        await world.run(180)
        world.reachable = True
        begin = now()
        world.program_sends()
        await world.until(lambda: world.link.state == "up", 12)
        assert now() - begin < 12
        assert world.inner_of[world.link.tid or b""] == place
        assert list(world.tunnels) == [world.link.tid]

    play(scenario())


def test_silence_on_traffic_brings_a_new_tunnel_within_ten_seconds() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        old = world.link.tid
        world._serve = lambda tid, packet: World._serve(world, tid, packet) if tid != old else None
        deliver = world._deliver
        world._deliver = lambda tid, action: None if tid == old else deliver(tid, action)
        begin = now()
        await world.run(12, packets=0.5)
        assert world.link.tid not in (old, None)
        assert world.link.state == "up"
        assert world.route == world.link.tid
        moved = world.log.index(("move", 2))
        assert world.log.index(("hold", False), 5) < moved < world.log.index(("remove", 1))
        assert begin < world.tunnels[world.link.tid or b""].created < begin + 10

    play(scenario())


def test_nothing_of_a_program_goes_before_the_server_has_moved_the_tunnel() -> None:
    """It would answer from another address, or end the connection."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.die()
        lost = [2]  # hellos

        real = world._serve

        def serve(tid: bytes, packet: bytes) -> None:
            if control.is_control(packet) and lost[0]:
                lost[0] -= 1
            else:
                real(tid, packet)

        world._serve = serve
        world.link.want()
        await world.until(lambda: ("add", 2, True) in world.log)
        await asyncio.sleep(0.1)
        assert world.route is None
        assert world.link.state == "connecting"
        await world.until(lambda: world.link.state == "up")
        assert world.inner_of[b"\2" * 32] == 1
        assert world.route == b"\2" * 32

    play(scenario())


def test_a_server_that_has_forgotten_everything() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.inner_of.clear()
        world.die()
        world.link.want()
        await world.until(lambda: world.link.state == "up")
        assert world.route == world.link.tid

    play(scenario())


def test_an_attempt_that_only_the_server_knows_of_is_continued_too() -> None:
    """Its answers are lost: the server has moved the address to a tunnel that the client has given up."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.die()
        deliver = world._deliver
        world._deliver = lambda tid, action: None
        world.link.want()
        await world.until(lambda: ("remove", 2) in world.log)
        assert world.inner_of == {b"\2" * 32: 1}
        world._deliver = deliver
        await world.until(lambda: world.link.state == "up")
        assert world.inner_of == {world.link.tid: 1}
        assert len(world.tunnels) == 1

    play(scenario())


def test_a_tunnel_that_comes_back_before_the_next_attempt_is_kept() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.error = ConnectError("no_answer", "silent")
        world.reachable = False
        await world.run(12, packets=1)
        assert world.link.state == "connecting"
        world.reachable = True
        world.program_sends()
        await world.run(2)
        assert world.link.state == "up"
        assert world.link.tid == b"\1" * 32
        assert ("move", 1) in world.log

    play(scenario())


def test_connections_to_pqconnect_stay_in_the_old_tunnel_while_it_works() -> None:
    async def scenario() -> None:
        world = World()
        world.pqtun = False
        await world.up()
        world.reachable = False
        await world.run(liveness.PATIENT_LOST_SECONDS + 3, packets=1)
        assert world.link.state == "connecting"
        assert ("hold", False) not in world.log[3:]  # packets go on into the old one
        world.reachable = True
        await world.run(20, packets=1)
        assert world.link.tid == b"\1" * 32
        assert list(world.tunnels) == [b"\1" * 32]
        assert world.link.state == "up"

    play(scenario())


def test_pqconnect_after_a_restart() -> None:
    async def scenario() -> None:
        world = World()
        world.pqtun = False
        await world.up()
        old = world.link.tid
        deliver = world._deliver
        world._deliver = lambda tid, action: None if tid == old else deliver(tid, action)
        await world.run(liveness.PATIENT_LOST_SECONDS + 5, packets=1)
        assert world.link.tid == b"\2" * 32
        assert list(world.tunnels) == [b"\2" * 32]

    play(scenario())


def test_a_farewell_leaves_nothing_to_continue() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.link.ended(world.link.tid or b"")
        assert not world.tunnels
        world.link.want()
        await world.until(lambda: world.link.state == "up")
        assert ("add", 2, False) in world.log

    play(scenario())


def test_open_connections_get_a_new_tunnel_without_a_packet() -> None:
    """After sleep the old one is dead; the server may have something to say."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.die()
        await world.run(2)
        assert world.link.state == "up"
        world.die()
        world.connected = False
        await world.run(30)
        assert world.link.state == "idle"

    play(scenario())


def test_a_hint_or_a_new_address_is_followed_at_once() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.tunnels[world.link.tid or b""].last_received = now()
        old = world.link.tid
        deliver = world._deliver
        world._deliver = lambda tid, action: None if tid == old else deliver(tid, action)
        world.link.suspect(path=False)
        await world.run(liveness.SUSPECT_SECONDS + 2)
        assert world.link.tid == b"\2" * 32
        world._deliver = deliver
        for _ in range(10):
            world.link.suspect(path=True)
            await world.run(3)
        assert world.link.tid == b"\2" * 32

    play(scenario())


@pytest.mark.parametrize(
    ("used", "epoch"), [(True, link_module.REPLACE_EPOCH), (False, link_module.REPLACE_IDLE_EPOCH)]
)
def test_a_tunnel_is_replaced_before_its_epochs_end(used: bool, epoch: int) -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.used = used
        world.tunnels[b"\1" * 32].epoch = epoch - 1
        await world.run(1)
        assert world.sessions == 1
        world.tunnels[b"\1" * 32].epoch = epoch
        await world.run(2)
        assert world.link.tid == b"\2" * 32
        assert ("hold", False) not in world.log[3:]  # programs notice nothing
        assert world.inner_of == {b"\2" * 32: 1}

    play(scenario())


def test_a_lost_introduction_is_repeated() -> None:
    async def scenario() -> None:
        world = World()
        world.pqtun = False
        await world.up()
        assert world.link.upkeep is not None
        assert world.link.upkeep.hello is None
        world.pqtun = True
        await world.run(2)
        assert world.link.upkeep.hello == SERVER_HELLO
        world.die()
        await world.run(2)
        assert ("add", 2, True) in world.log

    play(scenario())


def test_the_peer_is_asked_whether_it_is_where_it_has_moved() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.link.roamed(b"\1" * 32, ("198.51.100.9", 7))
        await world.run(1)
        assert world.log.count(("confirm", 1, ("198.51.100.9", 7))) >= 1
        confirmed = len(world.log)
        await world.run(3)
        assert ("confirm", 1, ("198.51.100.9", 7)) not in world.log[confirmed:]

    play(scenario())


def test_a_path_that_drops_large_packets_is_lived_with() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        send = world.send_inner
        world.send_inner = lambda tid, packet: send(tid, packet) if len(packet) <= 1200 else None
        assert world.link.upkeep is not None
        world.link.suspect(path=True)
        await world.run(30)
        assert world.link.upkeep.mtu == 1176
        assert world.log[-1] == ("mtu", 1, 1176)

    play(scenario())


def test_give_up_and_close_leave_nothing_behind() -> None:
    async def scenario() -> None:
        world = World()
        world.link.want()
        await world.until(lambda: "add" in world.names())
        world.link.give_up("for others")
        assert (world.link.state, world.link.error) == ("failed", "for others")
        assert not world.tunnels
        assert not world.index
        await asyncio.sleep(2)
        world.link.want()
        await world.until(lambda: "add" in world.names())
        await world.link.close()
        assert world.link.state != "connecting"

    play(scenario())


def test_an_internal_error_is_logged_and_ends_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        world.error = ValueError("a defect")
        world.link.want()
        await world.until(lambda: world.link.state == "failed")
        assert world.link.error == "internal error (ValueError)"

    play(scenario())
    assert any(record.exc_info for record in caplog.records)
