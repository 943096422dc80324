"""Private IPv6 addresses."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.private6 import address4, address6, prefix

CLIENT = IPv4Network("10.43.0.0/16")
ULA = IPv6Network("fd00::/8")
networks = st.builds(lambda high: IPv6Network((0xFD << 120 | high << 64, 64)), st.integers(0, (1 << 56) - 1))


def ones_sum(data: bytes) -> int:
    """RFC 1071, word by word: the form that does not know of remainders."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_known_prefix() -> None:
    """The prefix is part of what two versions on one host must agree on."""
    assert prefix(CLIENT) == IPv6Network("fdd7:ef0f:7bd4::/64")
    assert prefix(CLIENT).subnet_of(ULA)
    assert prefix(CLIENT) != prefix(IPv4Network("10.42.0.0/16"))


@given(networks, st.integers(0, (1 << 32) - 1))
def test_balanced_and_back(network: IPv6Network, number: int) -> None:
    """Each address is in its network, sums to nothing and leads back to the IPv4 address."""
    inner = IPv4Address(number)
    address = address6(network, inner)
    assert address in network
    assert ones_sum(address.packed) in (0, 0xFFFF)
    assert address4(network, address) == inner


@given(networks, st.integers(0, (1 << 64) - 1))
def test_only_ours(network: IPv6Network, low: int) -> None:
    """An address of the network that we did not make is nobody's."""
    address = IPv6Address(int(network.network_address) | low)
    inner = address4(network, address)
    assert inner is None or address6(network, inner) == address
    assert address4(IPv6Network("2001:db8::/64"), address) is None
