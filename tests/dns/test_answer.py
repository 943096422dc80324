from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import dns.flags
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.dns.answer import MAX_NAMES, MAX_RECORDS, Found
from pqtun.protocol.names import Announcement
from tests.dns.client import ADDRESS, ADDRESS6, CHAIN, SOA, UPSTREAM, Client, leaks
from tests.dns.messages import KEYHASH, PQ1, PQ1_PORTS, REAL, REAL6, answer, parse, rcode, records, signature


@pytest.fixture
def client() -> Client:
    return Client()


# -- not ours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        answer("www.example.org. A", f"www.example.org. 300 IN A {REAL}"),
        answer("www.example.org. TXT", 'www.example.org. 300 IN TXT "pq1 is no label here"'),
        answer(f"{PQ1} TXT", f'{PQ1} 300 IN TXT "p=42424"'),
        answer("www.example.net. CNAME", CHAIN, signature("www.example.net.", "CNAME"), flags="QR RD RA AD"),
        answer("www.example.net. CAA", CHAIN, f'{PQ1} 300 IN CAA 0 issue "ca.example"'),
        answer("example.net. MX", f"example.net. 300 IN MX 10 {PQ1}"),
        answer(f"x{PQ1} A", f"x{PQ1} 300 IN A {REAL}"),
        answer(PQ1.replace("10.", "1a.") + " A", PQ1.replace("10.", "1a.") + f" 300 IN A {REAL}"),
        answer("example.net. AXFR", CHAIN, ADDRESS),
    ],
)
def test_what_is_not_ours_is_the_same_object(client: Client, message: bytes) -> None:
    assert client.rewrite(message) is message
    assert client.asked == []


def test_other_opcodes_pass(client: Client) -> None:
    message = bytearray(answer(f"{PQ1} A", ADDRESS))
    message[2] |= 5 << 3  # UPDATE
    assert client.rewrite(bytes(message)) == message


@given(st.binary(max_size=600))
def test_random_bytes_without_a_pq1_label_pass(message: bytes) -> None:
    if b"pq1" not in message.lower():
        assert Client().rewrite(message) is message


# -- ours ------------------------------------------------------------------------------------------------------------


def test_the_end_of_the_chain_gets_one_private_address(client: Client) -> None:
    message = answer("www.example.net. A", CHAIN, ADDRESS, f"{PQ1} 300 IN A 203.0.113.6")
    rewritten = client.rewrite(message)
    assert records(rewritten) == [CHAIN, f"{PQ1} 5 IN A 10.43.0.2"]
    addresses = [IPv4Address(REAL), IPv4Address("203.0.113.6")]
    assert client.asked == [Found(Announcement(KEYHASH), PQ1[:-1], "www.example.net", addresses, None, UPSTREAM)]
    before, after = parse(message), parse(rewritten)
    assert (after.id, after.question, after.flags) == (before.id, before.question, before.flags)
    assert (after.edns, after.payload, after.options) == (before.edns, before.payload, before.options)
    assert len(after.options) == 1


def test_a_short_ttl_stays(client: Client) -> None:
    for ttl, expected in ((0, 0), (4, 4), (5, 5), (6, 5)):
        rewritten = client.rewrite(answer(f"{PQ1} A", f"{PQ1} {ttl} IN A {REAL}"))
        assert parse(rewritten).answer[0].ttl == expected


def test_ports_in_the_label(client: Client) -> None:
    client.rewrite(answer(f"{PQ1_PORTS} A", f"{PQ1_PORTS} 300 IN A {REAL}"))
    assert client.asked[0].announcement == Announcement(KEYHASH, 624, 584)


def test_mixed_case_is_understood_and_kept(client: Client) -> None:
    mixed = "".join(c.upper() if i % 2 else c for i, c in enumerate(PQ1))
    rewritten = client.rewrite(
        answer("wWw.eXample.net. A", f"wWw.eXample.net. 60 IN CNAME {mixed}", f"{mixed} 60 IN A {REAL}")
    )
    assert parse(rewritten).question[0].name.to_text() == "wWw.eXample.net."
    assert records(rewritten)[0].startswith(f"wWw.eXample.net. 60 IN CNAME {mixed.split('.')[0]}.")
    assert records(rewritten)[1].endswith(" 5 IN A 10.43.0.2")
    assert client.asked[0].name == PQ1[:-1]


def test_a_chain_that_goes_on_after_the_pq1_name(client: Client) -> None:
    rewritten = client.rewrite(
        answer(
            "www.example.net. A",
            f"host.example.org. 300 IN A {REAL}",  # a resolver need not keep the order
            CHAIN,
            f"{PQ1} 300 IN CNAME host.example.org.",
        )
    )
    assert not leaks(rewritten)
    assert records(rewritten)[0] == "host.example.org. 5 IN A 10.43.0.2"
    assert client.asked[0].name == PQ1[:-1]


def test_the_last_pq1_name_of_a_chain_counts(client: Client) -> None:
    client.rewrite(answer("www.example.net. A", CHAIN, f"{PQ1} 9 IN CNAME {PQ1_PORTS}", f"{PQ1_PORTS} 9 IN A {REAL}"))
    assert [asked.name for asked in client.asked] == [PQ1_PORTS[:-1]]


def test_loops_of_cnames_end(client: Client) -> None:
    message = answer("a. A", f"a. 9 IN CNAME {PQ1}", f"{PQ1} 9 IN CNAME a.", f"a. 9 IN A {REAL}")
    assert not leaks(client.rewrite(message))
    message = answer(f"{PQ1} A", f"{PQ1} 9 IN CNAME {PQ1}")
    assert client.rewrite(message) is message


@pytest.mark.parametrize(
    "record",
    [
        ADDRESS6,
        f"{PQ1} 300 IN HTTPS 1 . alpn=h3 ipv4hint={REAL} ipv6hint={REAL6}",
        f"{PQ1} 300 IN HTTPS 0 other.example.net.",
        f"{PQ1} 300 IN SVCB 1 . ipv4hint={REAL}",
    ],
)
def test_other_ways_to_the_server_become_no_data(client: Client, record: str) -> None:
    kind = record.split()[3]
    message = answer(f"www.example.net. {kind}", CHAIN, record, authority=(SOA,))
    rewritten = client.rewrite(message)
    assert (rcode(rewritten), records(rewritten), records(rewritten, "authority")) == ("NOERROR", [CHAIN], [SOA])
    assert len(client.asked) == (1 if kind == "AAAA" else 0)


def test_any(client: Client) -> None:
    https = f"{PQ1} 300 IN HTTPS 1 . ipv4hint={REAL}"
    text = f'{PQ1} 300 IN TXT "p=42424"'
    rewritten = client.rewrite(answer(f"{PQ1} ANY", ADDRESS6, text, https, ADDRESS))
    assert records(rewritten) == [text, f"{PQ1} 5 IN A 10.43.0.2"]
    assert (client.asked[0].real4, client.asked[0].real6) == ([IPv4Address(REAL)], [IPv6Address(REAL6)])
    rewritten = Client(ipv6=True).rewrite(answer(f"{PQ1} ANY", ADDRESS6, text, https, ADDRESS))
    assert records(rewritten) == [f"{PQ1} 5 IN AAAA fd43::2", text, f"{PQ1} 5 IN A 10.43.0.2"]


def test_any_of_a_server_with_ipv6_only(client: Client) -> None:
    text = f'{PQ1} 300 IN TXT "p=42424"'
    assert records(client.rewrite(answer(f"{PQ1} ANY", ADDRESS6, text))) == [text, f"{PQ1} 5 IN A 10.43.0.2"]
    assert (client.asked[0].real4, client.asked[0].real6) == (None, [IPv6Address(REAL6)])
    message = answer(f"{PQ1} ANY", text)
    assert client.rewrite(message) is message


def test_hints_of_another_name_that_points_to_a_pq1_name(client: Client) -> None:
    start = f"example.net. 300 IN HTTPS 1 {PQ1}"
    rewritten = client.rewrite(answer("example.net. HTTPS", f"{start} alpn=h2 ipv4hint={REAL} ipv6hint={REAL6}"))
    assert records(rewritten) == [f'{start} alpn="h2"']
    rewritten = client.rewrite(answer("example.net. HTTPS", f"{start} mandatory=ipv4hint ipv4hint={REAL}"))
    assert records(rewritten) == []
    message = answer("example.net. HTTPS", f"{start} alpn=h2")
    assert client.rewrite(message) is message
    both = answer("example.net. HTTPS", f"{start} ipv4hint={REAL}", f"example.net. 9 IN HTTPS 2 {PQ1} ipv6hint={REAL6}")
    assert records(client.rewrite(both)) == [start, f"example.net. 9 IN HTTPS 2 {PQ1}"]
    message = answer(
        "example.net. HTTPS", f"example.net. 9 IN HTTPS 1 b.org. ipv4hint={REAL}", f"x.org. 9 IN CNAME {PQ1}"
    )
    assert client.rewrite(message) is message


def test_signatures_over_what_changed_go_and_so_does_ad(client: Client) -> None:
    kept = signature("www.example.net.", "CNAME")
    ns = ("example.net. 300 IN NS ns.example.net.", signature("example.net.", "NS"))
    proof = f"{PQ1} 300 IN NSEC zzz.example.net. A AAAA RRSIG NSEC"
    rewritten = client.rewrite(
        answer(
            "www.example.net. A",
            *(CHAIN, kept, ADDRESS, signature(PQ1, "A")),
            authority=(*ns, proof, signature(PQ1, "NSEC")),
            flags="QR RD RA AD CD",
        )
    )
    assert records(rewritten) == [CHAIN, kept, f"{PQ1} 5 IN A 10.43.0.2"]
    assert records(rewritten, "authority") == list(ns)
    assert dns.flags.to_text(parse(rewritten).flags) == "QR RD RA CD"


def test_additional_records(client: Client) -> None:
    mx = f"example.net. 300 IN MX 10 {PQ1}"
    other = "mail.example.net. 300 IN A 203.0.113.5"
    message = answer("example.net. MX", mx, additional=(ADDRESS, signature(PQ1, "A"), ADDRESS6, other))
    rewritten = client.rewrite(message)
    assert records(rewritten) == [mx]
    assert records(rewritten, "additional") == [f"{PQ1} 5 IN A 10.43.0.2", other]
    assert [found.sought for found in client.asked] == [False]


# -- no address ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("record", [[ADDRESS], []])
def test_no_private_address_is_servfail(edns: bool, record: list[str]) -> None:
    message = answer("www.example.net. A", CHAIN, *record, edns=edns, flags="QR AA RD RA AD")
    failed = Client(full=True).rewrite(message)
    assert rcode(failed) == "SERVFAIL"
    assert records(failed) == []
    after = parse(failed)
    assert (after.id, after.question, after.edns) == (4711, parse(message).question, 0 if edns else -1)
    assert dns.flags.to_text(after.flags) == "QR RD RA"


def test_no_private_address_for_an_additional_record_leaves_it_out() -> None:
    mx = f"example.net. 300 IN MX 10 {PQ1}"
    rewritten = Client(full=True).rewrite(answer("example.net. MX", mx, additional=(ADDRESS, ADDRESS6)))
    assert (rcode(rewritten), records(rewritten), records(rewritten, "additional")) == ("NOERROR", [mx], [])


# -- stacked resolvers -----------------------------------------------------------------------------------------------


def test_an_answer_that_was_rewritten_before_is_the_same_object(client: Client) -> None:
    for kind in ("A", "AAAA", "HTTPS", "ANY"):
        first = client.rewrite(
            answer(f"www.example.net. {kind}", CHAIN, ADDRESS, ADDRESS6, f"{PQ1} 9 IN HTTPS 1 . ipv4hint={REAL}")
        )
        assert client.rewrite(first) is first
    # Of the AAAA record nothing was left, so the second time it is a denial that says nothing.
    assert [(found.real4 is None, found.real6 is None) for found in client.asked] == [
        *[(False, False)] * 2,
        (True, True),
        *[(False, False)] * 2,
    ]


def test_a_private_address_beside_a_real_one_does_not_protect_it(client: Client) -> None:
    rewritten = client.rewrite(answer(f"{PQ1} A", f"{PQ1} 5 IN A 10.43.9.9", ADDRESS))
    assert records(rewritten) == [f"{PQ1} 5 IN A 10.43.0.2"]
    assert client.asked[0].real4 == [IPv4Address(REAL)]


# -- truncated, malformed, too much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS"])
def test_truncated_answers_stay_truncated_without_addresses(client: Client, kind: str) -> None:
    record = {"A": ADDRESS, "AAAA": ADDRESS6, "HTTPS": f"{PQ1} 9 IN HTTPS 1 . ipv4hint={REAL}"}[kind]
    rewritten = client.rewrite(answer(f"www.example.net. {kind}", CHAIN, record, flags="QR TC RD RA"))
    after = parse(rewritten)
    assert after.flags & dns.flags.TC
    assert rcode(rewritten) == "NOERROR"
    assert not leaks(rewritten)
    assert client.asked == []


def test_a_truncated_answer_without_addresses_is_the_same_object(client: Client) -> None:
    message = answer("www.example.net. A", CHAIN, flags="QR TC RD RA")
    assert client.rewrite(message) is message


REAL_ANSWERS = [
    answer("www.example.net. A", CHAIN, ADDRESS),
    answer("www.example.net. ANY", CHAIN, ADDRESS, signature(PQ1, "A"), ADDRESS6, edns=False),
    answer("www.example.net. HTTPS", CHAIN, f"{PQ1} 9 IN HTTPS 1 . alpn=h2 ipv4hint={REAL}", flags="QR RD RA AD"),
    answer("example.net. MX", f"example.net. 9 IN MX 1 {PQ1}", additional=(ADDRESS, ADDRESS6)),
    answer("www.example.net. A", CHAIN, ADDRESS, flags="QR TC RD RA"),
]


@pytest.mark.parametrize("message", REAL_ANSWERS)
def test_every_cut_of_an_answer_leaks_nothing(message: bytes) -> None:
    for size in range(len(message)):
        cut = message[:size]
        rewritten = Client().rewrite(cut)
        if rewritten is not cut:
            assert not leaks(rewritten)
            after = parse(rewritten)
            assert rcode(rewritten) == ("NOERROR" if after.flags & dns.flags.TC else "SERVFAIL")
            assert after.id == 4711
        else:
            assert not leaks(cut)


@pytest.mark.parametrize("message", REAL_ANSWERS)
def test_junk_behind_an_answer_does_not_hide_it(message: bytes) -> None:
    assert not leaks(Client().rewrite(message + b"junk"))


@given(
    st.sampled_from(REAL_ANSWERS), st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_damaged_answers_never_raise(message: bytes, damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(message)
    for position, value in damage:
        damaged[position % len(damaged)] = value
    rewritten = Client().rewrite(bytes(damaged))
    if rewritten != damaged:
        parse(rewritten)


@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from([b"\x37pq1", b"\x3fPQ1"]))
def test_random_bytes_around_a_label_never_raise(before: bytes, after: bytes, label: bytes) -> None:
    Client().rewrite(before + label + after)


def test_absurd_record_counts_fail_closed(client: Client) -> None:
    message = bytearray(answer(f"{PQ1} A", ADDRESS))
    struct.pack_into("!H", message, 6, 0xFFFF)
    assert rcode(client.rewrite(bytes(message))) == "SERVFAIL"
    many = answer(f"{PQ1} A", *(f"{PQ1} 9 IN A 10.{i >> 8}.{i & 255}.1" for i in range(MAX_RECORDS + 1)))
    assert rcode(client.rewrite(many)) == "SERVFAIL"
    assert client.asked == []


def test_one_answer_gets_a_bounded_number_of_private_addresses(client: Client) -> None:
    owners = [f"h{i}.{PQ1}" for i in range(MAX_NAMES + 3)]
    message = answer("a. MX", f"a. 9 IN MX 1 {PQ1}", additional=tuple(f"{owner} 9 IN A {REAL}" for owner in owners))
    rewritten = client.rewrite(message)
    assert len(client.asked) == MAX_NAMES
    assert len(records(rewritten, "additional")) == MAX_NAMES
    assert not leaks(rewritten)


hosts = st.sampled_from(["www.example.net.", PQ1, PQ1_PORTS, "host.example.org.", "ns.example.net."])
addresses = st.one_of(
    st.tuples(hosts, st.just("A"), st.sampled_from([REAL, "203.0.113.77", "10.43.0.9"])),
    st.tuples(hosts, st.just("AAAA"), st.sampled_from([REAL6, "fd43::9"])),
    st.tuples(hosts, st.just("CNAME"), hosts),
    st.tuples(hosts, st.just("HTTPS"), st.just(f"1 . ipv4hint={REAL}")),
    st.tuples(hosts, st.just("TXT"), st.just('"p=1"')),
)


questions = st.sampled_from(["A", "AAAA", "ANY", "HTTPS"])
denials = st.sampled_from([(), (SOA,), ("example.net. 300 IN NS ns.example.net.",)])


@given(st.lists(addresses, max_size=8), st.lists(addresses, max_size=4), questions, denials, st.booleans())
def test_rewriting_twice_is_rewriting_once(
    first: list[tuple[str, ...]], extra: list[tuple[str, ...]], kind: str, authority: tuple[str, ...], ipv6: bool
) -> None:
    def lines(parts: list[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(f"{owner} 300 IN {kind} {data}" for owner, kind, data in parts)

    message = answer(f"www.example.net. {kind}", *lines(first), authority=authority, additional=lines(extra))
    client = Client(ipv6=ipv6)
    once = client.rewrite(message)
    assert client.rewrite(once) is once
    for section in ("answer", "additional"):
        for rrset in getattr(parse(once), section):
            if rrset.name.to_text() in (PQ1, PQ1_PORTS):
                text = rrset.to_text()
                assert " HTTPS " not in text
                assert " AAAA " not in text or " AAAA fd43::" in text
                assert " A " not in text or " A 10.43." in text


@given(st.lists(addresses, max_size=8), questions, denials, st.sampled_from(["direct", "full", "ipv6"]))
def test_an_answer_says_what_the_client_says(
    parts: list[tuple[str, ...]], kind: str, authority: tuple[str, ...], mood: str
) -> None:
    lines = [f"{owner} 300 IN {rtype} {data}" for owner, rtype, data in parts]
    message = answer(f"{PQ1} {kind}", *lines, authority=authority)
    client = Client(**{mood: True})  # type: ignore[arg-type]
    rewritten = client.rewrite(message)
    assert parse(rewritten).question == parse(message).question
    assert len(client.asked) <= MAX_NAMES
    for found in client.asked:
        assert found.asked == PQ1[:-1]
        assert not any(client.own(address) for address in [*(found.real4 or ()), *(found.real6 or ())])
    own = [rrset.to_text() for rrset in parse(message).answer if rrset.name.to_text() == PQ1]
    if mood == "direct" and not any(" HTTPS " in line for line in own):
        assert [line for line in records(rewritten) if line.startswith(PQ1)] == own
