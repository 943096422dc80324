"""The server service: answers handshakes, gives each client a private address, and serves its public key."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from typing import Any, Final

from pqtun.daemon import clock, host, privilege, report
from pqtun.daemon.confirm import Confirmations
from pqtun.daemon.control import ControlSocket, Handler
from pqtun.daemon.cookies import CookieKeys
from pqtun.daemon.ending import stopped_or_failed
from pqtun.daemon.engines import choose_engine, make_engine
from pqtun.daemon.listeners import Listeners
from pqtun.daemon.priority import behind_packets
from pqtun.daemon.resumption import ResumptionMemory
from pqtun.daemon.rundir import RunDirectory
from pqtun.daemon.settings import MIN_MTU, ServerSettings
from pqtun.daemon.supervisor import prepare, supervise
from pqtun.daemon.tenants import Tenant, Tenants
from pqtun.daemon.waiting import Waiting
from pqtun.keys.directory import LongTermKey, open_key_files
from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.admission import Admission
from pqtun.keyserver.limits import EPHEMERAL_PER_HANDSHAKE
from pqtun.keyserver.server import KeyServer, KeyServerSocket
from pqtun.protocol import control, cookie, handshake
from pqtun.protocol.base32 import encode
from pqtun.protocol.constants import COOKIE_BYTES, HANDSHAKE
from pqtun.protocol.errors import MessageError, UserError
from pqtun.protocol.handshake import Session
from pqtun.protocol.keytree import KeyTree
from pqtun.protocol.replay import ReplayMemory
from pqtun.pump import icmp
from pqtun.pump.engine import (
    Alive,
    Control,
    Datagram,
    Dead,
    Endpoint,
    Engine,
    Event,
    Failed,
    HandshakeLimits,
    Roamed,
    Wanted,
)

# Where no address is free, the oldest tunnel goes first whose client did not answer our question: a handshake costs
# nobody anything, nor does a source that is forged. But an answer may take so many seconds, or get lost twice.
NEWCOMER_SECONDS: Final = 3.0

# Where all are in use, so many of all go at once, the longest idle: to look through 65,000 takes 50 ms, which must not
# come with every handshake.
EVICTED_PART: Final = 16

EXPIRE_SECONDS: Final = 1.0  # how late a key may be erased, and a question repeated
STATUS_PEERS: Final = 1000  # in the status document, those used last; they make 0.4 MB


class ServerService:
    """What the server's worker does: handshakes in, tunnels out."""

    def __init__(self, settings: ServerSettings, tun: host.Tun, engine: Engine, key: LongTermKey) -> None:
        self._settings = settings
        self._tun = tun
        self._own = tun.address.ip
        self._engine = engine
        self._key = key
        self._started = clock.boottime()
        self._ring = EphemeralRing(clock.wall, clock.boottime)
        self._replays = ReplayMemory()
        self._tenants = Tenants(tun.address)
        self._resumption = ResumptionMemory()
        self._cookies = CookieKeys()
        self._confirmations = Confirmations()
        self._waiting = Waiting()
        self._listeners = Listeners(engine, self._own)
        self._behind_packets = behind_packets(engine)
        self._counters: Counter[str] = Counter()
        features = control.FEATURE_RESUME
        if tun.address6 is not None and settings.deliver_to is None:
            features |= control.FEATURE_IPV6_INSIDE
        self._hello = control.Hello(control.PROTOCOL_VERSION, features, tun.mtu)
        admission = Admission(EPHEMERAL_PER_HANDSHAKE * settings.handshakes_per_prefix)
        self.key_server = KeyServer(KeyTree(key.public), self._ring, admission, engine.expect)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin to move packets."""
        self._engine.start(self.handle)

    def close(self) -> None:
        """Tell the clients, erase all keys and stop."""
        farewell = control.encode([control.Bye(control.BYE_STOPPING)], self._own)
        for tid in self._tenants.tids():
            self._engine.send_inner(tid, farewell)
        self._engine.close()
        self._ring.erase()
        self._cookies.erase()
        self._resumption.erase()

    async def keep_deadlines(self) -> None:
        """Erase what is too old and repeat questions, until cancelled. A fault in that ends the service."""
        try:
            while True:
                await asyncio.sleep(EXPIRE_SECONDS)
                self.expire(clock.boottime())
        except Exception as fault:
            if not self.failed.done():
                self.failed.set_exception(fault)
            raise

    def expire(self, now: float) -> None:
        """Do what is due."""
        self._ring.expire()
        for tid in [*self._cookies.expire(now), *self._resumption.expire(now)]:
            self._give_up(tid)
        for inner in self._waiting.quiet(now):
            self._engine.drop_held(inner, unreachable=False)
        for inner in self._waiting.unsure(now):
            self._engine.hold(inner, report=True)
        for tid, token, endpoint in self._confirmations.due(now):
            self._send_question(tid, token, endpoint)
        self._listeners.tick(self._tenants, now)

    def handle(self, event: Event) -> None:
        """Take an event of the engine."""
        now = clock.boottime()
        match event:
            case Datagram(data, source):
                try:
                    self._datagram(data, source, now)
                except MessageError as error:
                    self._counters[error.reason] += 1
            case Wanted(inner):
                # Whoever has this address may be back soon; else nobody has it: a client that is gone, or never was.
                if self._tenants.is_reserved(inner):
                    self._waiting.wanted(inner, now)
                else:
                    self._engine.drop_held(inner, unreachable=True)
            case Alive(tid):
                tenant = self._tenants.get(tid)
                if tenant is not None:
                    self._tenants.heard(tid)
                    self._listeners.add(tid)
                    self._ask(tid, tenant.source, now)
            case Roamed(tid, endpoint):
                if tid in self._tenants:
                    self._ask(tid, endpoint, now)
            case Dead(tid):
                self._lost(tid, now)
            case Control(tid, packet):
                try:
                    self._control(tid, packet, now)
                except MessageError as error:
                    self._counters[error.reason] += 1
            case Failed(reason):
                if not self.failed.done():
                    self.failed.set_exception(RuntimeError(reason))
            case _:
                self._counters[type(event).__name__.lower()] += 1

    def status(self) -> dict[str, Any]:
        """Return the status document; of many peers those that were used last."""
        now = clock.boottime()
        stats = self._engine.stats(STATUS_PEERS)
        head = report.service(
            "server",
            started=self._started,
            now=now,
            engine=self._engine,
            interface=self._tun.name,
            address=self._tun.address,
            port=self._settings.port,
            mtu=self._tun.mtu,
        )
        head["key_port"] = self._settings.key_port
        head["keyhash"] = encode(self._key.keyhash)
        peers = [
            {
                "name": tunnel.tid.hex()[:16],
                "private_address": str(tunnel.inner),
                "state": "up",
                **report.tunnel(tunnel, now),
            }
            for tunnel in stats.tunnels
        ]
        return {
            **head,
            "peers": peers,
            "peers_total": len(self._tenants),
            "reserved_addresses": self._tenants.reserved,
            **report.engine(stats),
            "handshakes": dict(self._counters),
            "key_server": dict(self.key_server.counters),
        }

    # -- new tunnels -----------------------------------------------------------------------------

    def _datagram(self, data: bytes, source: Endpoint, now: float) -> None:
        if data.startswith(HANDSHAKE):
            self._handshake(data, source, now)
        elif cookie.is_cookie(data):
            self._returned(data, source, now)
        else:
            raise MessageError("unknown_datagram")

    def _handshake(self, data: bytes, source: Endpoint, now: float) -> None:
        message = handshake.parse(data)
        name = self._replays.check(message.c0, now)
        with self._behind_packets():
            session = handshake.respond(message, self._key.secret, self._ring.acceptable())
        try:
            self._replays.remember(name, now)
            self._engine.expect(source[0])  # the same client may have to try again
            inner = self._place(session.tid, source, now)
            if self._resumption.offer(session.tid, session.resume_secret, now) is not None:
                self._counters["resume_new_full"] += 1
            self._counters["accepted"] += 1
            self._engine.add_tunnel(session, inner, source, confirmed=False)
        finally:
            session.erase()

    def _returned(self, data: bytes, source: Endpoint, now: float) -> None:
        """A tunnel that was put aside comes back (section 7). A PQConnect client appends its next tunnel packet."""
        state = self._cookies.open(data[:COOKIE_BYTES], now)
        session = Session(state.tid, state.send_root, state.recv_root, bytearray())
        try:
            inner = self._tenants.take_back(state.tid, source, now) or self._place(state.tid, source, now)
            self._waiting.ended(inner)
            self._counters["cookie_accepted"] += 1
            self._engine.add_tunnel(session, inner, source, epoch=state.epoch + 1, confirmed=False)
        finally:
            session.erase()

    def _place(self, tid: bytes, source: Endpoint, now: float) -> IPv4Address:
        """Return an address for a new tunnel; others make room if they must. Raises MessageError."""
        inner = self._tenants.take(tid, source, now)
        while inner is None:
            gone = self._tenants.longest_gone()
            if self._drop_newcomer(now) or self._drop_crowding():
                pass
            elif gone is not None:
                self._resumption.forget(gone)
                self._give_up(gone)
                self._counters["resume_address_taken"] += 1
            elif not self._evict(now):
                raise MessageError("no_free_address")
            inner = self._tenants.take(tid, source, now)
        return inner

    # -- the end of tunnels ----------------------------------------------------------------------

    def _drop_newcomer(self, now: float) -> bool:
        """Somebody who may never have been there makes room."""
        tid = self._tenants.oldest_newcomer(now - NEWCOMER_SECONDS)
        tenant = None if tid is None else self._tenants.get(tid)
        if tid is None or tenant is None:
            return False
        if tenant.heard and not tenant.pqtun:  # a PQConnect host that answers no echo request comes back
            self._put_aside(tid, now)
            self._give_up(tid)
        else:
            self._dismiss(tid)
        self._counters["evicted"] += 1
        return True

    def _drop_crowding(self) -> bool:
        """A source prefix that has more than its share makes room for all."""
        oldest = self._tenants.crowding()
        if oldest is None:
            return False
        self._dismiss(oldest)
        self._counters["evicted_crowd"] += 1
        return True

    def _dismiss(self, tid: bytes) -> None:
        """Nothing is remembered of a client, and it is told if it can be."""
        tenant = self._tenants.get(tid)
        if tenant is not None and tenant.pqtun:
            self._engine.send_inner(tid, control.encode([control.Bye(control.BYE_STOPPING)], self._own))
        self._remove(tid)

    def _evict(self, now: float) -> bool:
        """Put the longest idle tunnels aside, several at once; false if there are none."""
        idle = self._engine.longest_idle(1 + len(self._tenants) // EVICTED_PART)
        farewell = control.encode([control.Bye(control.BYE_MAKING_ROOM)], self._own)
        for tunnel in idle:
            self._counters["evicted"] += 1
            tenant = self._tenants.get(tunnel.tid)
            if tenant is None or tunnel.last_received is None:
                self._remove(tunnel.tid)
            elif tenant.pqtun:  # with its next packet it resumes
                self._engine.send_inner(tunnel.tid, farewell)
                self._engine.remove_tunnel(tunnel.tid)
                self._lost(tunnel.tid, now)
            else:
                self._put_aside(tunnel.tid, now)
        return bool(idle)

    def _put_aside(self, tid: bytes, now: float) -> None:
        seal = self._cookies.seal(tid, now)
        if seal is None:
            self._counters["cookie_limit"] += 1
            self._remove(tid)
            return
        self._engine.put_aside(tid, seal.key, seal.nonce, seal.timestamp)
        self._confirmations.forget(tid)
        self._resumption.forget(tid)
        self._tenants.reserve(tid)
        self._counters["cookie_sent"] += 1

    def _lost(self, tid: bytes, now: float) -> None:
        """A tunnel is gone; if its client can continue it, its address waits."""
        self._confirmations.forget(tid)
        tenant = self._tenants.get(tid)
        if tenant is not None and not tenant.known:
            self._resumption.forget(tid)  # else forged sources could keep addresses for a day
        if self._resumption.died(tid, now):
            self._tenants.reserve(tid)
        else:
            self._tenants.release(tid)

    def _remove(self, tid: bytes) -> None:
        """A tunnel goes for good."""
        self._engine.remove_tunnel(tid)
        self._confirmations.forget(tid)
        self._resumption.forget(tid)
        self._tenants.release(tid)
        self._give_up(tid)

    def _give_up(self, tid: bytes) -> None:
        """The address that waits for a tunnel may be another's next: what is held for the one is not for the other."""
        inner = self._tenants.address(tid)
        self._tenants.give_up(tid)
        if inner is not None and self._waiting.ended(inner):
            self._engine.drop_held(inner, unreachable=True)

    # -- control packets -------------------------------------------------------------------------

    def _control(self, tid: bytes, packet: bytes, now: float) -> None:
        tenant = self._tenants.get(tid)
        if tenant is None:
            return  # the tunnel was removed while this waited
        token = icmp.echo_token(packet)
        if token is not None:
            self._answered(tid, token)
            return
        items = control.parse(packet)
        if any(isinstance(item, control.Bye) for item in items):
            self._remove(tid)
            return
        answers: list[control.Item] = []
        hellos = [item for item in items if isinstance(item, control.Hello)]
        if hellos:
            self._said_hello(tid, tenant, hellos[0])
            answers.append(self._hello)
        self._resume(tid, tenant, [item for item in items if isinstance(item, control.Resume)])
        size = 0
        for item in items:
            match item:
                case control.Ping(data):
                    answers.append(control.Pong(data))
                    size = len(packet)  # the answer shows that a packet of that size passes both ways
                case control.Pong(data):
                    self._answered(tid, data)
                case _:
                    pass
        if size:
            self._confirmations.revive(tid)
        if answers:
            self._engine.send_inner(tid, control.encode(answers, self._own, size))
        if hellos and (question := self._confirmations.again(tid, now)) is not None:
            self._send_question(tid, *question)

    def _said_hello(self, tid: bytes, tenant: Tenant, hello: control.Hello) -> None:
        """The client repeats it until it is answered: all of this may happen again."""
        tenant.pqtun = True
        self._engine.set_mtu(tid, max(MIN_MTU, min(self._tun.mtu, hello.mtu)))
        if hello.features & control.FEATURE_RESUME and (forgotten := self._resumption.keep(tid)) is not None:
            self._give_up(forgotten)
            self._counters["resume_full"] += 1

    def _resume(self, tid: bytes, tenant: Tenant, claims: list[control.Resume]) -> None:
        """The first tunnel that this one proves to continue leaves it its address; the others just end."""
        for claim in claims:
            proven = self._resumption.claim(claim.tid, claim.proof, tid)
            if not proven:
                if not tenant.resumed:  # else the client says it again because our answer was lost
                    self._counters["resume_unknown" if proven is None else "resume_proof"] += 1
                continue
            inner = None if tenant.resumed else self._tenants.succeed(tid, claim.tid)
            if inner is not None:
                self._take_over(tid, inner)
            self._remove(claim.tid)

    def _take_over(self, tid: bytes, inner: IPv4Address) -> None:
        held = self._waiting.ended(inner)
        try:
            self._engine.move_tunnel(tid, inner)
        except ValueError:  # it is dead already: the event of that waits, and then the address for a next tunnel
            if held:
                self._engine.drop_held(inner, unreachable=False)
        else:
            self._counters["resumed"] += 1

    def _ask(self, tid: bytes, endpoint: Endpoint, now: float) -> None:
        """Ask the peer whether it is where its packets say that they come from."""
        self._send_question(tid, self._confirmations.ask(tid, endpoint, now), endpoint)

    def _send_question(self, tid: bytes, token: bytes, endpoint: Endpoint) -> None:
        tenant = self._tenants.get(tid)
        if tenant is not None and tenant.pqtun:
            question = control.encode([control.Ping(token)], self._own)
        else:
            question = icmp.echo_request(self._own, token)
        self._engine.send_inner(tid, question, only=endpoint)

    def _answered(self, tid: bytes, token: bytes) -> None:
        self._listeners.answered(tid, token)
        endpoint = self._confirmations.answered(tid, token)
        if endpoint is not None:
            self._engine.confirm(tid, endpoint)
            self._tenants.confirmed(tid, endpoint)
            self._counters["confirmed"] += 1


def run_server(settings: ServerSettings, chosen: frozenset[str]) -> int:
    """Run the server until it is told to stop; return the exit code. Raises UserError if it cannot start.

    ``chosen``: the options that somebody set; only a subnet that nobody chose may be replaced.
    """
    privilege.require_root()
    choice = choose_engine(settings)
    user = privilege.find_user(settings.user)
    if settings.port == settings.key_port:
        raise UserError(f"--port and --key-port are both {settings.port}; choose two different ports")
    prepare()
    privilege.allow_locked_memory()
    with ExitStack() as stack:
        run = stack.enter_context(closing(RunDirectory(settings.run, "server")))
        key_files = stack.enter_context(closing(open_key_files(settings.keys)))
        udp = host.bind_udp_group(settings.port, "--port", choice.workers, choice.socket_buffer)
        for sock in udp:
            stack.enter_context(sock)
        key_udp = stack.enter_context(host.bind_udp(settings.key_port, "--key-port"))
        tun = host.make_tun(
            settings.interface,
            settings.address,
            settings.mtu,
            movable="address" not in chosen,
            queues=choice.workers,
            vnet_header=choice.offload.vnet_header,
            ipv6=settings.deliver_to is None,
        )
        stack.callback(host.remove_tun, tun.name)
        stack.callback(tun.close)
        if settings.deliver_to is not None:
            host.check_own_address(settings.deliver_to, "--deliver-to")
        control_sock = stack.enter_context(run.listen(user.pw_gid))

        async def body(ready: Callable[[], None], stop: asyncio.Event) -> None:
            key = key_files.load()
            key_files.close()
            limits = HandshakeLimits(settings.handshakes_per_second, settings.handshakes_per_prefix)
            engine = make_engine(choice, tun, udp, clock.boottime, settings.deliver_to, handshakes=limits)
            service = ServerService(settings, tun, engine, key)
            await _serve(service, key_udp, control_sock, ready, stop)

        handed = [*(sock.close for sock in udp), key_udp.close, key_files.close, control_sock.close, tun.close]
        return supervise("server", user, body, handed=handed, kept=[run.leave_to_parent])


async def _serve(
    service: ServerService,
    key_udp: socket.socket,
    control_sock: socket.socket,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    keys = KeyServerSocket(service.key_server, [key_udp], clock.boottime)
    handlers: Mapping[str, Handler] = {"status": lambda _: service.status()}
    control_socket = ControlSocket(control_sock, handlers)
    deadlines = asyncio.ensure_future(service.keep_deadlines())
    try:
        service.start()
        keys.start()
        await control_socket.start()
        ready()
        await stopped_or_failed(stop, service.failed)
    finally:
        deadlines.cancel()
        await control_socket.close()
        keys.close()
        service.close()
