"""From a peer known by name to its session: ports, long-term key, ephemeral keys, handshake."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdatatype

from pqtun.daemon.peers import Peer
from pqtun.keys.cache import ServerKeyCache
from pqtun.keyserver.download import DownloadError
from pqtun.keyserver.fetch import fetch_ephemeral, fetch_server_key
from pqtun.protocol.constants import KEY_SERVER_PORT, SERVER_PORT
from pqtun.protocol.errors import MessageError
from pqtun.protocol.handshake import Session, initiate
from pqtun.protocol.keytree import ServerPublicKey
from pqtun.protocol.names import parse_key_server_text, parse_port_text

log = logging.getLogger(__name__)

TXT_TIMEOUT: Final = 3.0  # seconds for one TXT lookup; the defaults apply when it is not answered

Progress = Callable[[int, int], None]
Address = tuple[str, int]


class ConnectError(Exception):
    """No session could be made. ``reason`` is a snake_case word, the text one line for people."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server's two services are."""

    tunnel: Address
    key_server: Address


async def find_ports(peer: Peer, address: IPv4Address, resolver: Address | None) -> Ports:
    """Return a server's ports: from its pq1 label, else from TXT records (section 2), else the defaults."""
    port, key_port = peer.port, peer.key_port
    if resolver is not None and (port is None or key_port is None):
        port_texts, key_texts = await asyncio.gather(_texts(peer.name, resolver), _texts(f"ks.{peer.name}", resolver))
        port = port or next(filter(None, map(parse_port_text, port_texts)), None)
        for found in filter(None, map(parse_key_server_text, key_texts)):
            if key_port is None and _is_ipv4(found[0]):
                return Ports((str(address), port or SERVER_PORT), found)
    return Ports((str(address), port or SERVER_PORT), (str(address), key_port or KEY_SERVER_PORT))


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


async def _texts(name: str, resolver: Address) -> list[str]:
    try:
        query = dns.message.make_query(dns.name.from_text(name), dns.rdatatype.TXT)
        answer, _ = await dns.asyncquery.udp_with_fallback(query, resolver[0], TXT_TIMEOUT, resolver[1])
    except (dns.exception.DNSException, OSError, EOFError) as error:  # EOFError: TCP that ends too soon
        log.debug("TXT lookup of %s: %s", name, type(error).__name__)
        return []
    return [
        b"".join(record.strings).decode("ascii", errors="replace")
        for rrset in answer.answer
        if rrset.rdtype == dns.rdatatype.TXT
        for record in rrset
    ]


class Connector:
    """Makes sessions. Keys are downloaded once, verified, and kept in the cache on disk."""

    def __init__(self, cache: ServerKeyCache, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._clock = clock
        # By key hash and key server: one that fails must not fail what another serves under the same hash.
        self._downloads: dict[tuple[bytes, Address], asyncio.Task[ServerPublicKey]] = {}

    async def session(self, peer: Peer, ports: Ports, on_progress: Progress | None = None) -> tuple[bytes, Session]:
        """Return a handshake datagram for the peer and the session that it begins. Raises ConnectError."""
        try:
            with connected_socket(ports.key_server) as sock:
                key = await self._server_key(peer.keyhash, ports.key_server, sock, on_progress)
                ephemeral = await fetch_ephemeral(sock, clock=self._clock)
            return initiate(key, ephemeral)
        except DownloadError as error:
            raise ConnectError(error.reason, f"key server {_text(ports.key_server)}: {error}") from None
        except MessageError as error:
            raise ConnectError("bad_key", f"key server {_text(ports.key_server)} sent an unusable key") from error
        except OSError as error:
            raise ConnectError("network", f"key server {_text(ports.key_server)}: {error.strerror}") from None

    async def _server_key(
        self, keyhash: bytes, key_server: Address, sock: socket.socket, on_progress: Progress | None
    ) -> ServerPublicKey:
        cached = self._cache.get(keyhash)
        if cached is not None:
            return cached
        while (running := self._downloads.get((keyhash, key_server))) is not None:
            await asyncio.wait([running])
            if not running.cancelled():  # as it is when the attempt that began it was given up
                return running.result()
        task = asyncio.ensure_future(self._download(keyhash, sock, on_progress))
        self._downloads[keyhash, key_server] = task
        task.add_done_callback(lambda _: self._downloads.pop((keyhash, key_server)))
        return await task

    async def _download(self, keyhash: bytes, sock: socket.socket, on_progress: Progress | None) -> ServerPublicKey:
        key = await fetch_server_key(sock, keyhash, clock=self._clock, on_progress=on_progress)
        if not self._cache.put(keyhash, key):
            log.warning("cannot keep a server's key in the state directory: is the disk full?")
        return key


def connected_socket(address: Address) -> socket.socket:
    """Return a non-blocking UDP socket connected to ``address``. Raises OSError.

    DNS may name any address: requests to a group of hosts are refused like those to a broadcast address.
    """
    if IPv4Address(address[0]).is_multicast:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def _text(address: Address) -> str:
    return f"{address[0]} port {address[1]}"
