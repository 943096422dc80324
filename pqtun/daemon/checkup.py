"""``pqtun check``: each step on the way to a server, tried for real, without a running client and without root."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.rdatatype
import dns.resolver

from pqtun.daemon import clock
from pqtun.daemon.connector import Address, Ports, Progress, connected_socket, find_ports
from pqtun.daemon.control import NotRunningError, ask
from pqtun.daemon.peers import Peer
from pqtun.daemon.rundir import socket_path
from pqtun.keyserver.download import DownloadError
from pqtun.keyserver.fetch import fetch_ephemeral, fetch_server_key
from pqtun.protocol import control
from pqtun.protocol.base32 import encode
from pqtun.protocol.errors import MessageError, UserError
from pqtun.protocol.handshake import initiate
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from pqtun.protocol.names import Announcement, parse_name
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.icmp import echo_request

DNS_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 1.0  # for one handshake or ping; there are a few tries
TRIES: Final = 4
_OWN: Final = IPv4Address("10.43.0.1")  # stands in the packets we make; the server replaces it
_DATAGRAM: Final = 4096


class StepError(Exception):
    """A step failed; the text is one line: what is wrong, and what to do."""


@dataclass(slots=True)
class Step:
    """One step: its name, how long it took (seconds), what was found, or the fault."""

    name: str
    seconds: float = 0.0
    detail: str = ""
    error: str | None = None


@dataclass(slots=True)
class Checkup:
    """All steps for one host. ``run`` yields each one when it is over and ends after the first that failed."""

    host: str
    run_directory: Path
    on_progress: Progress | None = None
    steps: list[Step] = field(default_factory=list)
    name: str = ""
    announcement: Announcement | None = None
    addresses: list[IPv4Address] = field(default_factory=list)
    resolver: Address | None = None

    @property
    def ok(self) -> bool:
        """Whether every step so far was good."""
        return all(step.error is None for step in self.steps)

    async def run(self, *, dns_only: bool) -> AsyncIterator[Step]:
        """Yield the steps."""
        yield await self._step("dns", self._dns)
        if dns_only or not self.ok:
            return
        network = _Network(self)
        with closing(network):
            for name, action in (
                ("key", network.download),
                ("hash", network.hash),
                ("handshake", network.handshake),
                ("ping", network.ping),
            ):
                yield await self._step(name, action)
                if not self.ok:
                    return

    async def _step(self, name: str, action: Callable[[], Awaitable[str]]) -> Step:
        step = Step(name)
        began = clock.boottime()
        try:
            step.detail = await action()
        except (StepError, UserError) as error:
            step.error = str(error)
        step.seconds = clock.boottime() - began
        self.steps.append(step)
        return step

    async def _dns(self) -> str:
        answer = await self._resolve()
        self.resolver = (answer.nameserver, answer.port or 53) if answer.nameserver else None
        names = [
            str(answer.qname),
            *(str(r.target) for rrset in answer.response.answer for r in rrset if _is_cname(rrset)),
        ]
        for name in names:
            self.announcement = parse_name(name)
            if self.announcement is not None:
                self.name = name.rstrip(".").lower()
                break
        if self.announcement is None:
            raise StepError(
                f"{self.host} announces no pq1 key: its DNS has no CNAME to a pq1 name (see pqtun announce)"
            )
        self.addresses = [IPv4Address(record.address) for record in answer.rrset or ()]
        if not self.addresses:
            raise StepError(f"{self.name} has no A record: publish the server's IPv4 address there")
        self.addresses = self._behind_client(self.addresses)
        return f"{self.name} at {', '.join(map(str, self.addresses))}"

    async def _resolve(self) -> "dns.resolver.Answer":
        if not self.host.strip(".") or _is_address(self.host):
            raise StepError(f"{self.host!r} is no name; name the host as clients do, such as www.example.net")
        try:
            resolver = dns.asyncresolver.Resolver()
            return await resolver.resolve(self.host, "A", lifetime=DNS_SECONDS, search=False, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            raise StepError(f"{self.host} does not exist in DNS") from None
        except dns.resolver.NoResolverConfiguration:
            raise StepError("/etc/resolv.conf names no resolver") from None
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise StepError(f"DNS lookup of {self.host} failed: {str(error) or type(error).__name__}") from None

    def _behind_client(self, addresses: list[IPv4Address]) -> list[IPv4Address]:
        """A client on this host shows private addresses; ask it for the real ones."""
        if not socket_path(self.run_directory, "client").exists() or not addresses[0].is_private:
            return addresses
        try:
            answer = ask(self.run_directory, "client", {"op": "real_address", "private_address": str(addresses[0])})
        except NotRunningError:
            return addresses  # one that was killed left its socket
        except UserError as error:
            raise StepError(f"a pqtun client on this host hides the real address of {self.host}: {error}") from None
        return [IPv4Address(text) for text in answer["real_addresses"]] or addresses


def _is_cname(rrset: "dns.rrset.RRset") -> bool:
    return bool(rrset.rdtype == dns.rdatatype.CNAME)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class _Network:
    """The steps after DNS, against the first address."""

    def __init__(self, checkup: Checkup) -> None:
        if checkup.announcement is None:
            raise ValueError("the DNS step comes first")
        self._announcement = checkup.announcement
        self._checkup = checkup
        self._address = checkup.addresses[0]
        self._ports: Ports | None = None
        self._key: ServerPublicKey | None = None
        self._sock: socket.socket | None = None
        self._tunnel: Tunnel | None = None
        self._pings = 0

    def close(self) -> None:
        """End the tunnel at both ends."""
        if self._tunnel is not None and self._sock is not None:
            farewell = control.encode([control.Bye(control.BYE_STOPPING)], _OWN)
            with suppress(MessageError, OSError):
                self._sock.send(self._tunnel.seal(farewell, clock.boottime()))
        if self._tunnel is not None:
            self._tunnel.erase()
        if self._sock is not None:
            self._sock.close()

    async def _find_ports(self) -> Ports:
        if self._ports is None:
            known = self._announcement
            peer = Peer(
                0, _OWN, known.keyhash, self._checkup.name, (self._address,), known.port, known.key_port, None, 0.0
            )
            self._ports = await find_ports(peer, self._address, self._checkup.resolver)
        return self._ports

    async def download(self) -> str:
        """Fetch the long-term key; each piece is checked against the announced hash as it comes. Raises StepError."""
        ports = await self._find_ports()
        address, port = ports.key_server
        try:
            with connected_socket(ports.key_server) as sock:
                self._key = await fetch_server_key(
                    sock, self._announcement.keyhash, clock=clock.boottime, on_progress=self._checkup.on_progress
                )
        except DownloadError as error:
            raise StepError(f"key server {address} port {port}: {error}") from None
        except OSError as error:
            raise StepError(f"key server {address} port {port}: {error.strerror}") from None
        size = len(self._key.mceliece_pk) + len(self._key.x25519_pk)
        return f"{size} bytes from {address} port {port}"

    async def hash(self) -> str:
        """The whole key against the announced hash, once more. Raises StepError."""
        if self._key is None or KeyTree(self._key).keyhash != self._announcement.keyhash:
            raise StepError("the key that is served is not the one that is announced")
        return encode(self._announcement.keyhash)

    async def handshake(self) -> str:
        """Make a tunnel and hear from the server in it. Raises StepError."""
        ports = await self._find_ports()
        if self._key is None:
            raise StepError("no key")
        for _ in range(TRIES):
            try:
                with connected_socket(ports.key_server) as key_sock:
                    ephemeral = await fetch_ephemeral(key_sock, clock=clock.boottime)
                datagram, session = initiate(self._key, ephemeral)
                self._sock = self._sock or connected_socket(ports.tunnel)
                if self._tunnel is not None:
                    self._tunnel.erase()
                self._tunnel = Tunnel(session.tid, session.send_root, session.recv_root, clock.boottime())
                session.erase()
                self._sock.send(datagram)
            except DownloadError as error:
                raise StepError(f"ephemeral keys: {error}") from None
            except MessageError:
                raise StepError("the key server sent an unusable key") from None
            except OSError as error:
                raise StepError(f"{ports.tunnel[0]} port {ports.tunnel[1]}: {error.strerror}") from None
            if await self._exchange() is not None:
                return f"tunnel to {ports.tunnel[0]} port {ports.tunnel[1]}"
        raise StepError(
            f"no answer from {ports.tunnel[0]} port {ports.tunnel[1]}: is UDP to it open, and does the server run with "
            "the announced key?"
        )

    async def ping(self) -> str:
        """Round trips through the tunnel. Raises StepError."""
        times = [seconds for _ in range(TRIES) if (seconds := await self._exchange()) is not None]
        if not times:
            raise StepError("no answer through the tunnel")
        return f"{len(times)} of {TRIES} answered, fastest {1000 * min(times):.2f} ms"

    async def _exchange(self) -> float | None:
        """Send a ping of each kind; return the seconds to the first answer, None without one."""
        if self._tunnel is None or self._sock is None:
            return None
        self._pings += 1
        began = clock.boottime()
        ping = control.encode([control.Ping(self._pings.to_bytes(8, "big"))], _OWN)
        loop = asyncio.get_running_loop()
        try:
            # a pqtun server answers the first, a PQConnect host's kernel the second
            for packet in (ping, echo_request(_OWN, self._pings)):
                self._sock.send(self._tunnel.seal(packet, clock.boottime()))
            async with asyncio.timeout(ANSWER_SECONDS):
                while (now := clock.boottime()) < began + ANSWER_SECONDS:  # a flood leaves the timeout no turn
                    datagram = await loop.sock_recv(self._sock, _DATAGRAM)
                    with suppress(MessageError):
                        if _answers(self._tunnel.open(datagram, now), self._pings):
                            return clock.boottime() - began
        except (TimeoutError, OSError):
            pass  # no answer
        return None


def _answers(plaintext: bytes, number: int) -> bool:
    """Whether an inner packet is the pong or the echo reply (RFC 792: type 0) to our ping of this number."""
    if control.is_control(plaintext):
        return control.Pong(number.to_bytes(8, "big")) in control.parse(plaintext)
    return plaintext[9:10] == b"\1" and plaintext[20:21] == b"\0" and plaintext[26:28] == number.to_bytes(2, "big")
