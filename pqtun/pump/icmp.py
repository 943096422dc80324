"""ICMP messages: errors to this host's own programs, and echo requests to peers (RFC 792, 1812, 1191, 4443). Pure.

Errors come from the address that the program wanted: our own as a source would be dropped as martian. There is none
where none may be sent: about an ICMP error, a fragment that is not the first, or what is too short to tell.
"""

from ipaddress import IPv4Address
from struct import pack
from typing import Final

from pqtun.protocol.errors import MessageError
from pqtun.pump import inner6
from pqtun.pump.inner import FRAGMENT_OFFSET, ICMP, ICMP_ERRORS, IPV4_HEADER_BYTES, is_ipv6, largest
from pqtun.pump.transport import ones_sum

DESTINATION_UNREACHABLE: Final = 3
HOST_UNREACHABLE: Final = 1
FRAGMENTATION_NEEDED: Final = 4
ECHO_REPLY: Final = 0
ECHO_REQUEST: Final = 8
DESTINATION_UNREACHABLE_6: Final = 1
ADDRESS_UNREACHABLE_6: Final = 3
PACKET_TOO_BIG_6: Final = 2
REDIRECT_6: Final = 137
INTERNETWORK_CONTROL: Final = 0xC0  # the type of service that RFC 1812 section 4.3.2.5 asks for in errors
# An ICMP error has at most 576 bytes (RFC 1812 section 4.3.2.3): two headers and 548 bytes of the packet it is about.
QUOTE_BYTES: Final = 576 - IPV4_HEADER_BYTES - 8
# An ICMPv6 error has at most the least MTU of IPv6 (RFC 4443 section 2.4).
QUOTE_BYTES_6: Final = 1280 - inner6.IPV6_HEADER_BYTES - inner6.ICMP6_HEADER_BYTES
TTL: Final = 64

# Echo requests of ours: their identifier, and what stands before the token. "pq"; programs use others.
ECHO_IDENTIFIER: Final = 0x7071
ECHO_PREFIX: Final = b"pqtunech"
TOKEN_BYTES: Final = 8


def host_unreachable(packet: bytes) -> bytes | None:
    """Return the "host unreachable" (of IPv6: address unreachable) about a packet which a program here sent."""
    if is_ipv6(packet):
        return _error6(packet, pack("!BBHI", DESTINATION_UNREACHABLE_6, ADDRESS_UNREACHABLE_6, 0, 0))
    return _error(packet, pack("!BBHI", DESTINATION_UNREACHABLE, HOST_UNREACHABLE, 0, 0))


def too_big(packet: bytes, mtu: int) -> bytes | None:
    """Return what tells the program that the way takes only ``mtu`` bytes: fragmentation needed, or packet too big.

    The latter says 1280 at least, as every path of IPv6 takes that.
    """
    if is_ipv6(packet):
        return _error6(packet, pack("!BBHI", PACKET_TOO_BIG_6, 0, 0, largest(packet, mtu)))
    return _error(packet, pack("!BBHHH", DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, mtu))


def echo_request(source: IPv4Address, token: bytes = bytes(TOKEN_BYTES), size: int = 0) -> bytes:
    """Return an ICMP echo request from ``source`` to 0.0.0.0, which the peer sets to its own address.

    It has ``size`` bytes, but no less than the 44 that it needs. ``token``: 8 bytes by which the answer is known.
    """
    body = pack("!BBHHH", ECHO_REQUEST, 0, 0, ECHO_IDENTIFIER, 0) + ECHO_PREFIX + token
    return _packet(source.packed, bytes(4), body.ljust(size - IPV4_HEADER_BYTES, b"\0"))


def echo_token(packet: bytes) -> bytes | None:
    """Return the token if ``packet`` answers an ``echo_request``; the first fragment of an answer will do.

    Neither addresses nor checksums are looked at: PQConnect leaves them as they were.
    """
    if len(packet) < IPV4_HEADER_BYTES or packet[0] >> 4 != 4 or packet[9] != ICMP:
        return None
    at = (packet[0] & 15) * 4
    known = pack("!H", ECHO_IDENTIFIER), ECHO_PREFIX
    found = packet[at + 4 : at + 6], packet[at + 8 : at + 16]
    token = packet[at + 16 : at + 16 + TOKEN_BYTES]
    total = int.from_bytes(packet[2:4], "big")
    if at < IPV4_HEADER_BYTES or not at + 16 + TOKEN_BYTES <= total <= len(packet):
        return None
    if packet[at] != ECHO_REPLY or int.from_bytes(packet[6:8], "big") & FRAGMENT_OFFSET or found != known:
        return None
    return bytes(token)


def _error(packet: bytes, head: bytes) -> bytes | None:
    header = (packet[0] & 15) * 4 if packet else 0
    if header < IPV4_HEADER_BYTES or len(packet) < header + 8:
        return None
    if int.from_bytes(packet[6:8], "big") & FRAGMENT_OFFSET:
        return None
    if packet[9] == ICMP and packet[header] in ICMP_ERRORS:
        return None
    return _packet(packet[16:20], packet[12:16], head + packet[:QUOTE_BYTES], service=INTERNETWORK_CONTROL)


def _error6(packet: bytes, head: bytes) -> bytes | None:
    if len(packet) < inner6.IPV6_HEADER_BYTES:
        return None
    try:
        protocol, at, fragment = inner6.upper_layer(packet)
    except MessageError:
        return None
    if len(packet) < at + 8 or (fragment or 0) & inner6.FRAGMENT_OFFSET:
        return None
    if protocol == inner6.ICMP6 and (packet[at] < 128 or packet[at] == REDIRECT_6):
        return None
    addresses = packet[24:40] + packet[8:24]
    body = head + packet[:QUOTE_BYTES_6]
    body = body[:2] + _checksum(body, ones_sum(addresses) + inner6.ICMP6 + len(body)) + body[4:]
    return pack("!IHBB", 6 << 28, len(body), inner6.ICMP6, TTL) + addresses + body


def _packet(source: bytes, destination: bytes, body: bytes, *, service: int = 0) -> bytes:
    """An IPv4 packet that carries an ICMP message whose checksum is still 0."""
    body = body[:2] + _checksum(body) + body[4:]
    ip = pack("!BBHHHBBH", 0x45, service, IPV4_HEADER_BYTES + len(body), 0, 0, TTL, ICMP, 0) + source + destination
    return ip[:10] + _checksum(ip) + ip[12:] + body


def _checksum(data: bytes, besides: int = 0) -> bytes:
    return pack("!H", -(ones_sum(data) + besides) % 65535)
