"""Which packet size a path takes, found out on a fake clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import pathmtu
from pqtun.daemon.pathmtu import PathMtu

TICK = 0.5


class Path:
    """A path that takes packets of so many bytes, and the probes that were sent on it."""

    def __init__(self, wanted: int, takes: int) -> None:
        self.now = 100.0
        self.takes = takes
        self.silent = False
        self.round_trip = 0.1
        self.mute = False  # nobody answers probes, of whatever size
        self.late: list[tuple[float, int]] = []
        self.mtu = PathMtu(wanted, self.now)
        self.sent: list[int] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            answered = None if self.silent or self.mute else self.now - self.round_trip
            for come in [come for come in self.late if come[0] <= self.now]:
                self.late.remove(come)
                self.mtu.answered(come[1], self.now)
            size = self.mtu.tick(self.now, answered)
            if size is not None:
                self.sent.append(size)
                if size <= self.takes and not (self.silent or self.mute):
                    self.late.append((self.now + self.round_trip, size))
            self.now += TICK


def test_a_good_path_is_asked_once_in_a_while() -> None:
    path = Path(1396, 1500)
    path.run(pathmtu.CHECK_SECONDS * 3 - 1)
    assert path.mtu.mtu == 1396
    assert path.sent == [1396] * 3


@pytest.mark.parametrize(("takes", "found"), [(1390, 1388), (1330, 1316), (1200, 1176), (600, 576), (100, 576)])
def test_a_path_that_drops_large_packets(takes: int, found: int) -> None:
    path = Path(1396, takes)
    path.run((len(pathmtu.STEPS) + 1) * (pathmtu.PROBES + 2) * pathmtu.PROBE_INTERVAL)
    assert path.mtu.mtu == found


def test_single_losses_do_not_lower_it() -> None:
    path = Path(1396, 100)
    path.run((pathmtu.PROBES - 1) * pathmtu.PROBE_INTERVAL)
    assert path.mtu.mtu == 1396
    path.takes = 1500
    path.run(1)
    assert path.mtu.mtu == 1396


def test_silence_says_nothing_about_the_size() -> None:
    path = Path(1396, 1500)
    path.silent = True
    path.run(60)
    assert path.mtu.mtu == 1396
    assert set(path.sent) == {1396}


def test_it_is_raised_again() -> None:
    """The smaller size stays in use until a larger one has passed."""
    path = Path(1396, 1200)
    path.run(60)
    assert path.mtu.mtu == 1176
    path.run(pathmtu.RAISE_SECONDS)  # in vain
    assert path.mtu.mtu == 1176
    path.takes = 1350
    path.run(pathmtu.RAISE_SECONDS + 60)
    assert path.mtu.mtu == 1316
    path.takes = 1500
    path.mtu.check(path.now)
    path.run(2 * TICK)
    assert path.mtu.mtu == 1396


@given(st.integers(576, 4040), st.lists(st.tuples(st.integers(0, 4100), st.floats(0, 2000)), max_size=5))
def test_ends_within_what_the_path_takes(wanted: int, course: list[tuple[int, float]]) -> None:
    """However the path changes: in the end the size is the largest step that passes, or the least of all."""
    path = Path(wanted, 5000)
    for takes, seconds in course:
        path.takes = takes
        path.run(seconds)
    path.run(pathmtu.RAISE_SECONDS + 120)
    sizes = [size for size in (wanted, *pathmtu.STEPS) if size <= wanted]
    assert path.mtu.mtu == max([size for size in sizes if size <= path.takes], default=min(sizes))


@pytest.mark.parametrize("round_trip", [0.7, 2.0, 2.6, 4.0, 8.0])
def test_late_answers_are_answers(round_trip: float) -> None:
    path = Path(1396, 1500)
    path.round_trip = round_trip
    for _ in range(4000):
        path.run(TICK)
        assert path.mtu.mtu == 1396
    path = Path(1396, 1200)
    path.round_trip = round_trip
    path.run(120)
    assert path.mtu.mtu == 1176


def test_a_peer_that_answers_no_probes_gets_few_and_whole_packets() -> None:
    path = Path(1200, 1500)
    path.mute = True
    path.run(3600)
    assert path.mtu.mtu == 1200
    assert len(path.sent) <= 3600 / pathmtu.CHECK_SECONDS * pathmtu.MAX_PROBES


@pytest.mark.parametrize("wanted", [-16, 0, 1, 575, 576])
def test_no_path_takes_less_than_the_least_step(wanted: int) -> None:
    path = Path(wanted, 1500)
    path.run(60)
    assert path.mtu.mtu == 576
