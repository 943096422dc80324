"""IPv4 packets for tests, built and checked the slow and obvious way (RFC 791, 792, 768, 9293, 1071)."""

import struct
from ipaddress import IPv4Address

ICMP, TCP, UDP, DCCP, UDP_LITE, CONTROL = 1, 6, 17, 33, 136, 253
CHECKSUM_AT = {TCP: 16, UDP: 6, DCCP: 6, UDP_LITE: 6}


def checksum(data: bytes) -> int:
    """The RFC 1071 checksum, word by word."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def valid(data: bytes) -> bool:
    return checksum(data) == 0


def pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    return IPv4Address(source).packed + IPv4Address(destination).packed + struct.pack("!BBH", 0, protocol, length)


def ip(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    fragment: int = 0,
    options: bytes = b"",
    ttl: int = 64,
    identification: int = 1,
) -> bytes:
    header = struct.pack(
        "!BBHHHBBH",
        0x40 | (20 + len(options)) // 4,
        0,
        20 + len(options) + len(payload),
        identification,
        fragment,
        ttl,
        protocol,
        0,
    )
    header += IPv4Address(source).packed + IPv4Address(destination).packed + options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def udp(
    source: str, destination: str, data: bytes, *, sport: int = 1000, dport: int = 2000, summed: bool = True
) -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    if summed:
        value = checksum(pseudo(source, destination, UDP, len(segment)) + segment) or 0xFFFF
        segment = segment[:6] + struct.pack("!H", value) + segment[8:]
    return segment


def tcp(source: str, destination: str, data: bytes, *, sport: int = 1000, dport: int = 80, flags: int = 2) -> bytes:
    segment = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 0x50, flags, 1024, 0, 0) + data
    value = checksum(pseudo(source, destination, TCP, len(segment)) + segment)
    return segment[:16] + struct.pack("!H", value) + segment[18:]


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    message = struct.pack("!BBH", kind, code, 0) + rest
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def udp_packet(source: str, destination: str, data: bytes = b"hello") -> bytes:
    return ip(source, destination, UDP, udp(source, destination, data))


def tcp_packet(source: str, destination: str, data: bytes = b"") -> bytes:
    return ip(source, destination, TCP, tcp(source, destination, data))


def cleared(packet: bytes) -> bytes:
    """What a sender puts into the tunnel."""
    return packet[:16] + bytes(4) + packet[20:]


def fragments(packet: bytes, size: int) -> list[bytes]:
    """Cut a packet without options into fragments with ``size`` bytes of payload each (a multiple of 8)."""
    payload = packet[20:]
    parts = []
    for at in range(0, len(payload), size):
        more = 0x2000 if at + size < len(payload) else 0
        source, destination = (str(IPv4Address(packet[i : i + 4])) for i in (12, 16))
        parts.append(ip(source, destination, packet[9], payload[at : at + size], fragment=more | at // 8))
    return parts


def reassembled(parts: list[bytes]) -> bytes:
    """The payload of fragments that are in order."""
    return b"".join(part[(part[0] & 15) * 4 :] for part in parts)


def transport_valid(packet: bytes) -> bool:
    """Whether the TCP or UDP checksum of a whole packet holds (0 in UDP: there is none)."""
    header = (packet[0] & 15) * 4
    segment = packet[header:]
    if packet[9] == UDP:
        if segment[6:8] == b"\0\0":
            return True
        segment = segment[: int.from_bytes(segment[4:6], "big")]
    source, destination = (str(IPv4Address(packet[i : i + 4])) for i in (12, 16))
    return valid(pseudo(source, destination, packet[9], len(segment)) + segment)
