from ipaddress import IPv4Address, IPv4Interface

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pqtun.daemon.tenants import PREFIX_LEAST, Tenants

SOURCE = ("192.0.2.9", 42423)


def take(tenants, tid, now=0.0):
    return tenants.take(tid, SOURCE, now)


def test_addresses_in_turn_and_not_reused_at_once():
    tenants = Tenants(IPv4Interface("10.42.0.1/29"))
    assert [str(take(tenants, bytes([n]))) for n in range(3)] == ["10.42.0.2", "10.42.0.3", "10.42.0.4"]
    tenants.release(b"\0")
    assert str(take(tenants, b"a")) == "10.42.0.5"
    assert str(take(tenants, b"b")) == "10.42.0.6"
    assert str(take(tenants, b"c")) == "10.42.0.2"
    assert take(tenants, b"d") is None
    assert len(tenants) == 5
    tenants.release(b"unknown")
    tenants.release(b"\1")
    assert str(take(tenants, b"d")) == "10.42.0.3"


def test_the_own_address_is_left_out_wherever_it_is():
    tenants = Tenants(IPv4Interface("10.42.0.4/29"))
    given = {str(take(tenants, bytes([n])))[-1] for n in range(5)}
    assert given == {"1", "2", "3", "5", "6"}


def test_a_full_subnet_takes_no_search():
    tenants = Tenants(IPv4Interface("10.42.0.1/16"))
    given = {take(tenants, number.to_bytes(4, "big")) for number in range(65_533)}
    assert len(given) == 65_533
    for _ in range(10_000):  # minutes, if each searched all numbers
        assert take(tenants, b"full") is None
    tenants.release((7).to_bytes(4, "big"))
    assert str(take(tenants, b"new")) == "10.42.0.9"


def test_the_oldest_that_is_not_known_once_it_is_old():
    tenants = Tenants(IPv4Interface("10.42.0.1/24"))
    assert tenants.oldest_newcomer(100.0) is None
    tids = [bytes([n]) for n in range(10)]
    for now, tid in enumerate(tids):
        take(tenants, tid, float(now))
        tenants.heard(tid)
    assert tenants.oldest_newcomer(-0.5) is None
    assert tenants.oldest_newcomer(0.0) == tids[0]
    for tid in tids[1:5]:
        tenants.confirmed(tid, SOURCE)
    assert tenants.oldest_newcomer(4.0) == tids[0]
    tenants.release(tids[0])
    assert tenants.oldest_newcomer(4.0) is None
    assert tenants.oldest_newcomer(5.0) == tids[5]
    tenants.reserve(tids[5])
    tenants.confirmed(tids[6], SOURCE)
    assert tenants.oldest_newcomer(9.0) == tids[7]
    assert tenants.tids() == [*tids[1:5], *tids[6:]]
    assert tenants.succeed(tids[7], tids[1]) is not None  # who continues somebody known is
    assert tenants.oldest_newcomer(9.0) == tids[8]
    assert tenants.succeed(tids[6], tids[9]) is not None
    assert tenants.get(tids[6]).known
    tenants.confirmed(tids[8], SOURCE)
    assert tenants.oldest_newcomer(100.0) is None


def test_a_reserved_address_waits_for_its_tunnel():
    tenants = Tenants(IPv4Interface("10.42.0.1/29"))
    first, second = take(tenants, b"a"), take(tenants, b"b")
    for tid in (b"a", b"b"):
        tenants.reserve(tid)
    assert b"a" not in tenants
    assert tenants.is_reserved(first)
    assert tenants.address(b"a") == first
    assert [take(tenants, bytes([n])) for n in range(4)][3] is None
    assert tenants.longest_gone() == b"a"
    assert tenants.take_back(b"a", SOURCE, 0.0) == first
    assert tenants.take_back(b"a", SOURCE, 0.0) is None
    assert not tenants.is_reserved(first)
    assert tenants.longest_gone() == b"b"
    tenants.release(b"b")  # which is for live ones
    assert tenants.is_reserved(second)
    tenants.give_up(b"b")
    assert take(tenants, b"c") == second


def test_a_successor_takes_the_address_of_a_live_or_gone_tunnel():
    tenants = Tenants(IPv4Interface("10.42.0.1/29"))
    for gone in (False, True):
        old = take(tenants, b"old")
        own = take(tenants, b"new")
        if gone:
            tenants.reserve(b"old")
        assert tenants.succeed(b"new", b"new") is None
        assert tenants.succeed(b"unknown", b"old") is None
        assert tenants.succeed(b"new", b"unknown") is None
        assert tenants.address(b"new") == own
        assert tenants.succeed(b"new", b"old") == old
        assert tenants.get(b"new").resumed
        assert tenants.address(b"new") == old
        assert tenants.address(b"old") is None
        assert tenants.longest_gone() is None
        tenants.release(b"new")


def test_what_is_long_gone_is_not_remembered():
    tenants = Tenants(IPv4Interface("10.42.0.1/29"))
    for number in range(1000):
        take(tenants, bytes([number % 256]))
        tenants.release(bytes([number % 256]))
    assert len(tenants._newcomers) == 0


def test_live_and_gone_tunnels_together_are_bounded():
    tenants = Tenants(IPv4Interface("10.42.0.1/16"), limit=3)
    for tid in (b"a", b"b", b"c"):
        assert take(tenants, tid) is not None
    tenants.reserve(b"a")
    assert take(tenants, b"d") is None
    tenants.take_back(b"a", SOURCE, 0.0)
    assert take(tenants, b"d") is None
    tenants.release(b"b")
    assert take(tenants, b"d") is not None


def test_the_oldest_of_a_prefix_that_has_too_many():
    tenants = Tenants(IPv4Interface("10.42.0.1/24"))
    tenants.take(b"neighbour", ("192.0.3.9", 1), 0.0)
    tids = [bytes([number]) for number in range(PREFIX_LEAST + 2)]
    for number, tid in enumerate(tids):
        assert tenants.crowding() == (tids[0] if number > PREFIX_LEAST else None)
        tenants.take(tid, (f"192.0.2.{number}", number), 0.0)
    tenants.reserve(tids[0])  # which changes nothing: it has an address still
    assert tenants.crowding() == tids[0]
    tenants.give_up(tids[0])
    assert tenants.crowding() == tids[1]
    assert tenants.succeed(tids[5], tids[1]) is not None
    assert tenants.crowding() is None
    tenants.take(b"one more", SOURCE, 0.0)
    assert tenants.crowding() == tids[2]
    tenants.release(tids[9])
    assert tenants.crowding() is None


def test_forged_sources_crowd_out_nobody_who_is_there():
    tenants = Tenants(IPv4Interface("10.42.0.1/24"))
    take(tenants, b"honest")
    tenants.confirmed(b"honest", SOURCE)
    for number in range(PREFIX_LEAST + 1):
        assert tenants.crowding() is None
        take(tenants, bytes([number]))
    assert tenants.crowding() == bytes([0])
    tenants.confirmed(bytes([0]), ("198.51.100.1", 1))  # it had moved before it answered
    assert tenants.crowding() is None
    tenants.confirmed(b"unknown", SOURCE)
    for number in range(PREFIX_LEAST + 1):
        tenants.confirmed(bytes([number]), SOURCE)
    assert tenants.crowding() == b"honest"


def test_who_is_gone_leaves_nothing():
    tenants = Tenants(IPv4Interface("10.42.0.1/24"))
    for number in range(200):
        take(tenants, bytes([number]))
        tenants.reserve(bytes([number]))
    for number in range(200):
        tenants.give_up(bytes([number]))
    assert not tenants._by_group
    assert not tenants._crowds


class Addresses(RuleBasedStateMachine):
    """Whatever happens, each address is in one place, and none is lost."""

    def __init__(self):
        super().__init__()
        self.tenants = Tenants(IPv4Interface("10.42.0.1/28"))
        self.made = 0
        self.live = {}
        self.reserved = {}

    @rule()
    def take(self):
        tid = self.made.to_bytes(4, "big")
        address = take(self.tenants, tid, float(self.made))
        assert (address is None) == (len(self.live) + len(self.reserved) == 13)
        if address is not None:
            self.made += 1
            self.live[tid] = address

    @rule(data=st.data())
    def heard(self, data):
        self.tenants.heard(self.pick(data, self.live))

    @rule(data=st.data())
    def release(self, data):
        tid = self.pick(data, self.live)
        self.tenants.release(tid)
        self.live.pop(tid, None)

    @rule(data=st.data())
    def reserve(self, data):
        tid = self.pick(data, self.live)
        self.tenants.reserve(tid)
        if tid in self.live:
            self.reserved[tid] = self.live.pop(tid)

    @rule(data=st.data())
    def give_up(self, data):
        tid = self.pick(data, self.reserved)
        self.tenants.give_up(tid)
        self.reserved.pop(tid, None)

    @rule(data=st.data())
    def take_back(self, data):
        tid = self.pick(data, self.reserved)
        assert self.tenants.take_back(tid, SOURCE, float(self.made)) == self.reserved.get(tid)
        if tid in self.reserved:
            self.live[tid] = self.reserved.pop(tid)

    @rule(data=st.data())
    def succeed(self, data):
        tid, old = self.pick(data, self.live), self.pick(data, {**self.live, **self.reserved})
        address = self.tenants.succeed(tid, old)
        if tid in self.live and old and tid != old:
            assert address == (self.live.pop(old, None) or self.reserved.pop(old))
            self.live[tid] = address
        else:
            assert address is None

    @invariant()
    def agrees(self):
        assert set(self.tenants.tids()) == set(self.live)
        assert self.tenants.reserved == len(self.reserved)
        for tid, address in {**self.live, **self.reserved}.items():
            assert self.tenants.address(tid) == address
        assert self.tenants.longest_gone() == next(iter(self.reserved), None)
        held = {IPv4Address(f"10.42.0.{number}") for number in range(1, 15)}
        assert {address for address in held if self.tenants.is_reserved(address)} == set(self.reserved.values())
        assert len({*self.live.values(), *self.reserved.values()}) == len(self.live) + len(self.reserved)

    def pick(self, data, tids):
        return data.draw(st.sampled_from(sorted(tids))) if tids else b""


Addresses.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAddresses = Addresses.TestCase
