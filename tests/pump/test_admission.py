"""pqtun.pump.admission and budget: rates that cannot be exceeded, and a table that does not grow."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqtun.protocol.errors import MessageError
from pqtun.pump.admission import Admission
from pqtun.pump.budget import SendBudget, unconfirmed_prefixes
from pqtun.pump.engine import Datagram, HandshakeLimits
from pqtun.pump.limits import (
    EXPECTED_SECONDS,
    HINTS_PER_SECOND,
    UNCONFIRMED_BYTES,
    UNCONFIRMED_FACTOR,
    UNCONFIRMED_PREFIX_BYTES,
    UNCONFIRMED_PREFIX_RATE,
    UNCONFIRMED_RATE,
)
from pqtun.rates.buckets import KEY_BYTES, TokenBucket

HANDSHAKE = b"\1\0" + bytes(1297)
COOKIE = b"pqccookE" + bytes(136)
KEY = bytes(range(KEY_BYTES))
HOST = "192.0.2.1"


def admitted(admission: Admission, host: str, now: float, data: bytes = HANDSHAKE) -> str:
    """What becomes of a datagram: "expected", "other", or why it is dropped."""
    try:
        datagram = admission.admit(data, (host, 7), now)
    except MessageError as refused:
        return refused.reason
    assert datagram == Datagram(data, (host, 7), datagram.expected)
    return "expected" if datagram.expected else "other"


# -- token buckets


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 40)), max_size=60))
def test_no_bucket_gives_more_than_its_burst_and_its_rate(steps: list[tuple[float, float]]) -> None:
    bucket = TokenBucket(10.0, 30.0, 100.0)
    now, taken = 100.0, 0.0
    for pause, amount in steps:
        now += pause
        if bucket.take(now, amount):
            taken += amount
        assert taken <= 30.0 + 10.0 * (now - 100.0) + 1e-6


def test_what_is_too_much_takes_nothing() -> None:
    bucket = TokenBucket(1.0, 5.0, 0.0)
    assert not bucket.take(0.0, 5.5)
    assert bucket.take(0.0, 5.0)
    assert not bucket.take(0.9)
    assert bucket.take(1.0)
    assert not bucket.take(1.0)


@given(
    st.lists(
        st.tuples(st.sampled_from("sssrmw"), st.integers(0, 70_000), st.floats(0, 2)),
        max_size=120,
    )
)
def test_no_victim_gets_more_than_its_budget(steps: list[tuple[str, int, float]]) -> None:
    """However the peer moves: each place gets three times what came from there, and all together one budget."""
    budget, now = SendBudget(False, 0.0), 0.0
    prefixes = unconfirmed_prefixes(KEY, 0.0)
    received, sent, beyond = 0, 0, 0
    for step, size, pause in steps:
        if step == "s" and budget.take(size, HOST, prefixes, now):
            sent += size
        elif step == "r":
            budget.received(size)
            received += size
        elif step == "m":
            beyond += max(0, sent - UNCONFIRMED_FACTOR * received)
            budget.moved()
            received = sent = 0
        elif step == "w":
            now += pause
        assert sent - UNCONFIRMED_FACTOR * received + beyond <= UNCONFIRMED_BYTES + UNCONFIRMED_RATE * now + 1e-6


def test_a_confirmed_endpoint_earns_nothing_for_later() -> None:
    budget, prefixes = SendBudget(True, 0.0), unconfirmed_prefixes(KEY, 0.0)
    for _ in range(1000):
        budget.received(1400)
        assert budget.take(1400, HOST, prefixes, 0.0)
    budget.moved()
    sent = 0
    while budget.take(1000, HOST, prefixes, 0.0):
        sent += 1000
    assert UNCONFIRMED_BYTES - 1000 < sent <= UNCONFIRMED_BYTES
    budget.confirmed = True
    assert budget.take(1 << 30, HOST, prefixes, 0.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 39), st.sampled_from("sssssrm"), st.integers(1000, 300_000), st.floats(0, 0.2)),
        max_size=200,
    )
)
def test_no_network_gets_more_than_its_budget(steps: list[tuple[int, str, int, float]]) -> None:
    """However many tunnels there are, and wherever in it they move."""
    budgets, now = [SendBudget(False, 0.0) for _ in range(40)], 0.0
    prefixes = unconfirmed_prefixes(KEY, 0.0)
    sent = received = 0
    for number, step, size, pause in steps:
        now += pause
        if step == "s" and budgets[number].take(size, f"192.0.2.{number}", prefixes, now):
            sent += size
        elif step == "r":
            budgets[number].received(size)
            received += size
        elif step == "m":
            budgets[number].moved()
        most = UNCONFIRMED_PREFIX_BYTES + UNCONFIRMED_PREFIX_RATE * now + UNCONFIRMED_FACTOR * received
        assert sent <= most + 1e-6


def test_what_one_bound_refuses_is_not_taken_from_the_other() -> None:
    prefixes = unconfirmed_prefixes(KEY, 0.0)
    for _ in range(UNCONFIRMED_PREFIX_BYTES // UNCONFIRMED_BYTES):
        budget = SendBudget(False, 0.0)
        assert not budget.take(UNCONFIRMED_BYTES + 1, HOST, prefixes, 0.0)
        assert budget.take(UNCONFIRMED_BYTES, HOST, prefixes, 0.0)
    budget = SendBudget(False, 0.0)
    assert not budget.take(UNCONFIRMED_BYTES, HOST, prefixes, 0.0)
    assert budget.take(UNCONFIRMED_BYTES, "2001:db8::1", prefixes, 0.0)


# -- what is admitted


@given(st.binary(max_size=1400) | st.sampled_from([HANDSHAKE[:-1], COOKIE + b"x", b"\3\0\0", b"\3"]))
def test_nothing_else_is_admitted(data: bytes) -> None:
    for admission in (Admission(None, KEY, 0.0), Admission(HandshakeLimits(100, 100), KEY, 0.0)):
        if data != b"\3\0" and data[:2] != b"\1\0" and not data.startswith(b"pqccookE"):
            assert admitted(admission, "192.0.2.1", 0.0, data) == "datagram_unknown"


def test_a_client_and_a_server() -> None:
    client, server = Admission(None, KEY, 0.0), Admission(HandshakeLimits(100, 100), KEY, 0.0)
    for data in (HANDSHAKE, COOKIE):
        assert admitted(client, "192.0.2.1", 0.0, data) == "handshake_unwanted"
        assert admitted(server, "192.0.2.1", 0.0, data) == "other"
    assert admitted(client, "192.0.2.1", 0.0, b"\3\0") == "other"
    assert admitted(server, "192.0.2.1", 0.0, b"\3\0") == "hint_unwanted"


def test_hints_of_all_sources_have_one_rate() -> None:
    client = Admission(None, KEY, 0.0)
    got = Counter(admitted(client, f"192.0.{n}.1", n / 100, b"\3\0") for n in range(256))
    assert got["other"] == HINTS_PER_SECOND + int(2.55 * HINTS_PER_SECOND)


@pytest.mark.parametrize(
    ("host", "near", "far"),
    [
        ("192.0.2.1", "192.0.2.255", "192.0.3.1"),
        ("2001:db8:0:ff::1", "2001:db8:0:1:2:3:4:5", "2001:db8:0:100::1"),
        ("::1", "0:0:0:ff::", "0:0:1::1"),
    ],
)
def test_prefixes(host: str, near: str, far: str) -> None:
    admission = Admission(HandshakeLimits(1000, 4), KEY, 0.0)
    assert [admitted(admission, host, 0.0) for _ in range(8)] == ["other"] * 8
    assert admitted(admission, near, 0.0) == "handshake_prefix_limit"
    assert admitted(admission, far, 0.0) == "other"
    admission.expect(near, 0.0)
    assert admitted(admission, host, 0.25) == "expected"
    assert admitted(admission, far, 0.25) == "other"
    assert admitted(admission, host, EXPECTED_SECONDS) == "other"


def test_the_key_decides_who_shares_a_slot() -> None:
    """Who could choose a prefix that shares the slot of another could use up its rate."""
    hosts = [f"10.{n >> 8}.{n & 255}.1" for n in range(2000)]
    slots = []
    for key in (KEY, KEY[::-1]):
        admission = Admission(HandshakeLimits(100, 100), key, 0.0)
        slots.append([admission._prefixes.slot(host) for host in hosts])
        assert len(set(slots[-1])) > 1900  # 2000 of 2^16: 30 pairs or so share one
    assert sum(one == other for one, other in zip(*slots, strict=True)) < 10


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 0.05), st.booleans()), max_size=300))
def test_no_pattern_exceeds_the_rates(steps: list[tuple[int, float, bool]]) -> None:
    admission = Admission(HandshakeLimits(80, 5), KEY, 0.0)
    now = 0.0
    of_prefix: Counter[int] = Counter()
    of_kind: Counter[str] = Counter()
    for prefix, pause, expect in steps:
        now += pause
        if expect and prefix % 2:
            admission.expect(f"198.51.{prefix}.9", now)
        for host in range(3):
            got = admitted(admission, f"198.51.{prefix}.{host}", now)
            of_kind[got] += 1
            if got in ("expected", "other"):
                of_prefix[prefix] += 1
                assert got == "other" or prefix % 2
        assert of_prefix[prefix] <= 10 + 5 * now
        assert of_kind["expected"] <= 20 + 80 * now
        assert of_kind["other"] <= 5 + 20 * now
