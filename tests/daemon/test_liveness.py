"""When a tunnel's peer is asked whether it is there, and when it is given up, on a fake clock."""

from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import liveness
from pqtun.daemon.liveness import Liveness, Verdict

TICK = 0.5


class World:
    """A tunnel whose peer answers pings, or not."""

    def __init__(self, *, patient: bool = False) -> None:
        self.now = 1000.0
        self.liveness = Liveness(self.now, patient=patient)
        self.sent: float | None = self.now
        self.received: float | None = self.now
        self.used = True
        self.answering = True
        self.pings: list[float] = []
        self.lost: float | None = None

    def run(self, seconds: float, sending: float | None = None) -> None:
        """Let time pass; every ``sending`` seconds a program sends something that the peer does not answer."""
        end = self.now + seconds
        due = self.now
        while self.now < end and self.lost is None:
            if sending is not None and self.now >= due:
                self.sent = self.now
                due += sending
            verdict = self.liveness.tick(self.now, last_sent=self.sent, last_received=self.received, used=self.used)
            if verdict is Verdict.PING:
                self.pings.append(self.now)
                self.sent = self.now + 0.001
                if self.answering:
                    self.received = self.now + 0.02
            elif verdict is Verdict.LOST:
                self.lost = self.now
            self.now += TICK


def test_nothing_is_sent_while_nothing_uses_the_peer() -> None:
    world = World()
    world.used = False
    world.run(3600)
    assert world.pings == []


def test_both_directions_move_at_least_every_25_seconds() -> None:
    world = World()
    world.run(3600)
    gaps = [later - earlier for earlier, later in zip(world.pings, world.pings[1:], strict=False)]
    assert world.lost is None
    assert 15 <= min(gaps) <= max(gaps) <= 25


def test_a_peer_that_only_sends_is_pinged_too() -> None:
    """Its chain of keys moves, ours does not."""
    world = World()
    for _ in range(100):
        world.received = world.now
        world.run(1)
    assert 3 <= len(world.pings) <= 6


def test_silence_on_traffic_is_noticed_within_ten_seconds() -> None:
    world = World()
    world.run(5)
    world.answering = False
    cut = world.now
    world.run(60, sending=0.5)
    assert world.lost is not None
    assert world.lost - cut <= 9
    assert 4 <= len(world.pings) <= 7


def test_an_idle_peer_that_is_gone_is_noticed_by_the_next_ping() -> None:
    world = World()
    world.run(5)
    world.answering = False
    cut = world.now
    world.run(600)
    assert world.lost is not None
    assert world.lost - cut <= liveness.KEEPALIVE_SECONDS + liveness.LOST_SECONDS + 1


def test_one_way_traffic_is_no_silence() -> None:
    world = World()
    world.run(600, sending=0.1)
    assert world.lost is None
    assert len(world.pings) < 300


def test_a_peer_whose_tunnels_cannot_go_on_gets_more_time() -> None:
    world = World(patient=True)
    world.answering = False
    begin = world.now
    world.run(100, sending=1)
    assert world.lost is not None
    assert world.lost - begin >= liveness.PATIENT_LOST_SECONDS


def test_a_suspicion_asks_at_once_and_waits_for_a_new_answer() -> None:
    world = World()
    world.run(5)
    world.received = world.now - 0.1  # that was before
    world.liveness.suspect()
    begin = world.now
    world.run(TICK)
    assert world.pings == [begin]
    world.run(60)
    assert world.lost is None
    world.answering = False
    world.liveness.suspect()
    begin = world.now
    world.run(60)
    assert world.lost is not None
    assert world.lost - begin <= liveness.SUSPECT_SECONDS + TICK


def test_hints_do_not_put_the_verdict_off() -> None:
    """Anybody can send them, ever again."""
    world = World()
    world.answering = False
    begin = world.now
    while world.lost is None and world.now < begin + 60:
        world.liveness.suspect()
        world.run(TICK)
    assert world.lost is not None
    assert world.lost - begin <= liveness.SUSPECT_SECONDS + 2 * TICK
    assert len(world.pings) <= liveness.SUSPECT_SECONDS + 1


@given(st.lists(st.tuples(st.floats(0.1, 60), st.booleans(), st.booleans()), max_size=20))
def test_a_peer_that_answers_is_never_given_up(course: list[tuple[float, bool, bool]]) -> None:
    world = World()
    for seconds, used, hint in course:
        world.used = used
        if hint:
            world.liveness.suspect()
        world.run(seconds, sending=seconds / 3)
    assert world.lost is None
