"""What a bad path does to packets, with a clock of the test's own."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.impairment import Conditions, Direction

SHARES = st.sampled_from([0.0, 0.01, 0.3, 1.0])
CONDITIONS = st.builds(
    Conditions,
    delay=st.sampled_from([0.0, 0.1]),
    loss=SHARES,
    burst=st.integers(0, 5),
    burst_every=st.integers(0, 5),
    burst_for=st.sampled_from([0.0, 0.5]),
    reorder=SHARES,
    reorder_by=st.sampled_from([0.003, 1.0]),
    duplicate=SHARES,
    corrupt=SHARES,
    rate=st.sampled_from([0.0, 1e4, 1e6]),
    queue=st.sampled_from([0.0, 0.2]),
    largest=st.sampled_from([0, 60]),
    cut=st.booleans(),
)
PACKETS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 100)), max_size=60)
VANISHED = ("cut", "too_large", "burst", "lost", "queue")
FOREVER = 1e9


def packet(number: int, size: int = 100) -> bytes:
    """An IPv4 header's first byte, a number, zeros."""
    return b"\x45" + number.to_bytes(4, "big") + bytes(size - 5)


def number_of(data: bytes) -> int:
    return int.from_bytes(data[1:5], "big")


def send(direction: Direction, count: int, now: float = 0.0) -> list[int]:
    """The numbers of those of `count` packets, sent at once, that arrive ever."""
    for number in range(count):
        direction.enter(packet(number), now)
    return [number_of(data) for data in direction.arrived(FOREVER)]


@given(CONDITIONS, PACKETS)
def test_every_packet_is_accounted_for(conditions: Conditions, packets: list[tuple[float, int]]) -> None:
    path = Direction(conditions, 1)
    now = 0.0
    sizes = Counter[int]()
    got: list[bytes] = []
    for number, (pause, size) in enumerate(packets):
        now += pause
        path.enter(packet(number)[:size], now)
        sizes[size] += 1
        early = path.arrived(now)
        got += early
        assert path.next_arrival is None or path.next_arrival > now
        assert not (early and conditions.delay > 1)
    got += path.arrived(FOREVER)
    count = path.counters
    assert count["entered"] == len(packets)
    assert count["delivered"] == len(got) == len(packets) - sum(count[why] for why in VANISHED) + count["duplicated"]
    assert count["bytes"] == sum(map(len, got))
    assert path.next_arrival is None
    arrived = Counter(map(len, got))
    assert all(arrived[size] <= 2 * sizes[size] for size in arrived)  # nothing is cut or made up


@given(CONDITIONS, PACKETS, st.integers())
def test_the_same_seed_is_the_same_fate(conditions: Conditions, packets: list[tuple[float, int]], seed: int) -> None:
    def course() -> list[bytes]:
        path, now = Direction(conditions, seed), 0.0
        for number, (pause, _) in enumerate(packets):
            now += pause
            path.enter(packet(number), now)
        return path.arrived(FOREVER)

    assert course() == course()


@given(st.integers(0, 60))
def test_a_good_path_changes_nothing(count: int) -> None:
    path = Direction(Conditions(), 1)
    assert send(path, count) == list(range(count))


def test_seeds_differ() -> None:
    assert send(Direction(Conditions(loss=0.5), 1), 100) != send(Direction(Conditions(loss=0.5), 2), 100)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_shares_are_met(share: float) -> None:
    path = Direction(Conditions(loss=share, duplicate=share, reorder=share, corrupt=share), 1)
    count = 20_000
    send(path, count)
    carried = count - path.counters["lost"]
    assert path.counters["lost"] == pytest.approx(share * count, rel=0.15)
    for what in ("duplicated", "reordered", "corrupted"):
        assert path.counters[what] == pytest.approx(share * carried, rel=0.15)


def test_delay_to_the_microsecond() -> None:
    path = Direction(Conditions(delay=0.1), 1)
    path.enter(packet(0), 5.0)
    assert path.next_arrival == 5.1
    assert path.arrived(5.099999) == []
    assert len(path.arrived(5.1)) == 1


def test_a_packet_that_is_held_back_is_overtaken() -> None:
    path = Direction(Conditions(reorder=1, reorder_by=0.003), 1)
    path.enter(packet(0), 0.0)
    path.conditions = Conditions()
    path.enter(packet(1), 0.002)
    path.enter(packet(2), 0.004)
    assert [number_of(data) for data in path.arrived(1)] == [1, 0, 2]


def test_rate_and_queue() -> None:
    # 100 bytes at 8000 bit/s take 0.1 s; two wait at most 0.25 s, so three of ten pass, the fourth would wait 0.3 s.
    path = Direction(Conditions(rate=8000, queue=0.25, delay=1), 1)
    for number in range(10):
        path.enter(packet(number), 0.0)
    assert [number_of(data) for data in path.arrived(1.1001)] == [0]
    assert [number_of(data) for data in path.arrived(FOREVER)] == [1, 2]
    assert path.counters["queue"] == 7
    path.enter(packet(10), 50.0)  # idle time is not saved up
    path.enter(packet(11), 50.0)
    assert len(path.arrived(51.1001)) == 1


def test_one_bit_is_flipped_behind_the_header() -> None:
    for head, first in ((b"\x45", 20), (b"\x60", 40)):
        path = Direction(Conditions(corrupt=1), 1)
        before = head + bytes(99)
        for _ in range(200):
            path.enter(before, 0.0)
        places = set()
        for after in path.arrived(0.0):
            changed = [at for at in range(100) if before[at] != after[at]]
            assert len(changed) == 1
            assert (before[changed[0]] ^ after[changed[0]]).bit_count() == 1
            places.add(changed[0])
        assert min(places) >= first
        assert len(places) > 30


def test_bursts() -> None:
    path = Direction(Conditions(burst=3, burst_every=5), 1)
    assert send(path, 16) == [0, 1, 2, 3, 4, 8, 9, 10, 11, 12]
    slow = Direction(Conditions(burst=500, burst_every=1, burst_for=0.5), 1)
    for number in range(20):
        slow.enter(packet(number), number / 10)
    assert [number_of(data) for data in slow.arrived(FOREVER)] == [0, 7, 14]  # six of them in 0.5 s
    ordered = Direction(Conditions(), 1)
    ordered.lose_next(500)
    assert send(ordered, 600) == list(range(500, 600))
    assert ordered.counters["burst"] == 500


def test_a_black_hole_for_large_packets() -> None:
    path = Direction(Conditions(largest=1280), 1)
    for size in (1279, 1280, 1281, 1500):
        path.enter(packet(size, size), 0.0)
    assert [number_of(data) for data in path.arrived(0.0)] == [1279, 1280]


def test_a_cut_path_is_as_good_as_new_afterwards() -> None:
    path = Direction(Conditions(cut=True), 1)
    assert send(path, 5) == []
    path.conditions = dataclasses.replace(path.conditions, cut=False)
    assert send(path, 5) == list(range(5))


@pytest.mark.parametrize("wrong", [{"loss": 1.1}, {"corrupt": -0.1}, {"delay": -1.0}, {"burst": -1}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Conditions(**wrong)  # type: ignore[arg-type]
