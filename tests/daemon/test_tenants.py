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
