"""pqtun.pump.early: the stash that anybody can write into stays small."""

from hypothesis import given
from hypothesis import strategies as st

from pqtun.pump.early import EarlyPackets
from pqtun.pump.limits import EARLY_BYTES, EARLY_PACKETS, EARLY_PACKETS_PER_TUNNEL, EARLY_SECONDS

HOME = ("192.0.2.1", 42423)


def tid(n: int) -> bytes:
    return n.to_bytes(32, "big")


def test_order_and_source() -> None:
    early = EarlyPackets()
    assert early.take(tid(1)) == []
    assert early.add(tid(1), b"a", HOME, 0.0) == 0
    assert early.add(tid(2), b"b", HOME, 0.1) == 0
    assert early.add(tid(1), b"c", ("192.0.2.2", 1), 0.2) == 0
    assert len(early) == 3
    assert early.take(tid(1)) == [(b"a", HOME), (b"c", ("192.0.2.2", 1))]
    assert early.take(tid(1)) == []
    assert early.next_deadline() == 0.1 + EARLY_SECONDS
    assert len(early) == 1


def test_one_tunnel_cannot_fill_it() -> None:
    early = EarlyPackets()
    for _ in range(EARLY_PACKETS_PER_TUNNEL):
        assert early.add(tid(1), b"x", HOME, 0.0) == 0
    assert early.add(tid(1), b"x", HOME, 0.0) == 1
    assert early.add(tid(2), b"x", HOME, 0.0) == 0
    assert len(early) == EARLY_PACKETS_PER_TUNNEL + 1


def test_a_flood_pushes_out_the_oldest() -> None:
    early = EarlyPackets()
    for n in range(EARLY_PACKETS):
        assert early.add(tid(n), b"x", HOME, 0.0) == 0
    assert early.add(tid(EARLY_PACKETS), b"x", HOME, 0.0) == 1
    assert len(early) == EARLY_PACKETS
    assert early.take(tid(0)) == []
    assert early.take(tid(1)) != []
    assert early.take(tid(EARLY_PACKETS)) != []


def test_bound_of_bytes() -> None:
    early = EarlyPackets()
    assert early.add(tid(0), bytes(EARLY_BYTES + 1), HOME, 0.0) == 1
    assert len(early) == 0
    for n in range(4):
        assert early.add(tid(n), bytes(EARLY_BYTES // 4), HOME, 0.0) == 0
    assert early.add(tid(4), bytes(EARLY_BYTES // 2), HOME, 0.0) == 2
    assert len(early) == 3


def test_expiry() -> None:
    early = EarlyPackets()
    assert early.next_deadline() is None
    early.add(tid(1), b"a", HOME, 0.0)
    early.add(tid(2), b"b", HOME, 0.5)
    assert early.expire(EARLY_SECONDS - 0.01) == 0
    assert early.expire(EARLY_SECONDS) == 1
    assert early.take(tid(1)) == []
    assert early.expire(9.0) == 1
    assert early.next_deadline() is None


@given(st.lists(st.tuples(st.sampled_from("aate"), st.integers(0, 5), st.integers(0, 40000)), max_size=150))
def test_bounds_hold_and_nothing_drifts(steps: list[tuple[str, int, int]]) -> None:
    early, now, accepted, gone = EarlyPackets(), 0.0, 0, 0
    for step, n, size in steps:
        now += 0.01
        if step == "a":
            accepted += 1
            gone += early.add(tid(n), bytes(size), HOME, now)
        elif step == "t":
            gone += len(early.take(tid(n)))
        else:
            gone += early.expire(now)
        assert len(early) == accepted - gone <= EARLY_PACKETS
    rest = [datagram for n in range(6) for datagram, _ in early.take(tid(n))]
    assert len(rest) == accepted - gone
    assert sum(map(len, rest)) <= EARLY_BYTES
    # Whatever happened before, the whole room is free again.
    assert early.add(tid(9), bytes(EARLY_BYTES), HOME, now) == 0
