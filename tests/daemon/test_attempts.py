from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from pqtun.daemon import attempts
from pqtun.daemon.attempts import Attempts


@dataclass(eq=False)
class FakeLink:
    """A link that connects for as long as a test likes."""

    proven: bool = False
    progress: tuple[int, int] | None = None
    idle: bool = True
    state: str = "idle"
    refused: bool = False
    refuses: bool = False
    wanted: int = 0
    error: str | None = None
    peer: SimpleNamespace = field(init=False)

    def __post_init__(self):
        self.peer = SimpleNamespace(proven=self.proven)

    def want(self):
        self.wanted += 1
        self.idle, self.state = False, "connecting"

    def refuse(self):
        self.refused = True

    def give_up(self, why):
        self.idle, self.state, self.error = True, "failed", why


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 3)


def begun(made, links):
    for link in links:
        made.want(link)
    return links


def test_the_oldest_makes_room():
    counters = Counter()
    made = Attempts(counters)
    links = begun(made, [FakeLink() for _ in range(5)])
    assert [link.state for link in links] == ["failed", "failed", "connecting", "connecting", "connecting"]
    assert "too many" in links[0].error
    made.want(links[4])  # has its place
    assert links[4].wanted == 2
    assert links[2].state == "connecting"
    assert counters == {"attempts_given_up": 2}


def test_what_moves_and_what_is_proven_stays():
    made = Attempts(Counter())
    moving = [FakeLink(progress=(1, 937)) for _ in range(2)]
    links = begun(made, [FakeLink(proven=True), *moving, FakeLink(), FakeLink()])
    assert [link.state for link in links] == [*["connecting"] * 3, "failed", "connecting"]


def test_new_peers_take_no_place_of_those_that_there_was_a_tunnel_to():
    """Thirty-two names in a web page, with key servers that dribble, must not keep lost tunnels from coming back."""
    counters = Counter()
    made = Attempts(counters)
    links = begun(made, [*(FakeLink(progress=(1, 937)) for _ in range(5)), *(FakeLink(proven=True) for _ in range(3))])
    assert [link.state for link in links] == [*["connecting"] * 3, *["idle"] * 2, *["connecting"] * 3]
    assert counters == {"attempts_full": 2}


def test_one_that_begins_nothing_now_takes_nobodys_place():
    """As after a failure, while a program sends on."""
    made = Attempts(Counter())
    links = begun(made, [FakeLink() for _ in range(3)])
    failed = FakeLink(refuses=True)
    for _ in range(10):
        made.want(failed)
    assert [link.state for link in links] == ["connecting"] * 3


def test_no_room_at_all():
    counters = Counter()
    made = Attempts(counters)
    links = begun(made, [FakeLink(proven=True) for _ in range(4)])
    assert [link.refused for link in links] == [False, False, False, True]
    assert links[3].idle
    assert counters == {"attempts_full": 1}


def test_what_has_ended_takes_no_room():
    counters = Counter()
    made = Attempts(counters)
    links = begun(made, [FakeLink() for _ in range(3)])
    links[0].idle, links[0].state = True, "failed"
    links[1].state = "up"
    begun(made, [FakeLink(), FakeLink()])
    assert links[2].state == "connecting"
    assert not counters
