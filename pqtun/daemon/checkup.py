"""``pqtun check``: each step on the way to a server, tried for real, without a running client and without root."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
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
from pqtun.daemon.connector import Progress, connected_socket
from pqtun.daemon.control import NotRunningError, ask
from pqtun.daemon.locate import IPAddress, Ports, find_ports
from pqtun.daemon.race import MAX_CANDIDATES, order
from pqtun.daemon.rundir import socket_path
from pqtun.keyserver.download import DownloadError
from pqtun.keyserver.fetch import fetch_ephemeral, fetch_server_key
from pqtun.protocol import control
from pqtun.protocol.base32 import encode
from pqtun.protocol.errors import MessageError, UserError
from pqtun.protocol.handshake import EphemeralPublicKey, initiate
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from pqtun.protocol.names import Announcement, parse_name
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.engine import Endpoint
from pqtun.pump.icmp import echo_request, echo_token

DNS_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = (
    1.0  # for one handshake or ping, of which there are a few; for addresses beside one that answers
)
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
    addresses: list[IPAddress] = field(default_factory=list)
    answering: list[IPAddress] = field(default_factory=list)  # those at which a tunnel was made
    resolver: Endpoint | None = None

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
        answers, faults = await self._resolve()
        self.resolver = next(((a.nameserver, a.port or 53) for a in answers if a.nameserver), None)
        for name in _names(answers):
            self.announcement = parse_name(name)
            if self.announcement is not None:
                self.name = name.rstrip(".").lower()
                break
        if self.announcement is None:
            raise StepError(
                f"{self.host} announces no pq1 key: its DNS has no CNAME to a pq1 name (see pqtun announce)"
            )
        found = [ip_address(record.address) for answer in answers for record in answer.rrset or ()]
        if not found:
            raise StepError(
                f"{self.name} has neither an A nor an AAAA record: publish the server's address there"
                + "".join(f"; {fault}" for fault in faults)
            )
        self.addresses = self._behind_client(found)[:MAX_CANDIDATES]
        return "; ".join((f"{self.name} at {', '.join(map(str, self.addresses))}", *faults))

    async def _resolve(self) -> "tuple[list[dns.resolver.Answer], list[str]]":
        """The answers to the questions for addresses of both families, one at least, and what is wrong with one."""
        if not self.host.strip(".") or _is_address(self.host):
            raise StepError(f"{self.host!r} is no name; name the host as clients do, such as www.example.net")
        try:
            resolver = dns.asyncresolver.Resolver()
        except dns.resolver.NoResolverConfiguration:
            raise StepError("/etc/resolv.conf names no resolver") from None
        both = await asyncio.gather(self._ask(resolver, "A"), self._ask(resolver, "AAAA"))
        answers = [answer for answer in both if not isinstance(answer, str)]
        faults = [fault for fault in both if isinstance(fault, str)]
        if not answers:
            raise StepError(faults[0])
        return answers, faults

    async def _ask(self, resolver: "dns.asyncresolver.Resolver", kind: str) -> "dns.resolver.Answer | str":
        try:
            return await resolver.resolve(self.host, kind, lifetime=DNS_SECONDS, search=False, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            return f"{self.host} does not exist in DNS"
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            return f"DNS lookup of {self.host} ({kind}) failed: {str(error) or type(error).__name__}"

    def _behind_client(self, addresses: list[IPAddress]) -> list[IPAddress]:
        """A client on this host shows private addresses; ask it for the real ones."""
        private = next((a for a in addresses if isinstance(a, IPv4Address) and a.is_private), None)
        if private is None or not socket_path(self.run_directory, "client").exists():
            return addresses
        try:
            answer = ask(self.run_directory, "client", {"op": "real_address", "private_address": str(private)})
        except NotRunningError:
            return addresses  # one that was killed left its socket
        except UserError as error:
            raise StepError(f"a pqtun client on this host hides the real address of {self.host}: {error}") from None
        return [ip_address(text) for text in answer["real_addresses"]] or addresses


def _names(answers: "list[dns.resolver.Answer]") -> list[str]:
    """The name that was asked for, and those that the answers lead to."""
    targets = [
        str(record.target)
        for answer in answers
        for rrset in answer.response.answer
        if rrset.rdtype == dns.rdatatype.CNAME
        for record in rrset
    ]
    return [str(answers[0].qname), *targets]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class _Network:
    """The steps after DNS, at all addresses; a step is good if it is so at one of them."""

    def __init__(self, checkup: Checkup) -> None:
        if checkup.announcement is None:
            raise ValueError("the DNS step comes first")
        self._announcement = checkup.announcement
        self._checkup = checkup
        self._key: ServerPublicKey | None = None
        self._paths: list[_Path] = []

    def close(self) -> None:
        """End the tunnels at both ends."""
        for path in self._paths:
            path.close()

    async def download(self) -> str:
        """Fetch the long-term key; each piece is checked against the announced hash as it comes. Raises StepError."""
        known, checkup = self._announcement, self._checkup
        ports = await find_ports(checkup.name, known.port, known.key_port, checkup.resolver)
        self._paths = [_Path(address, ports) for address in order(checkup.addresses, None, ())]
        faults = await _unreached(self._paths)
        silent = [faults[path] for path in self._paths if path in faults]
        self._paths = [path for path in self._paths if path not in faults]
        if not self._paths:
            raise StepError(_joined((), silent))
        first = self._paths[0]
        try:
            with connected_socket(first.key_server) as sock:
                self._key = await fetch_server_key(
                    sock, known.keyhash, clock=clock.boottime, on_progress=checkup.on_progress
                )
        except (DownloadError, OSError) as error:
            raise first.key_fault(error) from None
        size = len(self._key.mceliece_pk) + len(self._key.x25519_pk)
        return _joined([f"{size} bytes from {_text(first.key_server)}"], silent)

    async def hash(self) -> str:
        """The whole key against the announced hash, once more. Raises StepError."""
        if self._key is None or KeyTree(self._key).keyhash != self._announcement.keyhash:
            raise StepError("the key that is served is not the one that is announced")
        return encode(self._announcement.keyhash)

    async def handshake(self) -> str:
        """Make tunnels and hear from the server in them. Raises StepError."""
        if self._key is None:
            raise StepError("no key")
        faults = await asyncio.gather(*(path.handshake(self._key) for path in self._paths))
        up = [path for path, fault in zip(self._paths, faults, strict=True) if fault is None]
        self._checkup.answering = [path.address for path in up]
        wrong = [fault for fault in faults if fault is not None]
        if not up:
            raise StepError(_joined((), wrong))
        return _joined([f"tunnel to {' and to '.join(_text(path.tunnel) for path in up)}"], wrong)

    async def ping(self) -> str:
        """Round trips through the tunnels, one after the other. Raises StepError."""
        said, silent = [], []
        for path in self._paths:
            if path.address in self._checkup.answering:
                times = [seconds for _ in range(TRIES) if (seconds := await path.exchange()) is not None]
                if times:
                    fastest = f"fastest {1000 * min(times):.2f} ms"
                    said.append(f"{path.address}: {len(times)} of {TRIES} answered, {fastest}")
                else:
                    silent.append(StepError(f"no answer through the tunnel to {path.address}"))
        if not said:
            raise StepError(_joined((), silent))
        return _joined(said, silent)


async def _unreached(paths: "list[_Path]") -> "dict[_Path, StepError]":
    """Ask all key servers; return those that do not answer, not even in a while after the first, and why."""
    probes = {asyncio.ensure_future(path.ephemeral()): path for path in paths}
    faults: dict[_Path, StepError] = {}
    waiting = set(probes)
    deadline: float | None = None
    try:
        while waiting and (deadline is None or clock.boottime() < deadline):
            patience = None if deadline is None else deadline - clock.boottime()
            done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for probe in done:
                try:
                    probe.result()
                except StepError as error:
                    faults[probes[probe]] = error
                else:
                    deadline = deadline or clock.boottime() + ANSWER_SECONDS
    finally:
        for probe in waiting:
            probe.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    late = [probes[probe] for probe in waiting]
    return faults | {path: StepError(f"no answer from key server {_text(path.key_server)}") for path in late}


class _Path:
    """The way to one of the server's addresses, and a tunnel on it."""

    def __init__(self, address: IPAddress, ports: Ports) -> None:
        self.address = address
        self.key_server = ports.key_server_of(address)
        self.tunnel: Endpoint = (str(address), ports.tunnel)
        self._sock: socket.socket | None = None
        self._state: Tunnel | None = None
        self._pings = 0

    def close(self) -> None:
        """End the tunnel at both ends."""
        if self._state is not None and self._sock is not None:
            farewell = control.encode([control.Bye(control.BYE_STOPPING)], _OWN)
            with suppress(MessageError, OSError):
                self._sock.send(self._state.seal(farewell, clock.boottime()))
        if self._state is not None:
            self._state.erase()
        if self._sock is not None:
            self._sock.close()

    def key_fault(self, error: DownloadError | OSError) -> StepError:
        """What is wrong with the key server, in its words."""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return StepError(f"key server {_text(self.key_server)}: {reason}")

    async def ephemeral(self) -> EphemeralPublicKey:
        """Ask the key server for its ephemeral keys. Raises StepError."""
        try:
            with connected_socket(self.key_server) as sock:
                return await fetch_ephemeral(sock, clock=clock.boottime)
        except (DownloadError, OSError) as error:
            raise self.key_fault(error) from None

    async def handshake(self, key: ServerPublicKey) -> StepError | None:
        """Make a tunnel; None if the server was heard in it, else what is wrong."""
        try:
            for _ in range(TRIES):
                datagram, session = initiate(key, await self.ephemeral())
                self._sock = self._sock or connected_socket(self.tunnel)
                if self._state is not None:
                    self._state.erase()
                self._state = Tunnel(session.tid, session.send_root, session.recv_root, clock.boottime())
                session.erase()
                self._sock.send(datagram)
                if await self.exchange() is not None:
                    return None
        except StepError as error:
            return error
        except MessageError:
            return StepError(f"key server {_text(self.key_server)} sent an unusable key")
        except OSError as error:
            return StepError(f"{_text(self.tunnel)}: {error.strerror}")
        return StepError(
            f"no answer from {_text(self.tunnel)}: is UDP to it open, and does the server run with the announced key?"
        )

    async def exchange(self) -> float | None:
        """Send a ping of each kind; return the seconds to the first answer, None without one."""
        if self._state is None or self._sock is None:
            return None
        self._pings += 1
        token = self._pings.to_bytes(8, "big")
        began = clock.boottime()
        loop = asyncio.get_running_loop()
        try:
            # a pqtun server answers the first, a PQConnect host's kernel the second
            for packet in (control.encode([control.Ping(token)], _OWN), echo_request(_OWN, token)):
                self._sock.send(self._state.seal(packet, clock.boottime()))
            async with asyncio.timeout(ANSWER_SECONDS):
                while (now := clock.boottime()) < began + ANSWER_SECONDS:  # a flood leaves the timeout no turn
                    datagram = await loop.sock_recv(self._sock, _DATAGRAM)
                    with suppress(MessageError):
                        if _answers(self._state.open(datagram, now), token):
                            return clock.boottime() - began
        except (TimeoutError, OSError):
            pass  # no answer
        return None


def _answers(plaintext: bytes, token: bytes) -> bool:
    """Whether an inner packet is the pong or the echo reply to our ping with this token."""
    if control.is_control(plaintext):
        return control.Pong(token) in control.parse(plaintext)
    return echo_token(plaintext) == token


def _joined(good: Iterable[str], faults: Iterable[StepError]) -> str:
    return "; ".join((*good, *map(str, faults)))


def _text(endpoint: Endpoint) -> str:
    return f"{endpoint[0]} port {endpoint[1]}"
