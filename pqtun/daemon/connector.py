"""From a peer known by name to its session: address, ports, long-term key, ephemeral keys, handshake."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from pqtun.daemon.locate import Addresses, IPAddress, Ports, find_ports, is_unicast
from pqtun.daemon.peers import Peer
from pqtun.daemon.race import LostError, race
from pqtun.keys.cache import ServerKeyCache
from pqtun.keyserver.download import DownloadError
from pqtun.keyserver.fetch import fetch_ephemeral, fetch_server_key
from pqtun.protocol.errors import MessageError
from pqtun.protocol.handshake import EphemeralPublicKey, Session, initiate
from pqtun.protocol.keytree import ServerPublicKey
from pqtun.pump.engine import Endpoint

log = logging.getLogger(__name__)

# A server hands out ephemeral keys for 30 s of the 120 for which it takes them: so old ones may be replaced before.
EPHEMERAL_SECONDS: Final = 20.0

# linux/in.h, linux/in6.h
_IP_MTU: Final = 14
_IPV6_MTU: Final = 24

# This host has no way to the address: it is offline, say. That tells nothing about the server.
_NO_ROUTE: Final = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_LITTLE_SAID: Final = {"network": 1, "no_route": 2}

Progress = Callable[[int, int], None]
Address = Endpoint


class ConnectError(Exception):
    """No session could be made. ``reason`` is a snake_case word, the text one line for people."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Contact:
    """A handshake datagram for ``tunnel``, the session that it begins, and the server's address that was chosen."""

    datagram: bytes
    session: Session
    tunnel: Endpoint
    address: IPAddress
    round_trip: float = 0.0  # seconds until the key server answered, requests that were lost included


@dataclass(frozen=True, slots=True)
class _Ephemeral:
    """A key server's ephemeral keys: when they came, and how many seconds after the first request."""

    key: EphemeralPublicKey
    came: float
    took: float


class Connector:
    """Makes sessions. Keys are downloaded once, verified, and kept in the cache on disk."""

    def __init__(
        self, cache: ServerKeyCache, clock: Callable[[], float], is_own: Callable[[IPAddress], bool] = lambda _: False
    ) -> None:
        """``is_own``: tells private addresses that stand for peers. Real ones they are not, whatever DNS says.

        Two tunnels, each of which leads through the other, would fill this host with their packets.
        """
        self._cache = cache
        self._clock = clock
        self._is_own = is_own
        # By key hash and key server: one that fails must not fail what another serves under the same hash.
        self._downloads: dict[tuple[bytes, Endpoint], asyncio.Task[ServerPublicKey]] = {}

    async def contact(
        self,
        peer: Peer,
        resolver: Endpoint | None,
        *,
        avoid: Collection[IPAddress] = (),
        on_progress: Progress | None = None,
    ) -> Contact:
        """Return a fresh handshake for the address of the peer whose key server answers first.

        What is not known of its addresses and ports is looked up at ``resolver``. Addresses to ``avoid`` come last.
        ``on_progress``: called with the parts of the long-term key that arrived and their number, if it is downloaded.
        Raises ConnectError.
        """
        faults: list[ConnectError] = []
        contact: Contact | None = None
        try:
            settled = {address.version for address in peer.addresses if address not in avoid}
            async with Addresses(
                peer.name, peer.candidates, resolver, settled=settled, without=self._is_own
            ) as addresses:
                ports = (await find_ports(peer.name, peer.port, peer.key_port, resolver)).without(self._is_own)
                refused: list[IPAddress] = []
                while contact is None:
                    try:
                        address, ephemeral = await race(
                            addresses,
                            lambda address: self._ephemeral(ports.key_server_of(address)),
                            ConnectError,
                            good=peer.good,
                            avoid=avoid,
                            without=refused,
                        )
                    except LostError as lost:
                        raise _most_telling([*faults, *lost.faults]) from None
                    try:
                        contact = await self._begin(peer.keyhash, ports, address, ephemeral, on_progress)
                    except ConnectError as error:
                        faults.append(error)
                        refused.append(address)
        except BaseException:
            if contact is not None:  # cancelled while the lookups ended
                contact.session.erase()
            raise
        return contact

    async def _ephemeral(self, key_server: Endpoint) -> _Ephemeral:
        """A key server's ephemeral keys. Raises ConnectError."""
        begun = self._clock()
        with _explained(key_server), connected_socket(key_server) as sock:
            key = await fetch_ephemeral(sock, clock=self._clock)
        came = self._clock()
        return _Ephemeral(key, came, came - begun)

    async def _begin(
        self,
        keyhash: bytes,
        ports: Ports,
        address: IPAddress,
        ephemeral: _Ephemeral,
        on_progress: Progress | None,
    ) -> Contact:
        key_server = ports.key_server_of(address)
        with _explained(key_server):
            key = await self._server_key(keyhash, key_server, on_progress)
            if self._clock() - ephemeral.came > EPHEMERAL_SECONDS:  # the download took long
                ephemeral = await self._ephemeral(key_server)
            datagram, session = initiate(key, ephemeral.key)
        return Contact(datagram, session, (str(address), ports.tunnel), address, ephemeral.took)

    async def _server_key(self, keyhash: bytes, key_server: Endpoint, on_progress: Progress | None) -> ServerPublicKey:
        cached = self._cache.get(keyhash)
        if cached is not None:
            return cached
        while (running := self._downloads.get((keyhash, key_server))) is not None:
            await asyncio.wait([running])
            if not running.cancelled():  # as it is when the attempt that began it was given up
                return running.result()
        task = asyncio.ensure_future(self._download(keyhash, key_server, on_progress))
        self._downloads[keyhash, key_server] = task
        task.add_done_callback(lambda _: self._downloads.pop((keyhash, key_server)))
        return await task

    async def _download(self, keyhash: bytes, key_server: Endpoint, on_progress: Progress | None) -> ServerPublicKey:
        with connected_socket(key_server) as sock:
            key = await fetch_server_key(sock, keyhash, clock=self._clock, on_progress=on_progress)
        if not self._cache.put(keyhash, key):
            log.warning("cannot keep a server's key in the state directory: is the disk full?")
        return key


def _most_telling(faults: list[ConnectError]) -> ConnectError:
    """Of several addresses' faults the one to show: no way to one of them says little where there is one to another."""
    silence = ConnectError("no_address", "its name has no address in DNS")
    return min(faults, key=lambda fault: _LITTLE_SAID.get(fault.reason, 0), default=silence)


@contextmanager
def _explained(key_server: Endpoint) -> Iterator[None]:
    """Turn what goes wrong with a key server into a ConnectError that names it."""
    name = f"key server {key_server[0]} port {key_server[1]}"
    try:
        yield
    except DownloadError as error:
        raise ConnectError(error.reason, f"{name}: {error}") from None
    except MessageError as error:
        raise ConnectError("bad_key", f"{name} sent an unusable key") from error
    except OSError as error:
        reason = "no_route" if error.errno in _NO_ROUTE else "network"
        raise ConnectError(reason, f"{name}: {error.strerror or error}") from None


def connected_socket(address: Endpoint) -> socket.socket:
    """Return a non-blocking UDP socket connected to ``address``. Raises OSError.

    DNS may name any address: requests to a group of hosts are refused like those to a broadcast address.
    """
    host = ip_address(address[0])
    if not is_unicast(host):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def route_mtu(address: IPAddress) -> int | None:
    """Return the size (bytes) of IP packets that the kernel would send to ``address`` uncut; None without a route."""
    try:
        with connected_socket((str(address), 1)) as sock:  # any port; nothing is sent
            if address.version == 4:
                return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    except OSError:
        return None
