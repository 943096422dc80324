"""ICMP messages: to this host's own programs, and echo requests to peers (RFC 792, RFC 1812 section 4.3.2). Pure."""

from ipaddress import IPv4Address
from struct import pack

from pqtun.pump.inner import (
    FRAGMENT_OFFSET,
    ICMP,
    ICMP_ERRORS,
    IPV4_HEADER_BYTES,
    ones_sum,
)

DESTINATION_UNREACHABLE = 3
HOST_UNREACHABLE = 1
ECHO_REQUEST = 8
INTERNETWORK_CONTROL = 0xC0  # the type of service that RFC 1812 section 4.3.2.5 asks for in errors
# An ICMP error has at most 576 bytes (RFC 1812 section 4.3.2.3): two headers and 548 bytes of the packet it is about.
QUOTE_BYTES = 576 - IPV4_HEADER_BYTES - 8
TTL = 64


def host_unreachable(packet: bytes) -> bytes | None:
    """Return the ICMP "host unreachable" that answers an IPv4 packet which a program here sent, for the TUN device.

    It comes from the address that the program wanted: our own as a source would be dropped as martian. None where no
    error may be sent: about an ICMP error, a fragment that is not the first, or what is too short to tell.
    """
    header = (packet[0] & 15) * 4 if packet else 0
    if header < IPV4_HEADER_BYTES or len(packet) < header + 8:
        return None
    if int.from_bytes(packet[6:8], "big") & FRAGMENT_OFFSET:
        return None
    if packet[9] == ICMP and packet[header] in ICMP_ERRORS:
        return None
    return _packet(
        packet[16:20],
        packet[12:16],
        pack("!BBHI", DESTINATION_UNREACHABLE, HOST_UNREACHABLE, 0, 0) + packet[:QUOTE_BYTES],
        service=INTERNETWORK_CONTROL,
    )


def echo_request(source: IPv4Address, sequence: int = 0) -> bytes:
    """Return an ICMP echo request (28 bytes, RFC 792) from ``source`` to 0.0.0.0, which the peer sets to its own."""
    return _packet(source.packed, bytes(4), pack("!BBHHH", ECHO_REQUEST, 0, 0, 0, sequence))


def _packet(source: bytes, destination: bytes, body: bytes, *, service: int = 0) -> bytes:
    """An IPv4 packet that carries an ICMP message whose checksum is still 0."""
    body = body[:2] + _checksum(body) + body[4:]
    ip = pack("!BBHHHBBH", 0x45, service, IPV4_HEADER_BYTES + len(body), 0, 0, TTL, ICMP, 0) + source + destination
    return ip[:10] + _checksum(ip) + ip[12:] + body


def _checksum(data: bytes) -> bytes:
    return pack("!H", -ones_sum(data) % 65535)
