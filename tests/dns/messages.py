"""DNS messages for tests, written as text."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from dns.edns import GenericOption

PQ1 = "pq1gr52jugjdngjhzf5fplbm33qrzrqd08dquvn36yqxd2hbdk4gs10.example.net."
PQ1_PORTS = "pq1gr52jugjdngjhzf5fplbm33qrzrqd08dquvn36yqxd2hbdk4gs1020w020l0.example.net."
KEYHASH = bytes.fromhex("ee1601b5838c3af87e2bad4a35c7b0f75fcb0062566f3a8cb79d89a758240e07")
REAL = "203.0.113.5"
REAL6 = "2001:db8::5"

SIGNATURE = "8 3 300 20300101000000 20200101000000 12345 example.net. AAAA"


def signature(owner: str, covered: str, ttl: int = 300) -> str:
    return f"{owner} {ttl} IN RRSIG {covered} {SIGNATURE}"


def answer(
    question: str,
    *records: str,
    authority: tuple[str, ...] = (),
    additional: tuple[str, ...] = (),
    edns: bool = True,
    flags: str = "QR RD RA",
) -> bytes:
    """An answer; each record is a line of a zone file with an absolute owner."""
    name, kind = question.split()
    options = {"use_edns": 0, "payload": 1232, "options": [GenericOption(10, bytes(8))]} if edns else {}
    message = dns.message.make_query(name, kind, id=4711, **options)
    message.flags = dns.flags.from_text(flags)
    sections = zip(
        (message.answer, message.authority, message.additional), (records, authority, additional), strict=True
    )
    for section, lines in sections:
        for line in lines:
            owner, ttl, cls, rtype, data = line.split(None, 4)
            section.append(dns.rrset.from_text(owner, int(ttl), cls, rtype, data))
    return message.to_wire(max_size=65535)


def records(wire: bytes, section: str = "answer") -> list[str]:
    """The records of a section as text."""
    return [rrset.to_text() for rrset in getattr(parse(wire), section)]


def parse(wire: bytes) -> dns.message.Message:
    return dns.message.from_wire(wire, one_rr_per_rrset=True)


def rcode(wire: bytes) -> str:
    return dns.rcode.to_text(parse(wire).rcode())
