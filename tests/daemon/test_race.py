"""pqtun.daemon.race, in virtual time: who is tried when, who wins, and that nobody is left running."""

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import race as race_module
from pqtun.daemon.race import LostError, order, race
from tests.daemon.virtual import now, play

A, B, C = map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.3"))
X, Y, Z = map(IPv6Address, ("2001:db8::1", "2001:db8::2", "2001:db8::3"))


class Refused(Exception):
    pass


class Addresses:
    """Stands for locate.Addresses: lookups are (seconds, addresses), the second ones begun by look_again."""

    def __init__(self, known, lookups=(), again=()):
        self.found = list(known)
        self.again = list(again)
        self.tasks = [asyncio.ensure_future(self.look_up(*lookup)) for lookup in lookups]

    async def look_up(self, seconds, addresses):
        await asyncio.sleep(seconds)
        self.found += addresses

    @property
    def known(self):
        return tuple(dict.fromkeys(self.found))

    @property
    def pending(self):
        return {task for task in self.tasks if not task.done()}

    def look_again(self):
        begun, self.again = self.again, []
        self.tasks += [asyncio.ensure_future(self.look_up(*lookup)) for lookup in begun]
        return bool(begun)

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Course:
    """Runs a race in virtual time. The plan says how many seconds each address takes, and whether it answers then."""

    def __init__(self, known, plan, *, lookups=(), again=(), good=None, avoid=(), without=()):
        self.plan = plan
        self.started = {}
        self.ended = {}
        self.given = known, lookups, again
        self.named = {"good": good, "avoid": avoid, "without": without}
        self.begun = self.over = None

    async def attempt(self, address):
        self.started[address] = self.seconds()
        try:
            seconds, answers = self.plan[address]
            await asyncio.sleep(seconds)
            if answers is not True:
                raise answers
            return f"from {address}"
        finally:
            self.ended[address] = self.seconds()

    def seconds(self):
        """Since the start, in microseconds' precision."""
        return round(now() - self.begun, 6)

    async def body(self):
        self.begun = now()
        addresses = Addresses(*self.given)
        try:
            winner, result = await race(addresses, self.attempt, Refused, **self.named)
            assert result == f"from {winner}"
            return winner
        finally:
            self.over = self.seconds()
            assert self.started.keys() == self.ended.keys()
            await addresses.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    def run(self):
        return play(self.body())


NEVER = 3600.0
YES, NO = True, Refused()


def test_order():
    assert order([A, B, C, X, Y], None, ()) == [X, A, Y, B, C]
    assert order([A, X, Y, Z], None, ()) == [X, A, Y, Z]
    assert order([A, B, X, Y], B, ()) == [B, X, A, Y]
    assert order([A, B, X, Y], Y, ()) == [Y, A, X, B]
    assert order([A, B, X, Y], Y, (Y, A)) == [X, B, Y, A]
    assert order([A, X], None, [A, X, A]) == [X, A]
    assert order([A, X], None, [A, X]) == [A, X]
    assert order([A], Y, [X]) == [A]
    assert order([], A, ()) == []


@given(st.lists(st.sampled_from([A, B, C, X, Y, Z]), unique=True), st.data())
def test_order_is_a_permutation(addresses, data):
    some = st.sampled_from([A, B, C, X, Y, Z])
    good, avoid = data.draw(st.none() | some), data.draw(st.lists(some))
    found = order(addresses, good, avoid)
    assert sorted(map(str, found)) == sorted(map(str, addresses))
    kinds = [address in avoid for address in found]
    assert kinds == sorted(kinds)
    if good in addresses and good not in avoid:
        assert found[0] == good
    fresh = [address for address in found if address not in avoid]
    both = min(sum(address.version == version for address in fresh) for version in (4, 6))
    assert all(a.version != b.version for a, b in pairwise(fresh[: 2 * both]))


def test_the_first_that_answers_is_not_disturbed():
    course = Course([A, X], {X: (0.2, YES), A: (0, YES)})
    assert course.run() == X
    assert course.started == {X: 0}


def test_after_a_quarter_second_of_silence_the_next_is_tried_beside_it():
    course = Course([A, B, X], {X: (NEVER, YES), A: (NEVER, YES), B: (0.1, YES)})
    assert course.run() == B
    assert course.started == {X: 0, A: 0.25, B: 0.5}
    assert course.over == 0.6


def test_who_was_tried_before_may_still_win():
    course = Course([A, X], {X: (0.4, YES), A: (0.2, YES)})
    assert course.run() == X


def test_the_next_is_tried_at_once_when_one_refuses():
    course = Course([A, X], {X: (0.1, NO), A: (0.1, YES)})
    assert course.run() == A
    assert course.started == {X: 0, A: 0.1}
    beside = Course([A, B, X], {X: (NEVER, YES), A: (0.1, NO), B: (0, YES)})
    assert beside.run() == B
    assert beside.started == {X: 0, A: 0.25, B: 0.35}


def test_all_refuse():
    faults = [Refused("slow"), Refused("quick")]
    course = Course([A, X], {X: (5, faults[0]), A: (1, faults[1])})
    with pytest.raises(LostError) as caught:
        course.run()
    assert caught.value.faults == faults[::-1]


def test_no_address_at_all():
    with pytest.raises(LostError) as caught:
        Course([], {}).run()
    assert caught.value.faults == []


def test_what_a_lookup_brings_joins():
    course = Course([A], {A: (NEVER, YES), X: (0.1, YES)}, lookups=[(0.4, [X]), (NEVER, [B])])
    assert course.run() == X
    assert course.started == {A: 0, X: 0.4}


def test_a_lookup_is_waited_for_where_nothing_is_known():
    assert Course([], {X: (0, YES)}, lookups=[(2, []), (3, [X])]).run() == X


def test_others_are_looked_up_when_all_that_were_known_have_failed():
    course = Course([A], {A: (0.5, NO), B: (0, YES)}, again=[(0.1, [A, B])])
    assert course.run() == B
    assert course.started == {A: 0, B: 0.6}


def test_others_are_looked_up_when_nobody_answers_for_a_second():
    course = Course([A], {A: (NEVER, YES), B: (0, YES)}, again=[(0.1, [A, B])])
    assert course.run() == B
    assert course.started == {A: 0, B: 1.1}
    quick = Course([A], {A: (0.9, YES)}, again=[(0, [B])])
    assert quick.run() == A
    assert quick.started == {A: 0}


def test_one_to_avoid_is_tried_when_the_others_have_refused():
    course = Course([A, X], {A: (0, YES), X: (0.1, NO)}, avoid=[A], lookups=[(0.3, [])])
    assert course.run() == A
    assert course.started == {X: 0, A: 0.3}


def test_one_to_avoid_is_tried_at_last_beside_the_others():
    course = Course([A, B, X], {A: (NEVER, YES), B: (0, YES), X: (NEVER, YES)}, avoid=[B])
    assert course.run() == B
    assert course.started == {X: 0, A: 0.25, B: 1.0}
    slow = Course([A, X], {A: (0, YES), X: (0.9, YES)}, avoid=[A])
    assert slow.run() == X
    assert slow.started == {X: 0}


def test_where_all_are_to_be_avoided_nobody_waits():
    course = Course([A, X], {A: (NEVER, YES), X: (0.1, YES)}, avoid=[A, X])
    assert course.run() == X
    assert course.started == {A: 0, X: 0.25}


def test_those_that_have_lost_are_left_out():
    course = Course([A, X], {A: (0, YES), X: (0, YES)}, without=[X])
    assert course.run() == A
    assert course.started == {A: 0}


def test_only_so_many_are_tried():
    addresses = [ip_address(f"192.0.2.{number}") for number in range(1, 20)]
    course = Course(addresses, dict.fromkeys(addresses, (1, NO)), without=addresses[:2])
    with pytest.raises(LostError):
        course.run()
    assert len(course.started) == race_module.MAX_CANDIDATES - 2


def test_an_error_of_another_kind_ends_it():
    course = Course([A, X], {X: (NEVER, YES), A: (0.1, KeyError("a bug"))})
    with pytest.raises(KeyError):
        course.run()


def test_cancelling_ends_all_attempts():
    course = Course([A, X], {X: (NEVER, YES), A: (NEVER, YES)})

    async def given_up():
        async with asyncio.timeout(1):
            await course.body()

    with pytest.raises(TimeoutError):
        play(given_up())
    assert course.ended == {X: 1, A: 1}


SECONDS = st.integers(0, 40).map(lambda tenths: tenths / 10)
ALL = [A, B, C, X, Y, Z]


@given(
    st.fixed_dictionaries(dict.fromkeys(ALL, st.tuples(SECONDS, st.sampled_from([YES, NO])))),
    st.lists(st.sampled_from(ALL), unique=True),
    st.lists(st.tuples(SECONDS, st.lists(st.sampled_from(ALL), unique=True)), max_size=2),
    st.lists(st.tuples(SECONDS, st.lists(st.sampled_from(ALL), unique=True)), max_size=2),
    st.none() | st.sampled_from(ALL),
    st.lists(st.sampled_from(ALL)),
)
def test_whoever_answers_is_found(plan, known, lookups, again, good, avoid):
    course = Course(known, plan, lookups=lookups, again=again, good=good, avoid=avoid)
    reachable = {*known, *(address for _, found in (*lookups, *again) for address in found)}
    answering = {address for address in reachable if plan[address][1] is YES}
    if not answering:
        with pytest.raises(LostError) as caught:
            course.run()
        assert len(caught.value.faults) == len(reachable)
    else:
        assert course.run() in answering
        # Nobody who began earlier would have ended earlier.
        assert all(
            round(course.started[other] + plan[other][0], 6) >= course.over
            for other in course.started
            if plan[other][1] is YES
        )
    starts = sorted(course.started.values())
    refusals = [end for address, end in course.ended.items() if plan[address][1] is NO]
    for before, after in pairwise(starts):
        assert round(after - before, 6) >= 0.25 or any(before <= end <= after for end in refusals)
