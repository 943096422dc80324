"""Answers that say that there is no address, IPv6, and answers that are meant to be direct."""

from __future__ import annotations

from ipaddress import IPv6Address

import dns.flags
import pytest

from pqtun.dns.answer import Found
from pqtun.protocol.names import Announcement
from tests.dns.client import ADDRESS, ADDRESS6, CHAIN, SOA, UPSTREAM, Client, leaks
from tests.dns.messages import KEYHASH, PQ1, PQ1_PORTS, REAL, REAL6, answer, parse, rcode, records, signature


@pytest.fixture
def client() -> Client:
    return Client()


# -- IPv6 ------------------------------------------------------------------------------------------------------------


def test_a_peer_with_ipv6_inside_gets_one_private_ipv6_address() -> None:
    client = Client(ipv6=True)
    message = answer("www.example.net. AAAA", CHAIN, ADDRESS6, f"{PQ1} 2 IN AAAA 2001:db8::6", signature(PQ1, "AAAA"))
    assert records(client.rewrite(message)) == [CHAIN, f"{PQ1} 5 IN AAAA fd43::2"]
    addresses = [IPv6Address(REAL6), IPv6Address("2001:db8::6")]
    assert client.asked == [Found(Announcement(KEYHASH), PQ1[:-1], "www.example.net", None, addresses, UPSTREAM)]
    assert records(client.rewrite(answer(f"{PQ1} AAAA", f"{PQ1} 2 IN AAAA {REAL6}"))) == [f"{PQ1} 2 IN AAAA fd43::3"]


def denied(question: str, *rest: str, **options: object) -> bytes:
    proof = (SOA, signature("example.net.", "SOA"), f"{PQ1} 300 IN NSEC zzz.example.net. TXT", signature(PQ1, "NSEC"))
    return answer(question, *rest, authority=proof, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "chain"),
    [("wWw.example.net.", (f"wWw.example.net. 3600 IN CNAME {PQ1}",)), (PQ1, ()), (PQ1_PORTS, ())],
)
def test_a_name_without_an_a_record_gets_one(client: Client, asked: str, chain: tuple[str, ...]) -> None:
    rewritten = client.rewrite(denied(f"{asked} A", *chain, flags="QR RD RA AD"))
    end = PQ1 if chain else asked
    assert rcode(rewritten) == "NOERROR"
    assert records(rewritten) == [*chain, f"{end} 5 IN A 10.43.0.2"]
    assert records(rewritten, "authority") == []
    assert dns.flags.to_text(parse(rewritten).flags) == "QR RD RA"
    announcement = Announcement(KEYHASH, 624, 584) if asked == PQ1_PORTS else Announcement(KEYHASH)
    assert client.asked == [Found(announcement, end[:-1], asked.lower()[:-1], [], None, UPSTREAM)]


def test_a_chain_that_ends_behind_the_pq1_name_gets_an_a_record_there(client: Client) -> None:
    on = f"{PQ1} 300 IN CNAME host.example.org."
    rewritten = client.rewrite(denied("www.example.net. A", on, CHAIN))
    assert records(rewritten) == [on, CHAIN, "host.example.org. 5 IN A 10.43.0.2"]


def test_no_aaaa_record_becomes_the_private_one_of_a_peer_with_ipv6_inside() -> None:
    client = Client(ipv6=True)
    rewritten = client.rewrite(denied("www.example.net. AAAA", CHAIN))
    assert records(rewritten) == [CHAIN, f"{PQ1} 5 IN AAAA fd43::2"]
    assert records(rewritten, "authority") == []
    assert (client.asked[0].real4, client.asked[0].real6) == (None, [])


def test_no_aaaa_record_stays_no_data(client: Client) -> None:
    for full in (False, True):
        client.full = full
        message = denied("www.example.net. AAAA", CHAIN, flags="QR RD RA AD")
        assert client.rewrite(message) is message


def test_only_a_denial_with_its_soa_tells_that_there_is_no_aaaa_record(client: Client) -> None:
    """Else it may be what we have left of an answer, which another resolver of this host hands on."""
    first = client.rewrite(answer("www.example.net. AAAA", CHAIN, ADDRESS6))
    assert client.rewrite(first) is first
    assert [found.real6 for found in client.asked] == [[IPv6Address(REAL6)], None]


@pytest.mark.parametrize("kind", ["A", "AAAA"])
@pytest.mark.parametrize(
    "message",
    [
        answer(f"{PQ1} A", authority=("example.net. 300 IN NS ns.example.net.",)),  # a referral
        answer("www.example.net. A", CHAIN, flags="QR AA RD"),  # a chain that leaves the server's zone
        answer(f"{PQ1} A", flags="QR TC RD RA"),
        answer(f"{PQ1} A", f"{PQ1} 9 IN CNAME a.", f"a. 9 IN CNAME {PQ1}"),
        answer("www.example.net. A", f"www.example.net. 9 IN CNAME {PQ1}", f"{PQ1} 9 IN CNAME www.example.net."),
        answer("www.example.net. A", f"other.example.net. 9 IN CNAME {PQ1}"),
        answer("www.example.net. A", f"www.example.net. 9 CH CNAME {PQ1}"),
        answer(f"x{PQ1} A", authority=(SOA,)),
    ],
)
def test_what_is_no_denial_about_a_pq1_name_stays(message: bytes, kind: str) -> None:
    client = Client(ipv6=True)
    code = {"A": 1, "AAAA": 28}[kind].to_bytes(2, "big")
    place = message.index(b"\0", 12) + 1
    message = message[:place] + code + message[place + 2 :]
    assert parse(message).question[0].rdtype == code[1]
    assert client.rewrite(message) is message
    assert client.asked == []


def test_a_name_that_does_not_exist_stays_so(client: Client) -> None:
    message = bytearray(denied(f"{PQ1} A"))
    message[3] |= 3
    assert rcode(bytes(message)) == "NXDOMAIN"
    assert client.rewrite(bytes(message)) == message
    assert client.asked == []


def test_a_question_of_another_class_or_type_gets_no_address(client: Client) -> None:
    for kind in ("TXT", "MX", "HTTPS", "ANY"):
        message = denied(f"{PQ1} {kind}")
        assert client.rewrite(message) is message
    message = bytearray(denied(f"{PQ1} A"))
    message[message.index(b"\0", 12) + 4] = 3  # CHAOS
    assert client.rewrite(bytes(message)) == message
    assert client.asked == []


def test_private_addresses_of_both_families_pass() -> None:
    client = Client(ipv6=True)
    for question in ("A", "AAAA"):
        message = denied(f"{PQ1} {question}", f"{PQ1} 5 IN {question} {'10.43.0.9' if question == 'A' else 'fd43::9'}")
        assert client.rewrite(message) is message
    assert client.asked == []
    mixed = answer(f"{PQ1} AAAA", f"{PQ1} 5 IN AAAA fd43::9", ADDRESS6)
    assert records(client.rewrite(mixed)) == [f"{PQ1} 5 IN AAAA fd43::2"]
    assert client.asked[0].real6 == [IPv6Address(REAL6)]


# -- direct ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        answer("www.example.net. A", CHAIN, ADDRESS, signature(PQ1, "A"), flags="QR RD RA AD"),
        answer("www.example.net. AAAA", CHAIN, ADDRESS6, authority=(f"{PQ1} 300 IN NSEC zzz.example.net. A",)),
        answer(f"{PQ1} ANY", f"{PQ1} 300 IN HTTPS 1 . ipv4hint={REAL}", ADDRESS, ADDRESS6),
        denied("www.example.net. A", CHAIN),
        denied(f"{PQ1} AAAA"),
    ],
)
def test_what_is_meant_to_be_reached_directly_is_the_same_object(message: bytes) -> None:
    client = Client(direct=True)
    assert client.rewrite(message) is message
    assert len(client.asked) == 1


def test_a_truncated_answer_is_never_direct() -> None:
    client = Client(direct=True)
    assert not leaks(client.rewrite(answer(f"{PQ1} A", ADDRESS, flags="QR TC RD RA")))
    assert client.asked == []


def test_bindings_are_not_asked_about() -> None:
    client = Client(direct=True)
    assert records(client.rewrite(answer(f"{PQ1} HTTPS", f"{PQ1} 300 IN HTTPS 1 . ipv4hint={REAL}"))) == []
    assert client.asked == []
