"""Addresses and checksums of the packets inside a tunnel (doc/protocol.md section 7). Pure.

A sender only clears the destination. It leaves all checksums as they were, so they are stale in the tunnel; the
receiver puts in the addresses that it knows itself and makes the checksums right. What is said of IPv4 only is here;
IPv6, between pqtun ends, is handed to ``pqtun.pump.inner6``.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from struct import Struct

from pqtun.protocol.errors import MessageError
from pqtun.pump.inner6 import Inbound6, Outbound6
from pqtun.pump.transport import CHECKSUM_AT, HEADER_BYTES, TCP, UDP, WORD, adjust, ones_sum

IPV4_HEADER_BYTES = 20
ICMP = 1

ICMP_REDIRECT = 5
# Errors quote the packet that caused them (RFC 792): unreachable, source quench, redirect, time exceeded, parameter.
ICMP_ERRORS = frozenset((3, 4, ICMP_REDIRECT, 11, 12))

MORE_FRAGMENTS = 0x2000
FRAGMENT_OFFSET = 0x1FFF
LOOSE_SOURCE_ROUTE = 131
STRICT_SOURCE_ROUTE = 137

# RFC 8200 section 5: what every IPv6 link carries.
IPV6_LEAST_MTU = 1280

_FROM_TUN = Struct("!BxH8x4s4s")  # version and header length, total length, source, destination
_FROM_TUNNEL = Struct("!BxH2xHxBH")  # version and header length, total length, fragment, protocol, checksum
_CHECKSUM_AND_ADDRESSES = Struct("!H8s")


def is_ipv6(packet: bytes | bytearray) -> bool:
    """Whether a packet says that it is IPv6. False for an empty one."""
    return len(packet) > 0 and packet[0] >> 4 == 6


def largest(packet: bytes | bytearray, mtu: int) -> int:
    """Return how many bytes a packet of this version may have on its way to a peer of that MTU."""
    return max(mtu, IPV6_LEAST_MTU) if is_ipv6(packet) else mtu


def clear_destination(packet: bytes) -> bytes:
    """Return the plaintext for the tunnel: ``packet`` with destination 0.0.0.0 or ``::``, nothing else changed."""
    if is_ipv6(packet):
        return packet[:24] + bytes(16) + packet[40:]
    return packet[:16] + bytes(4) + packet[20:]


class Outbound:
    """What this host may send into tunnels: packets from its own addresses to single addresses of its subnet."""

    def __init__(
        self,
        own: IPv4Address,
        subnet: IPv4Network,
        deliver_to: IPv4Address | None,
        own6: IPv6Interface | None = None,
    ) -> None:
        """``own6``: our address beside ``own`` and its /64. Without it IPv6 is refused."""
        self._sources = frozenset(a.packed for a in (own, deliver_to) if a is not None)
        self._mask = int(subnet.netmask)
        self._network = int(subnet.network_address)
        self._not_peers = frozenset((own.packed, subnet.network_address.packed, subnet.broadcast_address.packed))
        self._six = None if own6 is None else Outbound6(own6, self.is_peer)

    def destination(self, packet: bytes) -> bytes:
        """Return the 4-byte destination of a packet that was read from the TUN device; of IPv6, the one beside it.

        Raises MessageError: tun_not_ipv4, tun_length, tun_source, tun_destination (own address, broadcast, multicast
        or otherwise outside the subnet).
        """
        if self._six is not None and is_ipv6(packet):
            return self._six.destination(packet)
        if len(packet) < IPV4_HEADER_BYTES or packet[0] >> 4 != 4:
            raise MessageError("tun_not_ipv4")
        _, total, source, destination = _FROM_TUN.unpack_from(packet)
        if total != len(packet):
            raise MessageError("tun_length")
        if source not in self._sources:
            raise MessageError("tun_source")
        if not self.is_peer(destination):
            raise MessageError("tun_destination")
        return bytes(destination)

    def is_peer(self, address: bytes) -> bool:
        """Whether a 4-byte address can stand for a peer: in the subnet, neither our own nor a broadcast address."""
        return int.from_bytes(address, "big") & self._mask == self._network and address not in self._not_peers


class Inbound:
    """Readdresses the packets of one peer for this host: from the peer's private address to the host's address."""

    def __init__(self, peer: IPv4Address, host: IPv4Address, own6: IPv6Interface | None = None) -> None:
        """``own6``: our private IPv6 address and its /64. Without it IPv6 is refused."""
        self._addresses = peer.packed + host.packed
        self._quoted_addresses = host.packed + peer.packed
        self._address_sum = ones_sum(self._addresses)
        self._six = None if own6 is None else Inbound6(peer, own6)

    def deliver(self, plaintext: bytes) -> bytearray:
        """Return the packet for the TUN device. Bytes past the IP total length are padding and cut off.

        Raises MessageError: inner_short, inner_not_ipv4, inner_header_length, inner_total_length, inner_options,
        inner_source_route, inner_fragment, inner_tcp_length, inner_udp_length, inner_icmp_quote, inner_icmp_redirect;
        of IPv6 those of ``Inbound6.deliver``.
        """
        if self._six is not None and is_ipv6(plaintext):
            return self._six.deliver(plaintext)
        if len(plaintext) < IPV4_HEADER_BYTES:
            raise MessageError("inner_short")
        first, total, fragment, protocol, stale = _FROM_TUNNEL.unpack_from(plaintext)
        if first >> 4 != 4:
            raise MessageError("inner_not_ipv4")
        header = (first & 15) * 4
        if header < IPV4_HEADER_BYTES or header > total:
            raise MessageError("inner_header_length")
        if total > len(plaintext):
            raise MessageError("inner_total_length")
        if total < len(plaintext):
            plaintext = plaintext[:total]
        fixed_sum = ones_sum(plaintext[:10]) + self._address_sum
        if header > IPV4_HEADER_BYTES:
            options = plaintext[IPV4_HEADER_BYTES:header]
            check_options(options)
            fixed_sum += ones_sum(options)
        checksum = -fixed_sum % 65535
        packet = bytearray(plaintext)
        _CHECKSUM_AND_ADDRESSES.pack_into(packet, 10, checksum, self._addresses)
        if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET):
            check_fragment(fragment, header, total, protocol)
            if not fragment & FRAGMENT_OFFSET:
                self._first_fragment(packet, header, protocol, checksum - stale)
        elif protocol == TCP:
            if total - header < HEADER_BYTES[TCP]:
                raise MessageError("inner_tcp_length")
            self._sum_transport(packet, header, TCP, plaintext[header:])
        elif protocol == UDP:
            self._sum_udp(packet, header, plaintext)
        elif protocol == ICMP:
            self._readdress_quote(packet, header)
        elif protocol in CHECKSUM_AT:
            _adjust_transport(packet, header, protocol, checksum - stale)
        return packet

    def _sum_udp(self, packet: bytearray, header: int, plaintext: bytes) -> None:
        available = len(plaintext) - header
        if available < HEADER_BYTES[UDP]:
            raise MessageError("inner_udp_length")
        (length,) = WORD.unpack_from(plaintext, header + 4)
        if not HEADER_BYTES[UDP] <= length <= available:
            raise MessageError("inner_udp_length")
        self._sum_transport(packet, header, UDP, plaintext[header : header + length])

    def _sum_transport(self, packet: bytearray, header: int, protocol: int, segment: bytes) -> None:
        """Compute the checksum of a whole TCP segment or UDP datagram over its pseudo-header (RFC 9293, RFC 768)."""
        at = CHECKSUM_AT[protocol]
        (old,) = WORD.unpack_from(segment, at)
        if protocol == UDP and old == 0:
            return  # the sender chose to have none
        checksum = (old - ones_sum(segment) - self._address_sum - protocol - len(segment)) % 65535
        if protocol == UDP and checksum == 0:
            checksum = 0xFFFF
        WORD.pack_into(packet, header + at, checksum)

    def _first_fragment(self, packet: bytearray, header: int, protocol: int, change: int) -> None:
        if protocol == ICMP:
            self._readdress_quote(packet, header)
        elif protocol in CHECKSUM_AT:
            _adjust_transport(packet, header, protocol, change)

    def _readdress_quote(self, packet: bytearray, header: int) -> None:
        """Give the packet quoted in an ICMP error the addresses with which this host sent it (RFC 5508 section 4.2).

        The kernel finds the socket or route concerned by them. All checksums are adjusted, not computed: the quote
        is cut short, and the error may be a first fragment.
        """
        if len(packet) < header + 8:
            raise MessageError("inner_icmp_quote")
        kind = packet[header]
        if kind not in ICMP_ERRORS:
            return
        if kind == ICMP_REDIRECT:
            raise MessageError("inner_icmp_redirect")  # there is no router between the peer and us
        quote = header + 8
        transport = quote + (packet[quote] & 15) * 4 if len(packet) > quote else 0
        if transport - quote < IPV4_HEADER_BYTES or len(packet) < transport or packet[quote] >> 4 != 4:
            raise MessageError("inner_icmp_quote")
        before = ones_sum(packet[quote:])
        change = ones_sum(packet[quote + 12 : quote + 20]) - self._address_sum
        packet[quote + 12 : quote + 20] = self._quoted_addresses
        adjust(packet, quote + 10, change)
        (fragment,) = WORD.unpack_from(packet, quote + 6)
        protocol = packet[quote + 9]
        at = CHECKSUM_AT.get(protocol)
        if at is not None and not fragment & FRAGMENT_OFFSET and len(packet) >= transport + at + 2:
            _adjust_transport(packet, transport, protocol, change)
        adjust(packet, header + 2, before - ones_sum(packet[quote:]))


def check_options(options: bytes) -> None:
    """Accept well-formed IPv4 options without a source route (RFC 791 section 3.1).

    A source-routed packet would be forwarded by this host to an address of the peer's choice. Raises MessageError:
    inner_options, inner_source_route.
    """
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if options[at] in (LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE):
            raise MessageError("inner_source_route")
        if at + 1 == len(options) or not 2 <= options[at + 1] <= len(options) - at:
            raise MessageError("inner_options")
        at += options[at + 1]


def check_fragment(fragment: int, header: int, total: int, protocol: int) -> None:
    """Refuse fragments that no sender makes. ``fragment`` is the 16-bit word of flags and offset.

    Refused (MessageError inner_fragment): empty, reaching past 65535 bytes, not in 8-byte units though more follow,
    and for protocols with ports those that split the header (RFC 1858, RFC 3128).
    """
    offset = (fragment & FRAGMENT_OFFSET) * 8
    payload = total - header
    header_end = HEADER_BYTES.get(protocol, 0)
    if (
        payload == 0
        or offset + total > 65535
        or (fragment & MORE_FRAGMENTS and payload % 8)
        or (offset == 0 and payload < header_end)
        or 0 < offset < header_end
    ):
        raise MessageError("inner_fragment")


def _adjust_transport(packet: bytearray, header: int, protocol: int, change: int) -> None:
    """Adjust a transport checksum by what the IP header checksum of the same packet changed by.

    Both cover the addresses, and nothing else has changed. This is how a fragment is mended although the address
    that the sender cleared is not on the wire: the stale IP checksum still holds its contribution (RFC 1624).
    """
    at = header + CHECKSUM_AT[protocol]
    if len(packet) < at + 2:
        return
    (old,) = WORD.unpack_from(packet, at)
    if protocol == UDP and old == 0:
        return
    adjust(packet, at, change)
    if protocol == UDP and packet[at] == packet[at + 1] == 0:
        packet[at] = packet[at + 1] = 0xFF
