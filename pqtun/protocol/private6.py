"""Private IPv6 addresses, as pqtun ends use them inside tunnels (doc/protocol.md section 8). Pure.

A host's prefix is a unique local one (RFC 4193) that follows from its private IPv4 subnet, and each address from the
private IPv4 address that stands for the same end: ``prefix (8 bytes) || 00 00 || balance (2) || IPv4 address (4)``. The
balance makes the one's-complement sum of the whole address 0, as that of ``::`` is, so that a packet may have one such
address replaced by another, or by ``::``, and every checksum in it still holds (RFC 6296 section 2.6 does the same).
"""

from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

PREFIX_BITS: Final = 64
_GLOBAL_ID_BYTES: Final = 5
_BALANCE_SHIFT: Final = 32


def prefix(subnet: IPv4Network) -> IPv6Network:
    """Return the /64 that goes with a private IPv4 subnet: ``fd``, 5 bytes of a hash, subnet 0 (RFC 4193 section 3.1).

    The global id is no random one: a host keeps its addresses, and so its connections, without a file to keep them in.
    """
    global_id = sha256(b"pqtun " + subnet.with_prefixlen.encode()).digest()[:_GLOBAL_ID_BYTES]
    return IPv6Network((b"\xfd" + global_id + bytes(10), PREFIX_BITS))


def address6(network: IPv6Network, inner: IPv4Address) -> IPv6Address:
    """Return the IPv6 address beside the private IPv4 address ``inner``."""
    bare = int(network.network_address) | int(inner)
    return IPv6Address(bare | (-bare % 0xFFFF) << _BALANCE_SHIFT)


def address4(network: IPv6Network, address: IPv6Address) -> IPv4Address | None:
    """Return the private IPv4 address beside ``address``; None if it is none of ours."""
    if address not in network:
        return None
    inner = IPv4Address(int(address) & 0xFFFFFFFF)
    return inner if address6(network, inner) == address else None
