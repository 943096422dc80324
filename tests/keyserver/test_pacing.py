import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pqtun.keyserver import limits
from pqtun.keyserver.flight import Flight
from pqtun.keyserver.pacing import Pacer, RoundTrip


def test_round_trip_follows_rfc_6298():
    trip = RoundTrip()
    assert not trip.known
    assert trip.timeout(0) == 1.0
    trip.sample(0.2)
    assert (trip.smoothed, trip.variation, trip.minimum) == (0.2, 0.1, 0.2)
    assert trip.timeout(0) == pytest.approx(0.6)
    trip.sample(0.4)
    assert trip.variation == pytest.approx(0.75 * 0.1 + 0.25 * 0.2)
    assert trip.smoothed == pytest.approx(0.875 * 0.2 + 0.125 * 0.4)
    assert (trip.minimum, trip.latest) == (0.2, 0.4)


def test_timeout_doubles_between_its_bounds():
    trip = RoundTrip()
    trip.sample(0.0001)
    for _ in range(100):
        trip.sample(0.0001)
    assert trip.timeout(0) == limits.MIN_TIMEOUT
    assert trip.timeout(3) == 8 * limits.MIN_TIMEOUT
    assert trip.timeout(1000) == limits.MAX_TIMEOUT


def test_first_flight_is_the_initial_window():
    pacer = Pacer(0.0)
    assert pacer.allowance(0, 0.0) == limits.INITIAL_WINDOW
    assert pacer.allowance(limits.INITIAL_WINDOW, 5.0) == 0
    assert pacer.next_send(limits.INITIAL_WINDOW) is None


def round_of(pacer, count, now, rtt):
    """`count` datagrams sent at `now` and answered after `rtt`."""
    snapshots = [pacer.sent(number, False, now) for number in range(count)]
    for number, snapshot in enumerate(snapshots):
        pacer.measured(rtt)
        pacer.answered(snapshot, count - number - 1, now + rtt)
    return now + rtt


def test_window_doubles_while_the_rate_does():
    pacer, now = Pacer(0.0), 0.0
    for _ in range(4):
        before = pacer.window
        now = round_of(pacer, int(before), now, 0.1)
        # Less than twice where all answers come at once: the first ones promise little.
        assert 1.4 * before < pacer.window <= 2 * before
        assert pacer.in_startup
    for _ in range(5):
        now = round_of(pacer, int(pacer.window), now, 0.1)
    assert pacer.window <= limits.MAX_WINDOW


def test_startup_ends_when_the_rate_stays():
    pacer, now = Pacer(0.0), 0.0
    for _ in range(limits.FULL_PIPE_ROUNDS + 2):
        now = round_of(pacer, 20, now, 0.1)
    assert not pacer.in_startup
    assert pacer.rate == pytest.approx(200, rel=0.01)
    assert pacer.window <= limits.WINDOW_GAIN * 200 * (0.1 + limits.JITTER_DEVIATIONS * pacer.round_trip.variation)


def test_startup_ends_at_once_when_a_queue_grows():
    pacer, now = Pacer(0.0), 0.0
    now = round_of(pacer, 16, now, 0.1)
    round_of(pacer, 16, now, 0.2)
    round_of(pacer, 16, now + 0.2, 0.2)
    assert not pacer.in_startup


def test_an_old_rate_is_forgotten():
    pacer, now = Pacer(0.0), 0.0
    now = round_of(pacer, 100, now, 0.1)
    assert pacer.rate == pytest.approx(1000)
    for _ in range(limits.RATE_ROUNDS + 2):
        now = round_of(pacer, 5, now, 0.1)
    assert pacer.rate == pytest.approx(50, rel=0.01)


def test_less_to_send_than_allowed_says_nothing_about_the_path():
    pacer = Pacer(0.0)
    now = round_of(pacer, 100, 0.0, 0.1)
    for _ in range(limits.RATE_ROUNDS * 2):
        snapshot = pacer.sent(0, True, now)
        now += 0.1
        pacer.answered(snapshot, 0, now)
    assert pacer.rate == pytest.approx(1000)


def test_pacing_spreads_what_the_window_allows():
    pacer = Pacer(0.0)
    now = round_of(pacer, 16, 0.0, 0.1)  # 160/s, in startup 462/s
    sent, started = 0, now
    while sent < 16:
        allowed = pacer.allowance(sent, now)
        assert allowed <= limits.PACING_BURST_MIN
        for _ in range(allowed):
            pacer.sent(sent, False, now)
            sent += 1
        following = pacer.next_send(sent)
        assert following is not None
        assert following > now
        now = following
    assert now - started == pytest.approx(15 / (160 * limits.STARTUP_GAIN), rel=0.2)


def test_congestion_shuts_the_window():
    pacer = Pacer(0.0)
    now = round_of(pacer, 100, 0.0, 0.1)
    pacer.congested(now)
    assert pacer.window == limits.MIN_WINDOW
    assert pacer.in_startup
    assert pacer.allowance(0, now) == limits.MIN_WINDOW


@given(st.lists(st.tuples(st.sampled_from("sac"), st.floats(0, 0.5)), max_size=200))
@example([("s", 0.0), ("s", 1e-308), ("a", 0.0)])  # a rate beyond all numbers
def test_the_window_keeps_its_bounds(steps):
    pacer, now, open_ = Pacer(0.0), 0.0, []
    for kind, pause in steps:
        now += pause
        allowed = pacer.allowance(len(open_), now)
        assert 0 <= allowed <= limits.MAX_WINDOW
        if kind == "s":
            for _ in range(allowed):
                open_.append(pacer.sent(len(open_), False, now))
        elif kind == "a" and open_:
            snapshot = open_.pop(0)
            pacer.measured(now - snapshot.sent_at)
            pacer.answered(snapshot, len(open_), now)
        elif kind == "c":
            pacer.congested(now)
            open_.clear()
        assert limits.MIN_WINDOW <= pacer.window <= limits.MAX_WINDOW
        assert pacer.rate >= 0
        following = pacer.next_send(len(open_))
        assert (following is None) == (len(open_) >= int(pacer.window))
        if following is not None and following > now:
            assert pacer.allowance(len(open_), following) >= 1


def flight_of(count, now=0.0):
    flight = Flight(Pacer(now))
    for position in range(count):
        flight.sent((3, position), False, now + position * 0.001)
    return flight


def test_three_later_answers_make_a_loss():
    flight = flight_of(10)
    flight.answered((3, 1), 0.1)
    flight.answered((3, 2), 0.1)
    assert flight.lost(0.1) == []
    flight.answered((3, 3), 0.1)
    assert flight.lost(0.1) == [(3, 0)]
    assert len(flight) == 6


def test_time_makes_a_loss_as_well():
    flight = flight_of(3)
    flight.answered((3, 2), 0.102)
    assert flight.lost(0.102) == []
    timer = flight.next_timer()
    assert timer is not None
    assert 0.1 < timer < 0.35
    assert flight.lost(timer) == [(3, 0)]
    timer = flight.next_timer()
    assert timer is not None
    assert flight.lost(timer) == [(3, 1)]
    assert flight.next_timer() is None


def test_reordering_that_was_taken_for_loss_raises_the_threshold():
    flight = flight_of(40)
    for position in (1, 2, 3):
        flight.answered((3, position), 0.1)
    assert flight.lost(0.1) == [(3, 0)]
    flight.answered((3, 0), 0.101)  # it was only late
    for position in (5, 6, 7, 8):
        flight.answered((3, position), 0.102)
    assert flight.lost(0.102) == []
    flight.answered((3, 10), 0.102)
    assert flight.lost(0.102) == [(3, 4)]


def test_no_round_trip_is_taken_from_a_repeated_request():
    pacer = Pacer(0.0)
    flight = Flight(pacer)
    flight.sent((1, 0), False, 0.0)
    flight.sent((1, 0), False, 1.0)
    flight.answered((1, 0), 1.5)
    assert not pacer.round_trip.known
    assert len(flight) == 0


def test_an_answer_too_early_for_the_repetition_belongs_to_the_first_request():
    pacer = Pacer(0.0)
    flight = Flight(pacer)
    flight.sent((1, 0), False, 0.0)
    flight.answered((1, 0), 0.1)
    for position in range(8):
        flight.sent((2, position), False, 0.2)
    flight.sent((2, 0), False, 0.3)
    flight.answered((2, 0), 0.31)  # the round trip is 0.1: nothing is said about the repetition
    assert flight.lost(0.31) == []


def test_probe_timeout_repeats_the_oldest_and_backs_off():
    flight = flight_of(10, 0.0)
    assert flight.probes(1.0) == ([], [])
    timer = flight.next_timer()
    assert timer == pytest.approx(1.009)
    assert flight.probes(timer) == ([(3, 0), (3, 1)], [])
    assert flight.next_timer() == pytest.approx(timer + 2.0)
    assert len(flight) == 10


def test_three_probe_timeouts_shut_the_window():
    pacer = Pacer(0.0)
    flight = Flight(pacer)
    for position in range(10):
        flight.sent((3, position), False, 0.0)
    given_up = []
    for _ in range(limits.PERSISTENT_TIMEOUTS):
        timer = flight.next_timer()
        assert timer is not None
        probes, lost = flight.probes(timer)
        given_up += lost
        for node in probes:
            flight.sent(node, True, timer)
    assert len(given_up) == 8
    assert len(flight) == 2
    assert pacer.window == limits.MIN_WINDOW
