"""Where a server is: the addresses and ports that DNS names for it (doc/protocol.md section 2)."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
from dns.rdatatype import RdataType

from pqtun.protocol.constants import KEY_SERVER_PORT, SERVER_PORT
from pqtun.protocol.names import parse_key_server_text, parse_port_text
from pqtun.pump.engine import Endpoint

log = logging.getLogger(__name__)

TRY_SECONDS: Final = (1.0, 2.0)  # for one question and its repetition; it may have been lost like any datagram
MAX_RECORDS: Final = 8  # taken from one answer

IPAddress = IPv4Address | IPv6Address
_KINDS: Final = {4: RdataType.A, 6: RdataType.AAAA}


def is_unicast(address: IPAddress) -> bool:
    """Whether one other host can have this address; DNS may name any, such as a group of hosts, or ``::ffff:…``."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return False  # means an IPv4 host, which has a name for that in DNS (RFC 4038 section 4.2)
    return not (address.is_multicast or address.is_unspecified)


@dataclass(frozen=True, slots=True)
class Ports:
    """The UDP ports of a server's two services, and key servers that have addresses of their own."""

    tunnel: int = SERVER_PORT
    key_server: int = KEY_SERVER_PORT
    key_servers: tuple[Endpoint, ...] = ()

    def key_server_of(self, address: IPAddress) -> Endpoint:
        """Return the key server for a server at ``address``: one named for all, of its family if there is one."""
        own = [found for found in self.key_servers if ip_address(found[0]).version == address.version]
        return next(iter((*own, *self.key_servers)), (str(address), self.key_server))

    def without(self, excluded: Callable[[IPAddress], bool]) -> "Ports":
        """Return the same less the key servers with such addresses."""
        kept = tuple(found for found in self.key_servers if not excluded(ip_address(found[0])))
        return replace(self, key_servers=kept)


async def find_ports(name: str, port: int | None, key_port: int | None, resolver: Endpoint | None) -> Ports:
    """Return a server's ports: those of its label, else of the TXT records of its pq1 ``name``, else the defaults."""
    key_servers: list[Endpoint] = []
    if resolver is not None and (port is None or key_port is None):
        port_texts, key_texts = await asyncio.gather(_texts(name, resolver), _texts(f"ks.{name}", resolver))
        port = port or next(filter(None, map(parse_port_text, port_texts)), None)
        if key_port is None:
            key_servers = [found for found in map(parse_key_server_text, key_texts) if found and _is_host(found[0])]
    return Ports(port or SERVER_PORT, key_port or KEY_SERVER_PORT, tuple(key_servers))


def _is_host(text: str) -> bool:
    try:
        return is_unicast(ip_address(text))
    except ValueError:
        return False


async def _texts(name: str, resolver: Endpoint) -> list[str]:
    records = await _records(name, RdataType.TXT, resolver)
    return [b"".join(record.strings).decode("ascii", errors="replace") for record in records]


async def _look_up(name: str, version: int, resolver: Endpoint) -> list[IPAddress]:
    records = await _records(name, _KINDS[version], resolver)
    return [address for record in records if is_unicast(address := ip_address(record.address))]


async def _records(name: str, kind: RdataType, resolver: Endpoint) -> list[Any]:
    """The records of one type in the answer to a question, whatever their owner; none without an answer."""
    for seconds in TRY_SECONDS:
        try:
            query = dns.message.make_query(dns.name.from_text(name), kind)
            answer, _ = await dns.asyncquery.udp_with_fallback(
                query, resolver[0], seconds, resolver[1], ignore_unexpected=True, ignore_errors=True
            )
        except (dns.exception.DNSException, OSError, EOFError) as error:  # EOFError: TCP that ends too soon
            log.debug("%s lookup of %s: %s", kind.name, name, type(error).__name__)
            if isinstance(error, dns.exception.Timeout):
                continue
            return []
        return [record for rrset in answer.answer if rrset.rdtype == kind for record in rrset][:MAX_RECORDS]
    return []


class Addresses:
    """A server's real addresses: those that are known, and those that lookups bring. Leaving it ends the lookups."""

    def __init__(
        self,
        name: str,
        known: Iterable[IPAddress],
        resolver: Endpoint | None,
        *,
        settled: Collection[int],
        without: Callable[[IPAddress], bool] = lambda _: False,
    ) -> None:
        """``settled``: IP versions of which enough is known for now; addresses of the others are looked up at once.

        ``without``: tells addresses that are none of a server, wherever they come from.
        """
        self._name = name
        self._without = without
        self._known: dict[IPAddress, None] = {}
        self._learn(filter(is_unicast, known))
        self._resolver = resolver
        self._settled = settled
        self._asked: set[int] = set()
        self._lookups: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Addresses":
        self._ask(set(_KINDS).difference(self._settled))
        return self

    async def __aexit__(self, *_: object) -> None:
        for lookup in self._lookups:
            lookup.cancel()
        if self._lookups:
            await asyncio.wait(self._lookups)

    @property
    def known(self) -> tuple[IPAddress, ...]:
        """What is known by now."""
        return tuple(self._known)

    @property
    def pending(self) -> "set[asyncio.Task[None]]":
        """The lookups under way; when one is done, its addresses are among the known ones."""
        return {lookup for lookup in self._lookups if not lookup.done()}

    def look_again(self) -> bool:
        """Look up what was not looked up yet: what was known may be out of date. False if there is no such thing."""
        return self._ask(set(_KINDS))

    def _ask(self, versions: set[int]) -> bool:
        if self._resolver is None:
            return False
        fresh = versions - self._asked
        self._asked |= fresh
        self._lookups |= {asyncio.ensure_future(self._add(version, self._resolver)) for version in fresh}
        return bool(fresh)

    async def _add(self, version: int, resolver: Endpoint) -> None:
        self._learn(await _look_up(self._name, version, resolver))

    def _learn(self, addresses: Iterable[IPAddress]) -> None:
        self._known.update(dict.fromkeys(address for address in addresses if not self._without(address)))
