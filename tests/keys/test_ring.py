import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.keys.ring import MAX_PAIRS, EphemeralRing, make_pair
from pqtun.protocol import primitives
from pqtun.protocol.constants import EPHEMERAL_LIFETIME, SNTRUP_PK_BYTES, SNTRUP_SK_BYTES

START = 1_800_000_000  # a multiple of 30


class Clocks:
    """Wall and boottime clock, and a count of the pairs made."""

    def __init__(self, wall=START, boot=77.5):
        self.wall, self.boot, self.made = float(wall), boot, 0

    def ring(self):
        return EphemeralRing(lambda: self.wall, lambda: self.boot, self.generate)

    def generate(self):
        self.made += 1
        mark = bytes([self.made % 256])
        return mark * SNTRUP_PK_BYTES, bytearray(mark * SNTRUP_SK_BYTES), mark * 32, bytearray(mark * 32)

    def pass_time(self, seconds):
        self.wall += seconds
        self.boot += seconds


def marks(ring):
    return [secret.x25519_sk[0] for secret in ring.acceptable()]


def test_real_pairs_work():
    ring = EphemeralRing(lambda: START, lambda: 0.0)
    public = ring.current()
    (secret,) = ring.acceptable()
    ciphertext, key = primitives.ekem_enc(public.sntrup_pk)
    assert primitives.ekem_dec(ciphertext, bytes(secret.sntrup_sk)) == key
    assert primitives.x25519_public(secret.x25519_sk) == public.x25519_pk
    assert make_pair() != make_pair()


def test_nothing_is_made_before_it_is_due():
    clocks = Clocks()
    ring = clocks.ring()
    assert clocks.made == 0
    assert ring.acceptable() == []
    clocks.pass_time(300)
    assert clocks.made == 0
    ring.current()
    assert clocks.made == 1


def test_pairs_change_on_multiples_of_30_seconds():
    clocks = Clocks(wall=START + 12)
    ring = clocks.ring()
    first = ring.current()
    clocks.pass_time(17.9)
    assert ring.current() is first
    clocks.pass_time(0.1)
    second = ring.current()
    assert second is not first
    clocks.pass_time(29.9)
    assert ring.current() is second
    clocks.pass_time(0.1)
    assert ring.current() is not second
    assert clocks.made == 3


def test_a_pair_lives_120_seconds_from_the_start_of_its_half_minute():
    clocks = Clocks(wall=START + 12)
    ring = clocks.ring()
    ring.current()
    clocks.pass_time(107.9)
    assert marks(ring) == [1]
    clocks.pass_time(0.1)
    assert marks(ring) == []


def test_steady_service_accepts_the_last_four_or_five_newest_first():
    clocks = Clocks()
    ring = clocks.ring()
    for _ in range(200):
        ring.current()
        clocks.pass_time(7)
        assert marks(ring) == sorted(marks(ring), reverse=True)
        assert len(marks(ring)) <= 4
    assert len(marks(ring)) == 4


def test_secrets_are_overwritten():
    clocks = Clocks()
    ring = clocks.ring()
    ring.current()
    (secret,) = ring.acceptable()
    assert any(secret.sntrup_sk)
    clocks.pass_time(EPHEMERAL_LIFETIME)
    ring.expire()
    assert not any(secret.sntrup_sk)
    assert not any(secret.x25519_sk)
    ring.current()
    (secret,) = ring.acceptable()
    ring.erase()
    assert not any(secret.sntrup_sk)
    assert ring.acceptable() == []


@pytest.mark.parametrize("step", [-86400, -3600, -31, -29, -1])
def test_wall_clock_set_back(step):
    clocks = Clocks(wall=START + 10)
    ring = clocks.ring()
    first = ring.current()
    clocks.wall += step
    assert ring.current() is first  # it lives, and is handed out for its half minute
    clocks.pass_time(30)
    later = ring.current()
    clocks.pass_time(1)
    assert ring.current() is not first
    clocks.pass_time(EPHEMERAL_LIFETIME - 41)
    assert 1 not in marks(ring)
    assert ring.current() is not None
    assert later is not None


@pytest.mark.parametrize("step", [1, 20, 31, 3600, 10**9])
def test_wall_clock_set_forward(step):
    clocks = Clocks(wall=START + 10)
    ring = clocks.ring()
    ring.current()
    clocks.wall += step
    ring.current()
    # What was handed out a moment ago stays good for as long as before.
    assert 1 in marks(ring)
    clocks.pass_time(109.9)
    assert 1 in marks(ring)
    clocks.pass_time(0.1)
    assert 1 not in marks(ring)


def test_sleep_counts():
    clocks = Clocks()
    ring = clocks.ring()
    first = ring.current()
    clocks.pass_time(8 * 3600)
    assert ring.acceptable() == []
    assert ring.current() is not first


def test_a_slewed_clock_makes_no_extra_pair():
    clocks = Clocks()
    ring = clocks.ring()
    for _ in range(4000):
        ring.current()
        clocks.wall += 0.1
        clocks.boot += 0.1 * 1.0005
    assert clocks.made == 14


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-200, 200)), max_size=60))
def test_no_clock_breaks_the_ring(steps):
    clocks = Clocks()
    ring = clocks.ring()
    handed_out = {}
    for passed, jump in steps:
        clocks.pass_time(passed)
        clocks.wall += jump
        public = ring.current()
        handed_out.setdefault(public.x25519_pk, clocks.boot)
        # There is always a current pair, and its secret is accepted.
        assert public.x25519_pk[0] == marks(ring)[0]
        assert len(marks(ring)) <= MAX_PAIRS
        # None is handed out for longer than its half minute nor accepted for longer than 120 s.
        assert clocks.boot - handed_out[public.x25519_pk] <= 31
        for mark in marks(ring):
            assert clocks.boot - handed_out[bytes([mark]) * 32] < EPHEMERAL_LIFETIME


def test_a_mad_wall_clock_does_not_fill_the_memory():
    clocks = Clocks()
    ring = clocks.ring()
    for jump in itertools.islice(itertools.count(1), 50):
        clocks.wall = START + jump * 1000
        ring.current()
    assert len(ring.acceptable()) == MAX_PAIRS
    assert marks(ring)[0] == 50
