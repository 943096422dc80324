from __future__ import annotations

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.dns.question import empty_answer, is_answer, is_transfer, question_section, record_count, same_question
from tests.dns.messages import answer, parse, rcode

QUERY = dns.message.make_query("www.example.net.", "HTTPS", id=4711).to_wire()
ASKED = b"\3www\7example\3net\0\0\x41\0\1"
ANSWER = answer("www.example.net. HTTPS", "www.example.net. 60 IN HTTPS 0 b.example.")


def test_the_question_of_every_cut() -> None:
    for size in range(len(QUERY)):
        cut = question_section(QUERY[:size])
        assert cut == (ASKED if size >= 12 + len(ASKED) else None)
    assert question_section(QUERY) == ASKED


def test_odd_questions() -> None:
    header = bytes(4)
    assert question_section(header + b"\0\0" + bytes(6)) == b""
    assert question_section(header + b"\0\2" + bytes(6) + ASKED + ASKED) is None
    assert question_section(header + b"\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1") is None
    longest = b"\x3f" + b"a" * 63
    fits = longest * 3 + b"\x3d" + b"b" * 61 + b"\0"
    assert len(fits) == 255
    assert question_section(header + b"\0\1" + bytes(6) + fits + b"\0\1\0\1") == fits + b"\0\1\0\1"
    assert question_section(header + b"\0\1" + bytes(6) + longest * 4 + b"\0\0\1\0\1") is None


def test_the_same_question_in_any_case_but_not_another_type() -> None:
    assert same_question(ASKED, ASKED.replace(b"www", b"wWw"))
    assert not same_question(ASKED, ASKED.replace(b"www", b"wwx"))
    assert not same_question(ASKED, ASKED.replace(b"\0\x41\0\1", b"\0\x61\0\1"))  # the letters A and a


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        (lambda m: m, True),
        (lambda m: m.replace(b"www", b"WWW"), True),
        (lambda m: b"\0\0" + m[2:], False),
        (lambda m: m[:2] + bytes((m[2] & 0x7F,)) + m[3:], False),
        (lambda m: m.replace(b"www", b"xxx", 1), False),
        (lambda m: m[:11], False),
        (lambda m: m[:2] + b"\x80\x05" + bytes(8), True),  # REFUSED without a question
        (lambda m: m[:2] + b"\x80\x00" + bytes(8), False),  # NOERROR without a question
        (lambda m: m[:2] + b"\x80\x05\0\0\0\1\0\0\0\0" + m[12:], False),
    ],
)
def test_answers(change, accepted: bool) -> None:
    assert is_answer(QUERY, ASKED, change(ANSWER)) is accepted


def test_transfers() -> None:
    for kind, expected in (("AXFR", True), ("IXFR", True), ("A", False), ("ANY", False)):
        query = dns.message.make_query("example.net.", kind).to_wire()
        assert is_transfer(question_section(query) or b"") is expected
    assert not is_transfer(b"")


def test_an_empty_answer_to_a_query_and_in_place_of_an_answer() -> None:
    for message in (QUERY, ANSWER):
        failed = empty_answer(message)
        after = parse(failed)
        assert (after.id, rcode(failed), record_count(failed)) == (4711, "SERVFAIL", 0)
        assert is_answer(QUERY, ASKED, failed)
    truncated = answer("www.example.net. A", flags="QR TC RD RA")
    assert empty_answer(truncated)[2:4] == b"\x83\x80"  # still truncated, no error


@given(st.binary(max_size=400))
def test_random_bytes_never_raise(data: bytes) -> None:
    question_section(data)
    is_answer(QUERY, ASKED, data)
    if len(data) >= 12:
        assert parse(empty_answer(data)).id == int.from_bytes(data[:2], "big")
