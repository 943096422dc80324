import time
from ipaddress import IPv4Interface

from pqtun.daemon.tenants import Tenants


def test_addresses_in_turn_and_not_reused_at_once():
    tenants = Tenants(IPv4Interface("10.42.0.1/29"))
    assert [str(tenants.take(bytes([n]))) for n in range(3)] == ["10.42.0.2", "10.42.0.3", "10.42.0.4"]
    tenants.release(b"\0")
    assert str(tenants.take(b"a")) == "10.42.0.5"
    assert str(tenants.take(b"b")) == "10.42.0.6"
    assert str(tenants.take(b"c")) == "10.42.0.2"
    assert tenants.take(b"d") is None
    assert len(tenants) == 5
    tenants.release(b"unknown")
    tenants.release(b"\1")
    assert str(tenants.take(b"d")) == "10.42.0.3"


def test_the_own_address_is_left_out_wherever_it_is():
    tenants = Tenants(IPv4Interface("10.42.0.4/29"))
    given = {str(tenants.take(bytes([n])))[-1] for n in range(5)}
    assert given == {"1", "2", "3", "5", "6"}


def test_a_full_subnet_takes_no_search():
    tenants = Tenants(IPv4Interface("10.42.0.1/16"))
    given = {tenants.take(number.to_bytes(4, "big")) for number in range(65_533)}
    assert len(given) == 65_533
    began = time.process_time()
    for _ in range(10_000):
        assert tenants.take(b"full") is None
    assert time.process_time() - began < 5  # a search of all numbers takes 10 ms
    tenants.release((7).to_bytes(4, "big"))
    assert str(tenants.take(b"new")) == "10.42.0.9"


def test_the_oldest_silent_one_unless_they_are_few():
    tenants = Tenants(IPv4Interface("10.42.0.1/24"))
    tids = [bytes([n]) for n in range(100)]
    assert tenants.oldest_silent(16) is None
    for tid in tids:
        tenants.take(tid)
    assert tenants.oldest_silent(16) == tids[0]
    for tid in tids[1:50]:
        tenants.heard(tid)
    assert tenants.oldest_silent(16) == tids[0]
    tenants.release(tids[0])
    assert tenants.oldest_silent(16) == tids[50]
    for tid in tids[60:]:
        tenants.heard(tid)
    tenants.release(tids[50])
    assert tenants.oldest_silent(16) == tids[51]
    for tid in tids[51:55]:
        tenants.heard(tid)
    assert len(tenants) == 98
    assert tenants.oldest_silent(16) is None
    assert tenants.oldest_silent(20) == tids[55]
    assert sorted(tenants.tids()) == [*tids[1:50], *tids[51:]]


def test_what_is_long_gone_is_not_remembered():
    tenants = Tenants(IPv4Interface("10.42.0.1/29"))
    for number in range(1000):
        tenants.take(bytes([number % 256]))
        tenants.release(bytes([number % 256]))
    assert len(tenants._newcomers) == 0
