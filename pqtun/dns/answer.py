"""DNS answers: what they say about pq1 names is replaced by private addresses. Pure (doc/protocol.md section 2).

An answer concerns us where the owner of a record is a pq1 name or is reached from one by CNAME records.

=====================  ==========================================================================================
record of such a name  becomes
=====================  ==========================================================================================
A                      exactly one A, the peer's private address, with a TTL of at most 5 s
AAAA, HTTPS, SVCB      nothing: programs would go around the tunnel with the addresses in them
RRSIG over these       nothing, and AD is cleared; NSEC and NSEC3 in the authority section go with it
all else               stays; CNAME records keep data, signature and TTL: they say the same with and without a client
=====================  ==========================================================================================

HTTPS and SVCB records of other names that point to such a name lose their address hints. A message in which none of
this applies, or whose addresses are private ones already (resolvers behind each other on one host, each behind the
proxy), is passed on byte for byte. An answer that holds a pq1 label and cannot be read, or whose server has no private
address, becomes SERVFAIL: no address is better than one that leads around the tunnel.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rrset
from dns.rdatatype import RdataType
from dns.rdtypes.svcbbase import MandatoryParam, ParamKey

from pqtun.dns.origin import Upstream
from pqtun.dns.question import HEADER_BYTES, empty_answer, is_query_opcode, record_count
from pqtun.protocol.names import Announcement, parse_label

TTL: Final = 5  # seconds; so long do programs keep the private address when the client has ended
MAX_RECORDS: Final = 128  # in an answer with a pq1 label; a real one has a handful, and each takes up to 0.1 ms
MAX_NAMES: Final = 8  # owners that one answer gets private addresses for
MAX_BYTES: Final = 65535

AddressOf = Callable[[Announcement, str, list[IPv4Address], list[IPv6Address], Upstream], IPv4Address | None]
Own = Callable[[IPv4Address], bool]

# A pq1 label as it stands on the wire: 55 or 63 bytes long. Compression never splits a label.
_LABEL: Final = re.compile(rb"[\x37\x3f][Pp][Qq]1")
_LABEL_BYTES: Final = (55, 63)
_REMOVED: Final = (RdataType.AAAA, RdataType.HTTPS, RdataType.SVCB)
_DENIALS: Final = (RdataType.NSEC, RdataType.NSEC3)
_TRANSFERS: Final = (RdataType.AXFR, RdataType.IXFR)
_HINTS: Final = (ParamKey.IPV4HINT, ParamKey.IPV6HINT)


@dataclass(frozen=True, slots=True)
class _Claim:
    """The pq1 name that an owner is, or is reached from."""

    name: str
    announcement: Announcement


class _NoAddressError(Exception):
    """The answer section would have to hold a real address."""


def rewrite(message: bytes, upstream: Upstream, address_of: AddressOf, own: Own) -> bytes:
    """Return the answer as programs of this host may see it; the same object if nothing in it concerns us.

    ``address_of(announcement, pq1 name, real IPv4, real IPv6, upstream)`` returns the private address, None if the
    server has none. The name is in lower case without final dot. The real addresses are those of the answer; whoever
    may answer any DNS question chooses them. ``own`` tells private addresses of ours. Zone transfers and messages of
    another opcode than QUERY pass as they are. Never raises for any ``message``.
    """
    if _LABEL.search(message) is None or len(message) < HEADER_BYTES or not is_query_opcode(message):
        return message
    if record_count(message) > MAX_RECORDS:
        return empty_answer(message)
    try:
        parsed = dns.message.from_wire(message, one_rr_per_rrset=True, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return empty_answer(message)
    if any(rrset.rdtype in _TRANSFERS for rrset in parsed.question):
        return message
    if parsed.flags & dns.flags.TC:
        address_of = _no_address  # the program asks again by TCP: that answer is the complete one
    try:
        if not _Answer(parsed, upstream, address_of, own).edit():
            return message
        return parsed.to_wire(max_size=MAX_BYTES)
    except (_NoAddressError, dns.exception.DNSException, ValueError):
        return _without_records(message, parsed)


def _no_address(*_: object) -> None:
    return None


def _without_records(message: bytes, parsed: dns.message.Message) -> bytes:
    """As empty_answer(), with EDNS where the answer has it."""
    for section in (parsed.answer, parsed.authority, parsed.additional):
        section.clear()
    parsed.flags &= ~(dns.flags.AA | dns.flags.AD)
    if not parsed.flags & dns.flags.TC:
        parsed.set_rcode(dns.rcode.SERVFAIL)
    try:
        return parsed.to_wire(max_size=MAX_BYTES)
    except (dns.exception.DNSException, ValueError):
        return empty_answer(message)


class _Answer:
    """One answer while it is edited in place."""

    def __init__(self, message: dns.message.Message, upstream: Upstream, address_of: AddressOf, own: Own) -> None:
        self._message = message
        self._upstream = upstream
        self._address_of = address_of
        self._claims = _find_claims([*message.answer, *message.authority, *message.additional])
        self._real4: dict[dns.name.Name, list[IPv4Address]] = {}
        self._real6: dict[dns.name.Name, list[IPv6Address]] = {}
        for rrset in (*message.answer, *message.authority, *message.additional):
            if self._claim(rrset) is None:
                continue
            if rrset.rdtype == RdataType.A:
                address = IPv4Address(rrset[0].to_text())
                if not own(address):
                    self._real4.setdefault(rrset.name, []).append(address)
            elif rrset.rdtype == RdataType.AAAA:
                self._real6.setdefault(rrset.name, []).append(IPv6Address(rrset[0].to_text()))
        self._private: dict[dns.name.Name, IPv4Address | None] = {}
        self._changed: set[tuple[dns.name.Name, RdataType]] = set()

    def edit(self) -> bool:
        """Edit all sections; False if there was nothing to do. Raises _NoAddressError."""
        message = self._message
        message.answer[:] = self._replaced(message.answer, needed=True)
        message.authority[:] = self._replaced(message.authority, needed=False)
        message.additional[:] = self._replaced(message.additional, needed=False)
        if not self._changed:
            return False
        for section in (message.answer, message.additional):
            section[:] = [rrset for rrset in section if not self._is_stale_signature(rrset)]
        message.authority[:] = [
            rrset
            for rrset in message.authority
            if not self._is_stale_signature(rrset) and _subject(rrset) not in _DENIALS
        ]
        message.flags &= ~dns.flags.AD
        return True

    def _claim(self, rrset: dns.rrset.RRset) -> _Claim | None:
        return self._claims.get(rrset.name) if rrset.rdclass == dns.rdataclass.IN else None

    def _replaced(self, section: list[dns.rrset.RRset], *, needed: bool) -> list[dns.rrset.RRset]:
        """The section with private addresses. ``needed``: a name without one is an error, not an omission."""
        kept = []
        done: set[dns.name.Name] = set()
        for rrset in section:
            owner, claim = rrset.name, self._claim(rrset)
            replacement: dns.rrset.RRset | None = rrset
            if claim is None:
                replacement = self._without_hints(rrset)
            elif rrset.rdtype in _REMOVED:
                replacement = None
            elif rrset.rdtype == RdataType.A and owner in self._real4:
                address = self._private_address(owner, claim)
                if address is None and needed:
                    raise _NoAddressError
                replacement = None
                if address is not None and owner not in done:
                    replacement = dns.rrset.from_text(owner, min(rrset.ttl, TTL), "IN", "A", str(address))
                    done.add(owner)
            if replacement is not rrset:
                self._changed.add((owner, rrset.rdtype))
            if replacement is not None:
                kept.append(replacement)
        return kept

    def _private_address(self, owner: dns.name.Name, claim: _Claim) -> IPv4Address | None:
        if owner not in self._private:
            address = None
            if len(self._private) < MAX_NAMES:
                real4, real6 = self._real4[owner], self._real6.get(owner, [])
                address = self._address_of(claim.announcement, claim.name, real4, real6, self._upstream)
            self._private[owner] = address
        return self._private[owner]

    def _without_hints(self, rrset: dns.rrset.RRset) -> dns.rrset.RRset | None:
        """An HTTPS or SVCB record that points to a pq1 name, without addresses; None if it insists on having them."""
        if rrset.rdtype not in (RdataType.HTTPS, RdataType.SVCB) or rrset.rdclass != dns.rdataclass.IN:
            return rrset
        record = rrset[0]
        if not any(hint in record.params for hint in _HINTS):
            return rrset
        if record.target not in self._claims and _announced(record.target) is None:
            return rrset
        mandatory = record.params.get(ParamKey.MANDATORY)
        if isinstance(mandatory, MandatoryParam) and any(hint in mandatory.keys for hint in _HINTS):
            return None
        params = {key: value for key, value in record.params.items() if key not in _HINTS}
        return dns.rrset.from_rdata(rrset.name, rrset.ttl, record.replace(params=params))

    def _is_stale_signature(self, rrset: dns.rrset.RRset) -> bool:
        return rrset.rdtype == RdataType.RRSIG and (rrset.name, rrset.covers) in self._changed


def _subject(rrset: dns.rrset.RRset) -> RdataType:
    """The type of a record; for a signature, of what it signs."""
    return rrset.covers if rrset.rdtype == RdataType.RRSIG else rrset.rdtype


def _announced(name: dns.name.Name) -> Announcement | None:
    for label in name.labels:
        if len(label) in _LABEL_BYTES and label.isascii():
            announcement = parse_label(label.decode("ascii"))
            if announcement is not None:
                return announcement
    return None


def _find_claims(records: list[dns.rrset.RRset]) -> dict[dns.name.Name, _Claim]:
    """Map each pq1 name, and each name that CNAME records reach from one, to the last pq1 name on the way."""
    claims: dict[dns.name.Name, _Claim] = {}
    aliases: dict[dns.name.Name, list[dns.name.Name]] = {}
    for rrset in records:
        names = [rrset.name]
        if rrset.rdtype == RdataType.CNAME:
            names.append(rrset[0].target)
            aliases.setdefault(rrset.name, []).append(rrset[0].target)
        for name in names:
            if name not in claims:
                announcement = _announced(name)
                if announcement is not None:
                    claims[name] = _Claim(name.to_text(omit_final_dot=True).lower(), announcement)
    reached = list(claims)
    while reached:  # ends for loops of CNAMEs too: a name is claimed once
        name = reached.pop()
        for target in aliases.get(name, ()):
            if target not in claims:
                claims[target] = claims[name]
                reached.append(target)
    return claims
