"""DNS answers: what they say about pq1 names is replaced by private addresses. Pure (doc/protocol.md section 2).

An answer concerns us where the owner of a record, or the name in question, is a pq1 name or is reached from one by
CNAME records.

=====================  ==========================================================================================
record of such a name  becomes
=====================  ==========================================================================================
A                      exactly one A, the peer's private IPv4 address, with a TTL of at most 5 s
AAAA                   one AAAA, its private IPv6 address, likewise; nothing where it has none
HTTPS, SVCB            nothing: programs would go around the tunnel with the addresses in them
RRSIG over these       nothing, and AD is cleared; NSEC and NSEC3 in the authority section go with it
all else               stays; CNAME records keep data, signature and TTL: they say the same with and without a client
=====================  ==========================================================================================

Where the answer says that such a name has no A record, it gets one all the same, for the server may be reached over
IPv6; likewise an AAAA record, where the peer has a private IPv6 address. The SOA of the denial goes.

HTTPS and SVCB records of other names that point to such a name lose their address hints. A message in which none of
this applies, or whose addresses are private ones already (resolvers behind each other on one host, each behind the
proxy), is passed on byte for byte; so are the records of a name that the client wants reached directly. An answer that
holds a pq1 label and cannot be read, or to a question for the IPv4 address of a server that has no private one, becomes
SERVFAIL: no address is better than one that leads around the tunnel.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

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


@dataclass(frozen=True, slots=True)
class Found:
    """A server that an answer announces. Names are in lower case without final dot.

    The real addresses are those of the answer; whoever may answer any DNS question chooses them. None: the answer says
    nothing of that family, because nobody asked, or because what denies it may be our own work at another resolver.
    """

    announcement: Announcement
    name: str  # the pq1 name
    asked: str  # the name in the question
    real4: list[IPv4Address] | None
    real6: list[IPv6Address] | None
    upstream: Upstream
    sought: bool = True  # whether the question leads to it; else it is in the answer beside that


class Private(NamedTuple):
    """The private addresses that stand for a server. No IPv6 one where it is not known to take IPv6 inside."""

    v4: IPv4Address
    v6: IPv6Address | None


class Direct(Enum):
    """The type of ``DIRECT``: the server's real addresses stay in the answer, and all else about it."""

    DIRECT = "direct"


DIRECT: Final = Direct.DIRECT

AddressOf = Callable[[Found], Private | Direct | None]
Own = Callable[[IPv4Address | IPv6Address], bool]

# A pq1 label as it stands on the wire: 55 or 63 bytes long. Compression never splits a label.
_LABEL: Final = re.compile(rb"[\x37\x3f][Pp][Qq]1")
_LABEL_BYTES: Final = (55, 63)
_ADDRESSES: Final = (RdataType.A, RdataType.AAAA)
_BINDINGS: Final = (RdataType.HTTPS, RdataType.SVCB)
_DENIALS: Final[tuple[RdataType, ...]] = (RdataType.NSEC, RdataType.NSEC3)
_TRANSFERS: Final = (RdataType.AXFR, RdataType.IXFR)
_HINTS: Final = (ParamKey.IPV4HINT, ParamKey.IPV6HINT)


@dataclass(frozen=True, slots=True)
class _Claim:
    """The pq1 name that an owner is, or is reached from."""

    name: str
    announcement: Announcement


@dataclass(slots=True)
class _Real:
    """Real addresses of one owner."""

    v4: list[IPv4Address] = field(default_factory=list)
    v6: list[IPv6Address] = field(default_factory=list)


class _NoAddressError(Exception):
    """The answer section would have to hold a real address."""


def rewrite(message: bytes, upstream: Upstream, address_of: AddressOf, own: Own) -> bytes:
    """Return the answer as programs of this host may see it; the same object if nothing in it concerns us.

    ``address_of`` returns the private addresses of a server, ``DIRECT`` to leave its records as they came, None if it
    has none. ``own`` tells private addresses of ours. Zone transfers and messages of another opcode than QUERY pass as
    they are. Never raises for any ``message``.
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


def _no_address(_: Found) -> None:
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
        records = [*message.answer, *message.authority, *message.additional]
        self._claims = _find_claims(records, (rrset.name for rrset in message.question))
        self._real: dict[dns.name.Name, _Real] = {}
        for rrset in records:
            if self._claim(rrset) is not None and rrset.rdtype in _ADDRESSES:
                self._note_address(rrset, own)
        self._verdicts: dict[dns.name.Name, Private | Direct | None] = {}
        self._changed: set[tuple[dns.name.Name, RdataType]] = set()
        self._missing = self._find_missing()

    def _note_address(self, rrset: dns.rrset.RRset, own: Own) -> None:
        if rrset.rdtype == RdataType.A:
            address = IPv4Address(rrset[0].to_text())
            if not own(address):
                self._real.setdefault(rrset.name, _Real()).v4.append(address)
        else:
            address6 = IPv6Address(rrset[0].to_text())
            if not own(address6):
                self._real.setdefault(rrset.name, _Real()).v6.append(address6)

    def edit(self) -> bool:
        """Edit all sections; False if there was nothing to do. Raises _NoAddressError."""
        message = self._message
        message.answer[:] = self._replaced(message.answer, needed=True)
        message.authority[:] = self._replaced(message.authority, needed=False)
        message.additional[:] = self._replaced(message.additional, needed=False)
        gone = (*_DENIALS, RdataType.SOA) if self._fill_in() else _DENIALS
        if not self._changed:
            return False
        for section in (message.answer, message.additional):
            section[:] = [rrset for rrset in section if not self._is_stale_signature(rrset)]
        message.authority[:] = [
            rrset for rrset in message.authority if not self._is_stale_signature(rrset) and _subject(rrset) not in gone
        ]
        message.flags &= ~dns.flags.AD
        return True

    def _claim(self, rrset: dns.rrset.RRset) -> _Claim | None:
        return self._claims.get(rrset.name) if rrset.rdclass == dns.rdataclass.IN else None

    def _replaced(self, section: list[dns.rrset.RRset], *, needed: bool) -> list[dns.rrset.RRset]:
        """The section with private addresses. ``needed``: a name without one is an error, not an omission."""
        kept = []
        done: set[tuple[dns.name.Name, RdataType]] = set()
        for rrset in section:
            replacement = self._replacement(rrset, needed=needed)
            if replacement is rrset:
                kept.append(rrset)
                continue
            subject = rrset.name, rrset.rdtype
            self._changed.add(subject)
            if replacement is not None and not (rrset.rdtype in _ADDRESSES and subject in done):
                kept.append(replacement)
                done.add(subject)
        return kept

    def _replacement(self, rrset: dns.rrset.RRset, *, needed: bool) -> dns.rrset.RRset | None:
        """What stands in place of a record: itself, another, or nothing. All addresses of an owner become one."""
        owner, claim = rrset.name, self._claim(rrset)
        if claim is None:
            return self._without_hints(rrset)
        if rrset.rdtype not in (*_ADDRESSES, *_BINDINGS):
            return rrset
        real = self._real.get(owner, _Real())
        verdict = self._verdict(owner, claim) if real.v4 or real.v6 else None
        if verdict is DIRECT:
            return rrset
        if rrset.rdtype in _BINDINGS:
            return None
        if not (real.v4 if rrset.rdtype == RdataType.A else real.v6):
            return rrset  # private ones, rewritten before
        address = _of_family(verdict, rrset.rdtype)
        if address is not None:
            return dns.rrset.from_text(owner, min(rrset.ttl, TTL), "IN", rrset.rdtype, str(address))
        if needed and rrset.rdtype == RdataType.A:
            raise _NoAddressError
        return None

    def _verdict(self, owner: dns.name.Name, claim: _Claim) -> Private | Direct | None:
        if owner not in self._verdicts:
            verdict = None
            if len(self._verdicts) < MAX_NAMES:
                verdict = self._address_of(self._found(owner, claim))
            self._verdicts[owner] = verdict
        return self._verdicts[owner]

    def _found(self, owner: dns.name.Name, claim: _Claim) -> Found:
        question = self._message.question
        asked = _text(question[0].name) if question else claim.name
        real = self._real.get(owner, _Real())
        denied = question[0].rdtype if self._missing is not None and self._missing[0] == owner else None
        # Where we have taken AAAA records away, which another resolver on this host hands on, there is no SOA.
        denied6 = denied == RdataType.AAAA and _has(self._message.authority, RdataType.SOA)
        real4 = real.v4 if real.v4 or denied == RdataType.A else None
        real6 = real.v6 if real.v6 or denied6 else None
        sought = bool(question) and _end_of_chain(question[0].name, self._message.answer) == owner
        return Found(claim.announcement, claim.name, asked, real4, real6, self._upstream, sought)

    def _find_missing(self) -> tuple[dns.name.Name, RdataType] | None:
        """The name of ours that the answer is about and the type of address that it says the name does not have."""
        message = self._message
        if not message.flags & dns.flags.QR or message.flags & dns.flags.TC or message.rcode() != dns.rcode.NOERROR:
            return None
        if len(message.question) != 1 or message.question[0].rdclass != dns.rdataclass.IN or _is_partial(message):
            return None
        asked = message.question[0].rdtype
        end = _end_of_chain(message.question[0].name, message.answer)
        if end is None or end not in self._claims:
            return None
        if asked == RdataType.ANY and end in self._real:
            asked = RdataType.A  # programs that ask so look for IPv4 addresses, or IPv6 ones as well
        here = [rrset for rrset in message.answer if rrset.name == end]
        return (end, asked) if asked in _ADDRESSES and not _has(here, asked) else None

    def _fill_in(self) -> bool:
        """Add the private address in place of a denial; False if there is nothing to add. Raises _NoAddressError."""
        if self._missing is None:
            return False
        owner, kind = self._missing
        verdict = self._verdict(owner, self._claims[owner])
        if verdict is None and kind == RdataType.A:
            raise _NoAddressError
        address = _of_family(verdict, kind)
        if address is None:
            return False
        self._message.answer.append(dns.rrset.from_text(owner, TTL, "IN", kind, str(address)))
        self._changed.add((owner, kind))
        return True

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


def _of_family(verdict: Private | Direct | None, kind: RdataType) -> IPv4Address | IPv6Address | None:
    if not isinstance(verdict, Private):
        return None
    return verdict.v4 if kind == RdataType.A else verdict.v6


def _has(section: list[dns.rrset.RRset], kind: RdataType) -> bool:
    return any(rrset.rdtype == kind and rrset.rdclass == dns.rdataclass.IN for rrset in section)


def _is_partial(message: dns.message.Message) -> bool:
    """Whether others may have what is missing: a referral, or a chain that leaves the zone (RFC 2308 section 2.2).

    They hold no SOA record. Resolvers on this host get such answers from authoritative servers.
    """
    if _has(message.authority, RdataType.SOA):
        return False
    return _has(message.authority, RdataType.NS) or not message.flags & dns.flags.RA


def _end_of_chain(name: dns.name.Name, section: list[dns.rrset.RRset]) -> dns.name.Name | None:
    """The name that CNAME records lead to; None if they lead in a circle."""
    aliases = {
        rrset.name: rrset[0].target
        for rrset in section
        if rrset.rdtype == RdataType.CNAME and rrset.rdclass == dns.rdataclass.IN
    }
    for _ in range(len(aliases) + 1):
        if name not in aliases:
            return name
        name = aliases[name]
    return None


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _announced(name: dns.name.Name) -> Announcement | None:
    for label in name.labels:
        if len(label) in _LABEL_BYTES and label.isascii():
            announcement = parse_label(label.decode("ascii"))
            if announcement is not None:
                return announcement
    return None


def _find_claims(records: list[dns.rrset.RRset], asked: Iterable[dns.name.Name]) -> dict[dns.name.Name, _Claim]:
    """Map each pq1 name, and each name that CNAME records reach from one, to the last pq1 name on the way."""
    claims: dict[dns.name.Name, _Claim] = {}
    aliases: dict[dns.name.Name, list[dns.name.Name]] = {}
    names = list(asked)
    for rrset in records:
        names.append(rrset.name)
        if rrset.rdtype == RdataType.CNAME:
            names.append(rrset[0].target)
            aliases.setdefault(rrset.name, []).append(rrset[0].target)
    for name in names:
        if name not in claims:
            announcement = _announced(name)
            if announcement is not None:
                claims[name] = _Claim(_text(name), announcement)
    reached = list(claims)
    while reached:  # ends for loops of CNAMEs too: a name is claimed once
        name = reached.pop()
        for target in aliases.get(name, ()):
            if target not in claims:
                claims[target] = claims[name]
                reached.append(target)
    return claims
