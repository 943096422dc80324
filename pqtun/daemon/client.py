"""The client service: gives looked-up servers a private address and keeps tunnels to them."""

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from math import inf
from typing import Any, Final

from pqtun.daemon import clock, host, privilege, report, whois
from pqtun.daemon.attempts import Attempts
from pqtun.daemon.connector import Address, Connector
from pqtun.daemon.control import Bounds, ControlSocket, Handler
from pqtun.daemon.ending import stopped_or_failed
from pqtun.daemon.engines import choose_engine, make_engine
from pqtun.daemon.flows import addresses_in_use
from pqtun.daemon.link import Link
from pqtun.daemon.loglimit import LogLimit
from pqtun.daemon.netwatch import NetworkWatch
from pqtun.daemon.peers import Peer, PeerBook
from pqtun.daemon.policy import FailurePolicy
from pqtun.daemon.rundir import RunDirectory
from pqtun.daemon.settings import ClientSettings
from pqtun.daemon.state import prepare_state
from pqtun.daemon.supervisor import prepare, supervise
from pqtun.daemon.upkeep import Own
from pqtun.dns.answer import DIRECT, Direct, Found, Private, rewrite
from pqtun.dns.origin import OriginalDestinations
from pqtun.dns.proxy import DnsProxy
from pqtun.dns.redirect import DnsSockets, Redirect, open_sockets
from pqtun.keys.cache import ServerKeyCache
from pqtun.protocol import control
from pqtun.protocol.base32 import encode
from pqtun.protocol.constants import HANDSHAKE_FAILED
from pqtun.protocol.errors import MessageError
from pqtun.protocol.private6 import address4, address6
from pqtun.pump.engine import (
    Alive,
    Control,
    Datagram,
    Dead,
    Endpoint,
    Engine,
    Event,
    Failed,
    Roamed,
    TunnelStats,
    Wanted,
)
from pqtun.pump.icmp import echo_token

log = logging.getLogger(__name__)

CACHED_KEYS: Final = 200  # servers' public keys on disk, 1 MB each
TICK_SECONDS: Final = 0.5  # between looks at the tunnels
NOTE_SECONDS: Final = 30.0  # between notes of which peers carry traffic, and of which there is no more to know
FLOWS_SECONDS: Final = 5.0  # between looks at which peers programs have connections to
# After the last packet of a program a tunnel is kept for so long, for what the kernel lists no connection of.
RECENT_SECONDS: Final = 60.0
# Two looks so far apart mean that this host or process has slept: what was true of the network may not be any more.
SLEPT_SECONDS: Final = 5.0
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
        self._by_tid: dict[bytes, Link] = {}
        self._attempts = Attempts(self._events)
        self._cache = ServerKeyCache(settings.state / KEYS_FOLDER, CACHED_KEYS)
        self._connector = Connector(self._cache, clock.boottime, self.is_own)
        self._book = PeerBook(settings.state / PEERS_FILE, tun.address, clock.wall)
        features = control.FEATURE_RESUME | (control.FEATURE_IPV6_INSIDE if tun.address6 is not None else 0)
        self._own = Own(tun.address.ip, tun.mtu, features)
        self._policy = FailurePolicy(settings.failure, settings.direct_minutes)
        # Key hash and name of servers whose real addresses are given out, and until when.
        self._direct: dict[tuple[bytes, str], float] = {}
        self._connected: set[IPv4Address] = set()
        self._looked = self._noted = 0.0
        self._watch = NetworkWatch(self._network_changed)

    def start(self) -> None:
        """Begin to move packets."""
        self._engine.start(self.handle)
        self._watch.start()

    async def close(self) -> None:
        """Erase all keys and stop."""
        self._watch.close()
        await asyncio.gather(*(link.close() for link in self._links.values()))
        farewell = control.encode([control.Bye(control.BYE_STOPPING)], self._tun.address.ip)
        for link in self._links.values():
            if link.tid is not None:
                self._engine.send_inner(link.tid, farewell)
        self._engine.close()
        self._book.close()

    def is_own(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether an address is one that this client hands out."""
        if isinstance(address, IPv4Address):
            return self._book.is_inner(address)
        return self._network6 is not None and address4(self._network6, address) is not None

    @property
    def _network6(self) -> IPv6Network | None:
        return None if self._tun.address6 is None else self._tun.address6.network

    def address_of(self, found: Found) -> Private | Direct | None:
        """Return the private addresses for a server that a DNS answer announces, and begin to connect to it.

        If it is not the one sought, that begins with the first packet: one answer may name many, each at some victim.
        None if no private address is free. ``DIRECT``: there was no tunnel to it to be had, and the settings let
        programs go without.
        """
        peer = self._book.met(found.announcement, found.name, found.real4, found.real6, self._in_use)
        if peer is None:
            if found.real4 is not None or found.real6:  # else it only denies that an unknown server has IPv6
                self._events["no_free_address"] += 1
            return None
        allows_direct = self._policy.allows_direct((found.asked, found.name))
        if allows_direct and self._goes_direct(peer):
            return DIRECT
        link = self._link(peer)
        link.found(peer, found.upstream)
        link.allows_direct = allows_direct
        if found.sought:
            self._attempts.want(link)
        network6 = self._network6 if peer.ipv6_inside else None
        return Private(peer.inner, None if network6 is None else address6(network6, peer.inner))

    def _goes_direct(self, peer: Peer) -> bool:
        server = peer.keyhash, peer.name
        link = self._links.get(peer.inner)
        if self._direct.get(server, inf) <= clock.boottime() or (link is not None and link.state == "up"):
            self._direct.pop(server, None)
        return server in self._direct

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
            case Alive(tid) if tid in self._by_tid:
                link = self._by_tid[tid]
                link.alive(tid)
                if link.address is not None:
                    self._book.used(link.peer.inner, link.address)
            case Dead(tid) if tid in self._by_tid:
                self._by_tid[tid].dead(tid)
            case Roamed(tid, endpoint) if tid in self._by_tid:
                if self.is_own(ip_address(endpoint[0])):  # through another tunnel: no tunnel may lead through one
                    self._events["roamed_inside"] += 1
                    self._by_tid[tid].ended(tid, resumable=False)
                else:
                    self._by_tid[tid].roamed(tid, endpoint)
            case Control(tid, packet) if tid in self._by_tid:
                try:
                    self._control(tid, packet, self._by_tid[tid])
                except MessageError as error:
                    self._events[error.reason] += 1
            case Datagram(data, source) if data == HANDSHAKE_FAILED:
                self._hint(source)
            case Failed(reason):
                if not self.failed.done():
                    self.failed.set_exception(RuntimeError(reason))
            case _:
                self._events[type(event).__name__.lower()] += 1

    def _hint(self, source: Endpoint) -> None:
        """Somebody says that a server does not know a tunnel of ours; nothing proves that it is the server."""
        self._events["hint"] += 1
        for tunnel in self._engine.stats().tunnels:
            if tunnel.endpoint == source and tunnel.tid in self._by_tid:
                self._by_tid[tunnel.tid].suspect(path=False)

    def _control(self, tid: bytes, packet: bytes, link: Link) -> None:
        token = echo_token(packet)
        if token is not None:
            link.answered(tid, token)
            return
        pongs: list[control.Item] = []
        for item in control.parse(packet):
            match item:
                case control.Hello():
                    if link.introduced(tid, item):
                        self._book.learned(link.peer.inner, bool(item.features & control.FEATURE_IPV6_INSIDE))
                case control.Ping(data):
                    pongs.append(control.Pong(data))
                case control.Pong(data):
                    link.answered(tid, data)
                case control.Bye(reason):  # the next packet to this server makes a new tunnel
                    link.ended(tid, resumable=reason == control.BYE_MAKING_ROOM)
                    return
                case _:
                    pass
        if pongs:  # in one packet, as long as the one that asked
            self._engine.send_inner(tid, control.encode(pongs, self._tun.address.ip, len(packet)))

    # -- the rounds ------------------------------------------------------------------------------

    async def keep_up(self) -> None:
        """Look after the tunnels until cancelled: keep those alive that programs use, replace those that are lost.

        A fault in that ends the service.
        """
        before = clock.boottime()
        try:
            while True:
                await asyncio.sleep(TICK_SECONDS)
                now = clock.boottime()
                if now - before > SLEPT_SECONDS:
                    self._network_changed()
                before = now
                if self._links:
                    await self._look_at_flows(now)
                    self._round(now)
        except Exception as fault:
            if not self.failed.done():
                self.failed.set_exception(fault)
            raise

    async def _look_at_flows(self, now: float) -> None:
        """In a thread: the kernel goes through all sockets of the host."""
        if now - self._looked >= FLOWS_SECONDS:
            self._looked = now
            try:
                self._connected = await asyncio.to_thread(addresses_in_use, self._tun.address.network, self._network6)
            except (OSError, RuntimeError) as error:  # RuntimeError: there are too many threads
                self._connected = set()
                self._events["flows_unknown"] += 1
                log.debug("cannot list this host's connections: %s", error)

    def _round(self, now: float) -> None:
        tunnels = {tunnel.tid: tunnel for tunnel in self._engine.stats().tunnels}
        for inner in self._connected.union(tunnel.inner for tunnel in tunnels.values()):
            link = self._links.get(inner)
            if link is None:
                continue
            tunnel = None if link.tid is None else tunnels.get(link.tid)
            connected = inner in self._connected
            recent = tunnel is not None and now - (tunnel.last_used or tunnel.created) < RECENT_SECONDS
            if link.tick(tunnel, used=connected or recent, connected=connected):
                self._attempts.want(link)
        if now - self._noted >= NOTE_SECONDS:
            for tunnel in tunnels.values():
                if (tunnel.last_received or 0.0) > self._noted and tunnel.confirmed:
                    self._book.used(tunnel.inner, ip_address(tunnel.endpoint[0]))
            self._noted = now
            for inner in [inner for inner, link in self._links.items() if link.rest()]:
                if inner not in self._connected:
                    del self._links[inner]

    def _link_failed(self, link: Link) -> None:
        if link.allows_direct:
            now = clock.boottime()
            self._direct = {server: until for server, until in self._direct.items() if until > now}
            self._direct[link.peer.keyhash, link.peer.name] = now + 60 * self._settings.direct_minutes
            log.warning(
                "%s: no tunnel, its real addresses are given out for %d minutes, as [client.failure] says",
                link.peer.name,
                self._settings.direct_minutes,
            )

    def _network_changed(self) -> None:
        """Addresses or routes of this host have changed, or it has slept."""
        self._events["network_changes"] += 1
        self._looked = 0.0
        for link in self._links.values():
            link.suspect(path=True)

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
            mtu=self._tun.mtu,
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

    def whois(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Tell anybody on this host which server a private address leads to (``pqtun ssh`` asks)."""
        return whois.answer(self._book, self._network6, request)

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
        if link is not None and link.upkeep is not None:
            rtt = link.upkeep.rtt
            status["round_trip"] = None if rtt is None else round(rtt, 4)
            status["pqtun"] = link.upkeep.hello is not None
            status["mtu"] = link.upkeep.mtu
        if tunnel is not None:
            status.update(report.tunnel(tunnel, now))
        return status

    def _link(self, peer: Peer) -> Link:
        link = self._links.get(peer.inner)
        if link is not None and (link.peer.keyhash, link.peer.name) != (peer.keyhash, peer.name):
            link.forget()
            link = None
        if link is None:
            link = Link(
                peer,
                self._engine,
                self._connector,
                self._own,
                clock.boottime,
                index=self._by_tid,
                failed=self._link_failed,
            )
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
        whois_sock = stack.enter_context(run.listen_to_all(whois.ROLE))
        for resolver in host.link_local_resolvers():
            log.warning(
                "lookups through the link-local resolver %s are not seen: name another in resolv.conf", resolver
            )

        async def body(ready: Callable[[], None], stop: asyncio.Event) -> None:
            logging.getLogger(Link.__module__).addFilter(LogLimit(clock.boottime))
            service = ClientService(settings, tun, make_engine(choice, tun, udp, clock.boottime))
            await _serve(service, dns, control_sock, whois_sock, ready, stop)

        handed = [*(sock.close for sock in udp), tun.close, dns.close, control_sock.close, whois_sock.close]
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
    whois_sock: socket.socket,
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
    bounds = Bounds(whois.CONNECTIONS, whois.CONNECTIONS_PER_USER, whois.MAX_REQUEST)
    whois_socket = ControlSocket(whois_sock, {whois.OP: service.whois}, bounds)
    rounds = asyncio.ensure_future(service.keep_up())
    try:
        service.start()
        proxy.start()
        await control_socket.start()
        await whois_socket.start()
        ready()
        await stopped_or_failed(stop, service.failed)
    finally:
        rounds.cancel()
        await control_socket.close()
        await whois_socket.close()
        await proxy.close()
        await service.close()
