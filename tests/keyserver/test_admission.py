import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.keyserver.admission import Admission
from pqtun.keyserver.limits import (
    EPHEMERAL_BURST,
    EPHEMERAL_RATE,
    PREFIX_BURST,
    PREFIX_RATE,
    STATIC_BURST,
    STATIC_RATE,
)
from pqtun.protocol.keytree import NODES
from pqtun.rates.buckets import source_prefix


def admitted(admission, hosts, now, *, ephemeral=False, tries=40_000):
    """How many requests of so many hosts in turn are answered at one moment, and why no more."""
    for number in range(tries):
        refusal = admission.refusal(hosts[number % len(hosts)], ephemeral=ephemeral, now=now)
        if refusal is not None:
            return number, refusal
    return tries, None


@pytest.mark.parametrize(
    ("hosts", "same"),
    [
        (("192.0.2.1", "192.0.2.254"), True),
        (("192.0.2.1", "192.0.3.1"), False),
        (("2001:db8::1", "2001:db8:0:ff::1"), True),
        (("2001:db8::1", "2001:db8:0:100::1"), False),
        (("192.0.2.1", "c000:201::1"), False),
    ],
)
def test_prefixes(hosts, same):
    one, other = map(source_prefix, hosts)
    assert (one == other) == same


def test_several_downloads_at_once_then_as_many_as_the_rate():
    admission = Admission()
    assert 8 * (len(NODES) + 1) <= PREFIX_BURST
    assert admitted(admission, ["192.0.2.1", "192.0.2.2"], 1000.0) == (PREFIX_BURST, "prefix_limit")
    assert admitted(admission, ["192.0.2.3"], 1001.0) == (PREFIX_RATE, "prefix_limit")
    assert admitted(admission, ["192.0.3.1"], 1001.0) == (PREFIX_BURST, "prefix_limit")
    assert admitted(admission, ["192.0.2.1"], 1e6) == (PREFIX_BURST, "prefix_limit")


def test_all_together_and_ephemeral_keys_apart():
    admission = Admission()
    many = [f"10.{number >> 8}.{number & 255}.1" for number in range(20_000)]
    assert admitted(admission, many, 1000.0) == (STATIC_BURST, "limit")
    assert admitted(admission, many, 1000.0, ephemeral=True) == (EPHEMERAL_BURST, "limit")
    assert admitted(admission, many, 1001.0) == (STATIC_RATE, "limit")
    assert admitted(admission, many, 1001.0, ephemeral=True) == (EPHEMERAL_RATE, "limit")


def test_a_greedy_prefix_takes_nothing_of_the_others():
    admission = Admission()
    for _ in range(100_000):
        admission.refusal("192.0.2.1", ephemeral=True, now=1000.0)
    assert admission.refusal("198.51.100.1", ephemeral=False, now=1000.0) is None
    assert admission.refusal("198.51.100.1", ephemeral=True, now=1001.0) is None


@pytest.mark.parametrize(("per_prefix", "burst"), [(100, PREFIX_BURST // 15), (1000, PREFIX_BURST // 1.5), (1e6, 4000)])
def test_a_prefix_gets_ephemeral_keys_for_twice_its_handshakes(per_prefix, burst):
    """Else two of them could take all that there are, and nobody else begin a tunnel."""
    admission = Admission(2 * per_prefix)
    given, _ = admitted(admission, ["192.0.2.1"], 1000.0, ephemeral=True)
    assert given == min(burst, EPHEMERAL_BURST)
    admitted(admission, ["192.0.2.1"], 1000.0)  # nothing is left of the burst
    given, _ = admitted(admission, ["192.0.2.1"], 1001.0, ephemeral=True)
    assert given == pytest.approx(min(2 * per_prefix, PREFIX_RATE), abs=1)


def test_prefixes_share_a_fixed_table():
    admission = Admission(slots=1)
    assert admitted(admission, ["192.0.2.1"], 1000.0) == (PREFIX_BURST, "prefix_limit")
    assert admission.refusal("198.51.100.1", ephemeral=False, now=1000.0) == "prefix_limit"


def test_nobody_knows_who_shares_with_whom():
    """The hash has a key of its own each time: what collides in one table does not in the next."""

    def sharer(admission):
        while admission.refusal("192.0.2.1", ephemeral=False, now=1000.0) is None:
            pass
        return [n for n in range(256) if admission.refusal(f"10.0.{n}.1", ephemeral=False, now=1000.0) is not None]

    assert len({tuple(sharer(Admission(slots=16))) for _ in range(4)}) > 1


@given(st.ip_addresses())
def test_any_address(address):
    assert Admission(slots=4).refusal(str(address), ephemeral=False, now=0.0) is None
