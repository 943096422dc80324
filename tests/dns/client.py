"""A client as the rewriting of answers sees it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pqtun.dns.answer import DIRECT, Direct, Found, Private, rewrite
from tests.dns.messages import PQ1, REAL, REAL6

PRIVATE = IPv4Network("10.43.0.0/16")
PRIVATE6 = IPv6Network("fd43::/64")
UPSTREAM = ("192.0.2.53", 53)
CHAIN = f"www.example.net. 3600 IN CNAME {PQ1}"
ADDRESS = f"{PQ1} 300 IN A {REAL}"
ADDRESS6 = f"{PQ1} 300 IN AAAA {REAL6}"


SOA = "example.net. 300 IN SOA ns.example.net. root.example.net. 1 2 3 4 5"


class Client:
    """Gives the private addresses from 10.43.0.2 and fd43::2 on, and remembers what it was asked."""

    def __init__(self, *, full: bool = False, ipv6: bool = False, direct: bool = False) -> None:
        self.asked: list[Found] = []
        self.full = full
        self.ipv6 = ipv6
        self.direct = direct

    def address_of(self, found: Found) -> Private | Direct | None:
        self.asked.append(found)
        if self.direct:
            return DIRECT
        number = 1 + len(self.asked)
        return None if self.full else Private(PRIVATE[number], PRIVATE6[number] if self.ipv6 else None)

    def own(self, address: IPv4Address | IPv6Address) -> bool:
        return address in (PRIVATE if address.version == 4 else PRIVATE6)

    def rewrite(self, message: bytes) -> bytes:
        return rewrite(message, UPSTREAM, self.address_of, self.own)


def leaks(message: bytes) -> bool:
    """Whether a real address of the tests is in the bytes."""
    return any(address in message for address in (IPv4Address(REAL).packed, IPv6Address(REAL6).packed))
