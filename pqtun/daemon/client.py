"""The client service: gives looked-up servers a private address and keeps tunnels to them."""

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from pqtun.daemon import clock, host, privilege, report
from pqtun.daemon.attempts import Attempts
from pqtun.daemon.connector import Address, Connector
from pqtun.daemon.control import ControlSocket, Handler
from pqtun.daemon.ending import stopped_or_failed
from pqtun.daemon.engines import choose_engine, make_engine
from pqtun.daemon.link import Link
from pqtun.daemon.loglimit import LogLimit
from pqtun.daemon.peers import Peer, PeerBook
from pqtun.daemon.rundir import RunDirectory
from pqtun.daemon.settings import ClientSettings
from pqtun.daemon.state import prepare_state
from pqtun.daemon.supervisor import prepare, supervise
from pqtun.dns.answer import rewrite
from pqtun.dns.origin import OriginalDestinations
from pqtun.dns.proxy import DnsProxy
from pqtun.dns.redirect import DnsSockets, Redirect, open_sockets
from pqtun.keys.cache import ServerKeyCache
from pqtun.protocol import control
from pqtun.protocol.base32 import encode
from pqtun.protocol.errors import MessageError
from pqtun.protocol.names import Announcement
from pqtun.pump.engine import Alive, Control, Dead, Engine, Event, Failed, TunnelStats, Wanted

log = logging.getLogger(__name__)

CACHED_KEYS: Final = 200  # servers' public keys on disk, 1 MB each
USED_INTERVAL: Final = 30.0  # seconds between notes of which peers carry traffic
PEERS_FILE: Final = "peers.sqlite"
KEYS_FOLDER: Final = "server-keys"


class ClientService:
    """What the client's worker does: DNS answers in, tunnels out."""

    def __init__(self, settings: ClientSettings, tun: host.Tun, engine: Engine) -> None:
        self._settings = settings
        self._tun = tun
        self._engine = engine
        self._started = clock.boottime()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events: Counter[str] = Counter()
        self._links: dict[IPv4Address, Link] = {}
        self._attempts = Attempts(self._events)
        self._cache = ServerKeyCache(settings.state / KEYS_FOLDER, CACHED_KEYS)
        self._connector = Connector(self._cache, clock.boottime)
        self._book = PeerBook(settings.state / PEERS_FILE, tun.address, clock.wall)

    def start(self) -> None:
        """Begin to move packets."""
        self._engine.start(self.handle)

    async def close(self) -> None:
        """Erase all keys and stop."""
        await asyncio.gather(*(link.close() for link in self._links.values()))
        farewell = control.encode([control.Bye(control.BYE_STOPPING)], self._tun.address.ip)
        for link in self._links.values():
            if link.tid is not None:
                self._engine.send_inner(link.tid, farewell)
        self._engine.close()
        self._book.close()

    def is_own(self, address: IPv4Address) -> bool:
        """Whether an address is one that this client hands out."""
        return self._book.is_inner(address)

    def address_of(
        self,
        announcement: Announcement,
        name: str,
        addresses: list[IPv4Address],
        addresses6: list[IPv6Address],
        upstream: Address,
    ) -> IPv4Address | None:
        """Return the private address for a server that a DNS answer announces, and begin to connect to it.

        None if the answer has no IPv4 address or no private address is free.
        """
        if not addresses:
            return None
        peer = self._book.met(announcement, name, addresses, self._in_use)
        if peer is None:
            self._events["no_free_address"] += 1
            return None
        link = self._link(peer)
        link.found(peer, upstream)
        self._attempts.want(link)
        return peer.inner

    def handle(self, event: Event) -> None:
        """Take an event of the engine."""
        match event:
            case Wanted(inner):
                peer = self._book.by_inner(inner)
                if peer is None:
                    self._events["unknown_address"] += 1
                    self._engine.drop_held(inner, unreachable=True)
                else:
                    self._attempts.want(self._link(peer))
            case Alive(tid):
                for link in self._links.values():
                    if link.alive(tid) and link.address is not None:
                        self._book.used(link.peer.inner, link.address)
            case Dead(tid):
                for link in self._links.values():
                    link.dead(tid)
            case Control(tid, packet):
                try:
                    self._control(tid, packet)
                except MessageError as error:
                    self._events[error.reason] += 1
            case Failed(reason):
                if not self.failed.done():
                    self.failed.set_exception(RuntimeError(reason))
            case _:
                self._events[type(event).__name__.lower()] += 1

    def _control(self, tid: bytes, packet: bytes) -> None:
        pongs: list[control.Item] = []
        for item in control.parse(packet):
            match item:
                case control.Ping(data):
                    pongs.append(control.Pong(data))
                case control.Bye():  # the next packet to this server makes a new tunnel
                    self._engine.remove_tunnel(tid)
                    for link in self._links.values():
                        link.dead(tid)
                    return
                case _:
                    pass
        if pongs:  # in one packet, no longer than the one that asked
            self._engine.send_inner(tid, control.encode(pongs, self._tun.address.ip))

    def status(self, dns: Mapping[str, int]) -> dict[str, Any]:
        """Return the status document."""
        now = clock.boottime()
        stats = self._engine.stats()
        tunnels = {tunnel.tid: tunnel for tunnel in stats.tunnels}
        settings = self._settings
        head = report.service(
            "client",
            started=self._started,
            now=now,
            engine=self._engine,
            interface=self._tun.name,
            address=self._tun.address,
            port=settings.port,
            mtu=settings.mtu,
        )
        peers = [self._peer_status(peer, tunnels, now) for peer in self._book]
        return {
            **head,
            "peers": peers,
            **report.engine(stats),
            "events": dict(self._events),
            "key_cache": dict(self._cache.counters),
            "dns": dict(dns),
        }

    def real_address(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Tell what is behind a private address (``pqtun check`` asks)."""
        try:
            peer = self._book.by_inner(IPv4Address(str(request.get("private_address"))))
        except ValueError:
            peer = None
        return {"real_addresses": [str(address) for address in peer.candidates] if peer else []}

    async def note_use(self) -> None:
        """Keep the private addresses of peers that carry traffic, until cancelled."""
        while True:
            await asyncio.sleep(USED_INTERVAL)
            since = clock.boottime() - USED_INTERVAL
            for tunnel in self._engine.stats().tunnels:
                if max(tunnel.last_sent or 0.0, tunnel.last_received or 0.0) > since:
                    self._book.used(tunnel.inner, IPv4Address(tunnel.endpoint[0]))

    def _peer_status(self, peer: Peer, tunnels: Mapping[bytes, TunnelStats], now: float) -> dict[str, Any]:
        link = self._links.get(peer.inner)
        tunnel = tunnels.get(link.tid) if link is not None and link.tid is not None else None
        status: dict[str, Any] = {
            "name": peer.name,
            "keyhash": encode(peer.keyhash),
            "private_address": str(peer.inner),
            "real_address": str(peer.addresses[0]) if peer.addresses else None,
            "port": peer.port,
            "state": link.state if link else "idle",
            "error": link.error if link else None,
        }
        if link is not None and link.progress is not None:
            status["download"] = {"nodes": link.progress[0], "of": link.progress[1]}
        if tunnel is not None:
            status.update(report.tunnel(tunnel, now))
        return status

    def _link(self, peer: Peer) -> Link:
        link = self._links.get(peer.inner)
        if link is None or link.peer.keyhash != peer.keyhash:
            link = Link(peer, self._engine, self._connector, self._tun.address.ip, self._settings.mtu, clock.boottime)
            self._links[peer.inner] = link
        return link

    def _in_use(self, inner: IPv4Address) -> bool:
        link = self._links.get(inner)
        return link is not None and link.state in ("up", "connecting")


def run_client(settings: ClientSettings, chosen: frozenset[str]) -> int:
    """Run the client until it is told to stop; return the exit code. Raises UserError if it cannot start.

    ``chosen``: the options that somebody set; only a subnet that nobody chose may be replaced.
    """
    privilege.require_root()
    choice = choose_engine(settings)
    user = privilege.find_user(settings.user)
    prepare()
    privilege.allow_locked_memory()
    with ExitStack() as stack:
        run = stack.enter_context(closing(RunDirectory(settings.run, "client")))
        state = prepare_state(settings.state, user)
        stack.callback(os.close, state)
        udp = host.bind_udp_group(settings.port, "--port", choice.workers, choice.socket_buffer)
        for sock in udp:
            stack.enter_context(sock)
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
        dns = stack.enter_context(closing(open_sockets()))
        control_sock = stack.enter_context(run.listen(user.pw_gid))
        for resolver in host.link_local_resolvers():
            log.warning(
                "lookups through the link-local resolver %s are not seen: name another in resolv.conf", resolver
            )

        async def body(ready: Callable[[], None], stop: asyncio.Event) -> None:
            logging.getLogger(Link.__module__).addFilter(LogLimit(clock.boottime))
            service = ClientService(settings, tun, make_engine(choice, tun, udp, clock.boottime))
            await _serve(service, dns, control_sock, ready, stop)

        handed = [*(sock.close for sock in udp), tun.close, dns.close, control_sock.close]
        guarded = settings.interface if settings.incoming == "block" else None
        return supervise(
            "client",
            user,
            body,
            handed=handed,
            kept=[run.leave_to_parent, lambda: os.close(state)],
            guard=lambda: closing(Redirect(dns.port, user.pw_uid, guarded=guarded)),
        )


async def _serve(
    service: ClientService,
    dns: DnsSockets,
    control_sock: socket.socket,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    def edit(message: bytes, upstream: Address) -> bytes:
        return rewrite(message, upstream, service.address_of, service.is_own)

    proxy = DnsProxy(dns.udp, dns.tcp, OriginalDestinations(dns.events), edit, clock.boottime)
    handlers: Mapping[str, Handler] = {
        "status": lambda _: service.status(proxy.counters),
        "real_address": service.real_address,
    }
    control_socket = ControlSocket(control_sock, handlers)
    notes = asyncio.ensure_future(service.note_use())
    try:
        service.start()
        proxy.start()
        await control_socket.start()
        ready()
        await stopped_or_failed(stop, service.failed)
    finally:
        notes.cancel()
        await control_socket.close()
        await proxy.close()
        await service.close()
