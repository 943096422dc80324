from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import limits
from pqtun.shell.sshd.limits import FORGET_SECONDS, FREE_FAILURES, LONGEST_PAUSE, MAX_SOURCES, Limits

ALICE, BOB, EVE = (IPv4Address(f"10.42.0.{number}") for number in (2, 3, 4))


def make(startups=10, startups_source=3, user=2):
    return Limits(startups=startups, startups_source=startups_source, user=user)


def fail(bounds, source, now, number=1000):
    bounds.begin(number, source)
    bounds.end(number, now)


def test_so_many_of_a_source():
    bounds = make()
    for number in range(3):
        assert bounds.admit(EVE, 0)
        assert bounds.begin(number, EVE) is None
    assert not bounds.admit(EVE, 0)
    assert bounds.admit(ALICE, 0)
    assert bounds.counters["dropped_source_full"] == 1
    assert bounds.authenticate(1, "eve")
    assert bounds.admit(EVE, 0)


def test_who_holds_most_makes_room():
    bounds = make(startups=4, startups_source=3)
    for number, source in enumerate((ALICE, EVE, EVE, EVE)):
        assert bounds.begin(number, source) is None
    assert bounds.begin(4, BOB) == 1  # Eve's oldest
    assert bounds.starting == 4
    assert not bounds.authenticate(1, "eve")  # it was told to end
    bounds.end(1, 0)
    assert bounds.starting == 4
    assert bounds.begin(5, BOB) in (2, 4)
    assert bounds.counters["dropped_for_others"] == 2


def test_so_many_of_a_user():
    bounds = make()
    for number in range(3):
        bounds.begin(number, ALICE)
    assert bounds.authenticate(0, "alice")
    assert bounds.authenticate(1, "alice")
    assert not bounds.authenticate(2, "alice")
    assert bounds.authenticate(2, "bob")
    assert not bounds.authenticate(2, "carol")  # once
    assert not bounds.authenticate(99, "carol")  # never seen
    assert bounds.users == {"alice": 2, "bob": 1}
    bounds.end(0, 0)
    bounds.begin(3, ALICE)
    assert bounds.authenticate(3, "alice")


def test_who_was_logged_in_before_stays():
    bounds = make(user=1)
    bounds.rejoin(1, ALICE, "alice")
    bounds.rejoin(2, ALICE, "alice")
    assert bounds.users == {"alice": 2}
    bounds.begin(3, ALICE)
    assert not bounds.authenticate(3, "alice")
    bounds.end(1, 0)
    bounds.end(2, 0)
    assert bounds.users == {}
    assert bounds.authenticate(3, "alice")


def test_pauses_after_failures_grow_and_end():
    bounds = make()
    for _ in range(FREE_FAILURES):
        assert bounds.admit(EVE, 0)
        fail(bounds, EVE, 0)
    assert bounds.admit(EVE, 0)
    fail(bounds, EVE, 0)
    assert not bounds.admit(EVE, 0.9)
    assert bounds.admit(ALICE, 0.9)
    assert bounds.admit(EVE, 1.0)
    fail(bounds, EVE, 1.0)
    assert not bounds.admit(EVE, 2.9)
    assert bounds.admit(EVE, 3.0)
    for _ in range(100):
        fail(bounds, EVE, 3.0)
    assert not bounds.admit(EVE, 2.9 + LONGEST_PAUSE)
    assert bounds.admit(EVE, 3.0 + LONGEST_PAUSE)
    later = 3.1 + FORGET_SECONDS
    fail(bounds, EVE, later)
    assert bounds.admit(EVE, later)


def test_a_login_is_forgiveness():
    bounds = make()
    for _ in range(FREE_FAILURES):
        fail(bounds, ALICE, 0)
    bounds.begin(1, ALICE)
    assert bounds.authenticate(1, "alice")
    bounds.end(1, 0)
    fail(bounds, ALICE, 0)
    assert bounds.admit(ALICE, 0)


def test_what_was_not_the_clients_fault_is_no_failure():
    bounds = make()
    for number in range(50):
        bounds.begin(number, ALICE)
        bounds.end(number, 0, failed=False)
    assert bounds.admit(ALICE, 0)
    assert bounds.starting == 0


def test_memory_is_bounded():
    bounds = make()
    first = IPv4Address("10.42.1.0")
    for offset in range(2 * MAX_SOURCES):
        fail(bounds, first + offset, 0)
    assert len(bounds._failures) == MAX_SOURCES
    assert first not in bounds._failures
    assert not bounds._of_source


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["connect", "login", "end"]),
            st.integers(0, 30),
            st.sampled_from([ALICE, BOB, EVE]),
            st.floats(0, 30),
        ),
        max_size=120,
    )
)
def test_numbers_always_agree(steps):
    """Whatever comes in whatever order: never more than allowed, and in the end nothing is left."""
    bounds = make(startups=5, startups_source=3, user=4)
    alive: dict[int, IPv4Address] = {}
    now = 0.0
    for number, (step, choice, source, passed) in enumerate(steps):
        now += passed
        if step == "connect":
            if bounds.admit(source, now):
                victim = bounds.begin(number, source)
                assert victim is None or victim in alive
                alive[number] = source
        elif alive:
            chosen = sorted(alive)[choice % len(alive)]
            if step == "login":
                bounds.authenticate(chosen, str(alive[chosen]))
            else:
                bounds.end(chosen, now)
                del alive[chosen]
        assert bounds.starting <= 5
        assert all(count <= 4 for count in bounds.users.values())
        assert all(count <= 3 for count in bounds._of_source.values())
    for chosen in alive:
        bounds.end(chosen, now)
    assert (bounds.starting, bounds.users, bounds._connections) == (0, {}, {})
    assert not bounds._of_source


def test_constants_are_as_documented():
    assert (limits.LOGIN_SECONDS, limits.MAX_ATTEMPTS) == (10, 6)
