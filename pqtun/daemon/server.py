"""The server service: answers handshakes, gives each client a private address, and serves its public key."""

import asyncio
import heapq
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any, Final

from pqtun.daemon import clock, host, privilege, report
from pqtun.daemon.control import ControlSocket, Handler
from pqtun.daemon.ending import stopped_or_failed
from pqtun.daemon.engines import choose_engine, make_engine
from pqtun.daemon.priority import behind_packets
from pqtun.daemon.rundir import RunDirectory
from pqtun.daemon.settings import ServerSettings
from pqtun.daemon.supervisor import prepare, supervise
from pqtun.daemon.tenants import Tenants
from pqtun.keys.directory import LongTermKey, open_key_files
from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.server import KeyServer, KeyServerSocket
from pqtun.protocol import control, handshake
from pqtun.protocol.base32 import encode
from pqtun.protocol.constants import HANDSHAKE
from pqtun.protocol.errors import MessageError, UserError
from pqtun.protocol.keytree import KeyTree
from pqtun.protocol.replay import ReplayMemory
from pqtun.pump.engine import Alive, Control, Datagram, Dead, Engine, Event, Failed, Wanted

# When all private addresses are taken, the oldest tunnel that nothing was heard in goes, unless such are only one of so
# many: then a new one would go before its client can say a word. In that case so many of all go at once, for to look
# through 65,000 takes half a second, which must not come with every few handshakes.
EVICTED_PART: Final = 16
EXPIRE_SECONDS: Final = 1.0  # how late an ephemeral key may be erased


class ServerService:
    """What the server's worker does: handshakes in, tunnels out."""

    def __init__(self, settings: ServerSettings, tun: host.Tun, engine: Engine, key: LongTermKey) -> None:
        self._settings = settings
        self._tun = tun
        self._engine = engine
        self._key = key
        self._started = clock.boottime()
        self._ring = EphemeralRing(clock.wall, clock.boottime)
        self._replays = ReplayMemory()
        self._tenants = Tenants(tun.address)
        self._behind_packets = behind_packets(engine)
        self._counters: Counter[str] = Counter()
        self.key_server = KeyServer(KeyTree(key.public), self._ring)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin to move packets."""
        self._engine.start(self.handle)

    def close(self) -> None:
        """Tell the clients, erase all keys and stop."""
        farewell = control.encode([control.Bye(control.BYE_STOPPING)], self._tun.address.ip)
        for tid in self._tenants.tids():
            self._engine.send_inner(tid, farewell)
        self._engine.close()
        self._ring.erase()

    async def expire_keys(self) -> None:
        """Erase ephemeral keys when their time is over, until cancelled."""
        while True:
            await asyncio.sleep(EXPIRE_SECONDS)
            self._ring.expire()

    def handle(self, event: Event) -> None:
        """Take an event of the engine."""
        match event:
            case Datagram(data, source):
                try:
                    self._datagram(data, source)
                except MessageError as error:
                    self._counters[error.reason] += 1
            case Wanted(inner):  # nobody has this address: a client that is gone, or never was
                self._engine.drop_held(inner, unreachable=True)
            case Alive(tid):
                self._tenants.heard(tid)
            case Dead(tid):
                self._tenants.release(tid)
            case Control(tid, packet):
                try:
                    self._control(tid, packet)
                except MessageError as error:
                    self._counters[error.reason] += 1
            case Failed(reason):
                if not self.failed.done():
                    self.failed.set_exception(RuntimeError(reason))
            case _:
                self._counters[type(event).__name__.lower()] += 1

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        now = clock.boottime()
        stats = self._engine.stats()
        settings = self._settings
        head = report.service(
            "server",
            started=self._started,
            now=now,
            engine=self._engine,
            interface=self._tun.name,
            address=self._tun.address,
            port=settings.port,
            mtu=settings.mtu,
        )
        head["key_port"] = settings.key_port
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
            **report.engine(stats),
            "handshakes": dict(self._counters),
            "key_server": dict(self.key_server.counters),
        }

    def _datagram(self, data: bytes, source: tuple[str, int]) -> None:
        if not data.startswith(HANDSHAKE):
            raise MessageError("unknown_datagram")
        now = clock.boottime()
        message = handshake.parse(data)
        name = self._replays.check(message.c0, now)
        with self._behind_packets():
            session = handshake.respond(message, self._key.secret, self._ring.acceptable())
        try:
            self._replays.remember(name, now)
            inner = self._tenants.take(session.tid)
            if inner is None:
                self._evict()
                inner = self._tenants.take(session.tid)
            if inner is None:
                raise MessageError("no_free_address")
            self._counters["accepted"] += 1
            self._engine.add_tunnel(session, inner, source)
        finally:
            session.erase()

    def _evict(self) -> None:
        """Make room: first go tunnels that nothing was ever heard in, for a handshake costs nobody anything, then those
        that were silent for longest; several at once, for to find them takes long."""
        oldest = self._tenants.oldest_silent(EVICTED_PART)
        if oldest is not None:
            self._remove(oldest)
            return
        tunnels = self._engine.stats().tunnels
        for silent in heapq.nsmallest(
            1 + len(tunnels) // EVICTED_PART,
            tunnels,
            key=lambda tunnel: (tunnel.last_received is not None, tunnel.last_received or tunnel.created),
        ):
            self._remove(silent.tid)

    def _remove(self, tid: bytes) -> None:
        self._engine.remove_tunnel(tid)
        self._tenants.release(tid)
        self._counters["evicted"] += 1

    def _control(self, tid: bytes, packet: bytes) -> None:
        answers: list[control.Item] = []
        for item in control.parse(packet):
            match item:
                case control.Hello():
                    answers.append(control.Hello(control.PROTOCOL_VERSION, 0, self._settings.mtu))
                case control.Ping(data):
                    answers.append(control.Pong(data))
                case control.Bye():
                    self._engine.remove_tunnel(tid)
                    self._tenants.release(tid)
                    return
                case _:
                    pass
        if answers:
            self._engine.send_inner(tid, control.encode(answers, self._tun.address.ip))


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
        )
        stack.callback(host.remove_tun, tun.name)
        stack.callback(tun.close)
        if settings.deliver_to is not None:
            host.check_own_address(settings.deliver_to, "--deliver-to")
        control_sock = stack.enter_context(run.listen(user.pw_gid))

        async def body(ready: Callable[[], None], stop: asyncio.Event) -> None:
            key = key_files.load()
            key_files.close()
            engine = make_engine(choice, tun, udp, clock.boottime, settings.deliver_to)
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
    keys = KeyServerSocket(service.key_server, [key_udp])
    handlers: Mapping[str, Handler] = {"status": lambda _: service.status()}
    control_socket = ControlSocket(control_sock, handlers)
    expiry = asyncio.ensure_future(service.expire_keys())
    try:
        service.start()
        keys.start()
        await control_socket.start()
        ready()
        await stopped_or_failed(stop, service.failed)
    finally:
        expiry.cancel()
        await control_socket.close()
        keys.close()
        service.close()
