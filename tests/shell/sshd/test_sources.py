import re
from fnmatch import translate
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import sources
from pqtun.shell.sshd.sources import PatternError

ADDRESSES = st.ip_addresses()


@pytest.mark.parametrize(
    ("patterns", "address", "fits"),
    [
        ("10.43.0.7", "10.43.0.7", True),
        ("10.43.0.7", "10.43.0.70", False),
        ("10.43.0.*", "10.43.0.7", True),
        ("10.43.0.?", "10.43.0.7", True),
        ("10.43.0.?", "10.43.0.70", False),
        ("10.43.0.0/16", "10.43.255.255", True),
        ("10.43.0.0/16", "10.44.0.0", False),
        ("10.43.0.0/16,!10.43.0.7", "10.43.0.7", False),
        ("!10.43.0.7,10.43.0.0/16", "10.43.0.7", False),
        ("!10.43.0.7,10.43.0.0/16", "10.43.0.8", True),
        ("!10.43.0.7", "10.43.0.8", False),  # only what is named comes in
        ("*", "fd00::1", True),
        ("fd00::/8", "fd00::1", True),
        ("FD00::0001", "fd00::1", True),
        ("FD00:*", "fd00::1", True),
        ("10.43.0.0/16", "fd00::1", False),
        ("0.0.0.0/0", "10.0.0.1", True),
        ("localhost", "127.0.0.1", False),  # no name is asked for
        ("*.example.com", "10.0.0.1", False),
        ("localhost,10.0.0.1", "10.0.0.1", True),
    ],
)
def test_lists(patterns, address, fits):
    assert sources.listed(patterns, ip_address(address)) is fits


@pytest.mark.parametrize(
    "patterns", ["", "10.0.0.1,", ",10.0.0.1", "!", "10.0.0.1/8", "10.0.0.0/33", "x/8", "10.0.0.0/"]
)
def test_lists_that_are_broken(patterns):
    with pytest.raises(PatternError):
        sources.listed(patterns, ip_address("10.0.0.1"))
    with pytest.raises(PatternError):
        sources.check(patterns)


@given(st.text(st.sampled_from("ab*?."), max_size=12), st.text(st.sampled_from("ab.*?"), max_size=12))
def test_wildcards_are_the_shells_without_its_brackets(pattern, text):
    assert sources.matches(pattern, text) is (re.fullmatch(translate(pattern), text) is not None)


def test_many_stars_take_no_time():
    assert not sources.matches("*a" * 5000 + "b", "a" * 39)


@given(st.text(max_size=40), ADDRESSES)
def test_any_list(patterns, address):
    try:
        fits = sources.listed(patterns, address)
    except PatternError:
        return
    assert isinstance(fits, bool)


@given(ADDRESSES)
def test_an_address_is_in_its_own_network(address):
    assert sources.in_networks(f"192.0.2.0/24,{address}", address)
    assert sources.listed(f"!192.0.2.0/24,{address}", address) or address in sources.ip_network("192.0.2.0/24")


@pytest.mark.parametrize("networks", ["", "10.0.*", "!10.0.0.1", "10.0.0.1/8", "10.0.0.1,"])
def test_networks_only(networks):
    with pytest.raises(PatternError):
        sources.in_networks(networks, ip_address("10.0.0.1"))
