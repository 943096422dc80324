"""Addresses and checksums of the IPv6 packets inside a tunnel (doc/protocol.md section 8). Pure.

A sender only clears the destination, and a receiver puts in the addresses that it knows itself, as with IPv4. But these
addresses, and ``::``, all sum to 0 (``pqtun.protocol.private6``): checksums hold without being touched, also where they
cannot be computed, in fragments and in quotes.
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Interface
from typing import Final, NamedTuple

from pqtun.protocol.errors import MessageError
from pqtun.protocol.private6 import address6
from pqtun.pump.transport import CHECKSUM_AT, HEADER_BYTES, TCP, UDP, WORD, adjust, ones_sum

IPV6_HEADER_BYTES: Final = 40
ICMP6: Final = 58
ICMP6_HEADER_BYTES: Final = 8
# Errors quote the packet that caused them (RFC 4443): unreachable, too big, time exceeded, parameter problem.
ICMP6_ERRORS: Final = frozenset((1, 2, 3, 4))
_ECHO: Final = frozenset((128, 129))

# Extension headers (RFC 8200 section 4).
HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
DESTINATION_OPTIONS: Final = 60
FRAGMENT_OFFSET: Final = 0xFFF8
MORE_FRAGMENTS: Final = 1
_FRAGMENT_BYTES: Final = 8
_MOST_EXTENSIONS: Final = 4  # options before and behind a fragment header, and one to spare
_PAD1: Final = 0
_HOME_ADDRESS: Final = 201  # gives a packet another source (RFC 6275 section 6.3)


class Upper(NamedTuple):
    """What stands behind the IPv6 header and its extensions."""

    protocol: int
    at: int
    fragment: int | None  # offset and flags, None in a packet that is whole


class Outbound6:
    """What this host may send into tunnels: IPv6 from its own address to the ones that stand for peers."""

    def __init__(self, own6: IPv6Interface, is_peer: Callable[[bytes], bool]) -> None:
        self._own = own6.ip.packed
        self._prefix = own6.network.network_address.packed[:8]
        self._prefix_sum = ones_sum(self._prefix)
        self._is_peer = is_peer

    def destination(self, packet: bytes) -> bytes:
        """Return the 4-byte private IPv4 address beside the destination of a packet that was read from the TUN device.

        Raises MessageError: tun_length, tun_source, tun_destination (own address, multicast, or none of a peer).
        """
        if len(packet) < IPV6_HEADER_BYTES or IPV6_HEADER_BYTES + WORD.unpack_from(packet, 4)[0] != len(packet):
            raise MessageError("tun_length")
        if packet[8:24] != self._own:
            raise MessageError("tun_source")
        inner = packet[36:40]
        balance = WORD.pack(-(self._prefix_sum + ones_sum(inner)) % 65535)
        if packet[24:36] != self._prefix + b"\0\0" + balance or not self._is_peer(inner):
            raise MessageError("tun_destination")
        return bytes(inner)


class Inbound6:
    """Readdresses the packets of one peer for this host: from the peer's private address to our own."""

    def __init__(self, peer: IPv4Address, own6: IPv6Interface) -> None:
        own, theirs = own6.ip.packed, address6(own6.network, peer).packed
        self._addresses = theirs + own
        self._quoted_addresses = own + theirs

    def deliver(self, plaintext: bytes) -> bytearray:
        """Return the packet for the TUN device. Bytes past the IP length are padding and cut off.

        Raises MessageError: inner6_short, inner6_length, inner6_hop_by_hop, inner6_routing, inner6_options,
        inner6_fragment, inner6_tcp_length, inner6_udp_length, inner6_icmp_type, inner6_icmp_quote.
        """
        if len(plaintext) < IPV6_HEADER_BYTES:
            raise MessageError("inner6_short")
        total = IPV6_HEADER_BYTES + WORD.unpack_from(plaintext, 4)[0]
        if total > len(plaintext):
            raise MessageError("inner6_length")
        if total < len(plaintext):
            plaintext = plaintext[:total]
        protocol, at, fragment = upper_layer(plaintext)
        packet = bytearray(plaintext)
        packet[8:40] = self._addresses
        if protocol == ICMP6 and not (fragment or 0) & FRAGMENT_OFFSET:
            self._icmp(packet, at)
        elif fragment is not None:
            pass
        elif protocol == TCP:
            if total - at < HEADER_BYTES[TCP]:
                raise MessageError("inner6_tcp_length")
            _sum_transport(packet, at, total, TCP)
        elif protocol == UDP:
            self._udp(packet, at)
        return packet

    @staticmethod
    def _udp(packet: bytearray, at: int) -> None:
        available = len(packet) - at
        if available < HEADER_BYTES[UDP]:
            raise MessageError("inner6_udp_length")
        (length,) = WORD.unpack_from(packet, at + 4)
        if not HEADER_BYTES[UDP] <= length <= available:
            raise MessageError("inner6_udp_length")
        if packet[at + 6] or packet[at + 7]:  # else it has none, and the kernel knows who may do that (RFC 6935)
            _sum_transport(packet, at, at + length, UDP)

    def _icmp(self, packet: bytearray, at: int) -> None:
        """Let echoes and errors pass, the latter with the quoted packet as this host sent it.

        The rest is for neighbours on a link (RFC 4861) or for routers, which a peer is not. The checksum is adjusted
        in case the quote has other addresses than the peer's own.
        """
        quote = at + ICMP6_HEADER_BYTES
        if len(packet) < quote:
            raise MessageError("inner6_icmp_quote")
        if packet[at] in _ECHO:
            return
        if packet[at] not in ICMP6_ERRORS:
            raise MessageError("inner6_icmp_type")
        if len(packet) < quote + IPV6_HEADER_BYTES or packet[quote] >> 4 != 6:
            raise MessageError("inner6_icmp_quote")
        adjust(packet, at + 2, ones_sum(packet[quote + 8 : quote + 40]))
        packet[quote + 8 : quote + 40] = self._quoted_addresses


def upper_layer(packet: bytes | bytearray) -> Upper:
    """Follow the extension headers of a packet that ends where its length says, and has its IPv6 header.

    Raises MessageError: inner6_hop_by_hop, inner6_routing (the peer would have this host forward it), inner6_options,
    inner6_fragment (one that no sender makes: see ``check_fragment``; the headers are to be in the first one whole,
    RFC 7112).
    """
    protocol, at = packet[6], IPV6_HEADER_BYTES
    fragment = None
    for _ in range(_MOST_EXTENSIONS + 1):
        if protocol == HOP_BY_HOP:
            raise MessageError("inner6_hop_by_hop")
        if protocol == ROUTING:
            raise MessageError("inner6_routing")
        if fragment is not None and fragment & FRAGMENT_OFFSET:
            break
        if protocol == FRAGMENT:
            if fragment is not None or at + _FRAGMENT_BYTES > len(packet):
                raise MessageError("inner6_fragment")
            (fragment,) = WORD.unpack_from(packet, at + 2)
            protocol, at = packet[at], at + _FRAGMENT_BYTES
            check_fragment(fragment, len(packet) - at, protocol, len(packet))
        elif protocol == DESTINATION_OPTIONS:
            end = at + 8 * packet[at + 1] + 8 if at + 1 < len(packet) else len(packet) + 1
            if end > len(packet):
                raise MessageError("inner6_options")
            check_options(packet[at + 2 : end])
            protocol, at = packet[at], end
        else:
            break
    else:
        raise MessageError("inner6_options")
    if fragment is not None and not fragment & FRAGMENT_OFFSET:
        least = ICMP6_HEADER_BYTES if protocol == ICMP6 else HEADER_BYTES.get(protocol, 0)
        if len(packet) - at < least:
            raise MessageError("inner6_fragment")
    return Upper(protocol, at, fragment)


def check_fragment(fragment: int, payload: int, protocol: int, total: int) -> None:
    """Refuse fragments that no sender makes. ``fragment`` is the 16-bit word of offset and flags.

    Refused (MessageError inner6_fragment): empty, reaching past 65535 bytes, not in 8-byte units though more follow,
    and for protocols with ports those that would overwrite the header.
    """
    offset = fragment & FRAGMENT_OFFSET
    if (
        payload == 0
        or offset + total - IPV6_HEADER_BYTES - _FRAGMENT_BYTES > 65535
        or (fragment & MORE_FRAGMENTS and payload % 8)
        or 0 < offset < HEADER_BYTES.get(protocol, 0)
    ):
        raise MessageError("inner6_fragment")


def check_options(options: bytes | bytearray) -> None:
    """Accept well-formed destination options without a home address (RFC 8200 section 4.2).

    Raises MessageError inner6_options.
    """
    at = 0
    while at < len(options):
        if options[at] == _PAD1:
            at += 1
            continue
        end = at + 2 + options[at + 1] if at + 1 < len(options) else len(options) + 1
        if end > len(options) or options[at] == _HOME_ADDRESS:
            raise MessageError("inner6_options")
        at = end


def _sum_transport(packet: bytearray, at: int, end: int, protocol: int) -> None:
    """Compute the checksum of a whole TCP segment or UDP datagram over its pseudo-header, whose addresses sum to 0."""
    place = at + CHECKSUM_AT[protocol]
    (old,) = WORD.unpack_from(packet, place)
    checksum = (old - ones_sum(packet[at:end]) - protocol - (end - at)) % 65535
    if protocol == UDP and checksum == 0:
        checksum = 0xFFFF
    WORD.pack_into(packet, place, checksum)
