"""Packets for tests, built and checked the slow and obvious way (RFC 791, 792, 768, 8200, 4443, 9293, 1071)."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

ICMP, TCP, UDP, DCCP, UDP_LITE, CONTROL = 1, 6, 17, 33, 136, 253
ICMP6, HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 58, 0, 43, 44, 60
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
    addresses = ip_address(source).packed + ip_address(destination).packed
    if ":" in source:
        return addresses + struct.pack("!IHBB", length, 0, 0, protocol)
    return addresses + struct.pack("!BBH", 0, protocol, length)


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


def ip6(source: str, destination: str, protocol: int, payload: bytes, *, ttl: int = 64, label: int = 0) -> bytes:
    """An IPv6 packet; ``label``: traffic class and flow label."""
    header = struct.pack("!IHBB", 6 << 28 | label, len(payload), protocol, ttl)
    return header + IPv6Address(source).packed + IPv6Address(destination).packed + payload


def extended(packet: bytes, *headers: tuple[int, bytes]) -> bytes:
    """An IPv6 packet with extension headers before what it has; the first byte of each is overwritten."""
    following, chain = packet[6], b""
    for kind, header in reversed(headers):
        chain = bytes([following]) + header[1:] + chain
        following = kind
    length = struct.pack("!HB", len(packet) - 40 + len(chain), following)
    return packet[:4] + length + packet[7:40] + chain + packet[40:]


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


def icmp6(source: str, destination: str, kind: int, code: int, rest: bytes) -> bytes:
    message = struct.pack("!BBH", kind, code, 0) + rest
    value = checksum(pseudo(source, destination, ICMP6, len(message)) + message)
    return message[:2] + struct.pack("!H", value) + message[4:]


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    message = struct.pack("!BBH", kind, code, 0) + rest
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def udp_packet(source: str, destination: str, data: bytes = b"hello") -> bytes:
    return (ip6 if ":" in source else ip)(source, destination, UDP, udp(source, destination, data))


def tcp_packet(source: str, destination: str, data: bytes = b"") -> bytes:
    return (ip6 if ":" in source else ip)(source, destination, TCP, tcp(source, destination, data))


def cleared(packet: bytes) -> bytes:
    """What a sender puts into the tunnel."""
    if packet[:1] and packet[0] >> 4 == 6:
        return packet[:24] + bytes(16) + packet[40:]
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


def fragments6(packet: bytes, size: int) -> list[bytes]:
    """The same for IPv6 without extension headers."""
    whole, protocol, parts = packet[40:], packet[6], []
    for at in range(0, len(whole), size):
        word = at | (at + size < len(whole))
        piece = struct.pack("!BBHI", protocol, 0, word, 77) + whole[at : at + size]
        parts.append(packet[:4] + struct.pack("!HB", len(piece), FRAGMENT) + packet[7:40] + piece)
    return parts


def reassembled(parts: list[bytes]) -> bytes:
    """The payload of fragments that are in order."""
    return b"".join(part[(part[0] & 15) * 4 :] for part in parts)


def transport_valid(packet: bytes) -> bool:
    """Whether the TCP, UDP or ICMPv6 checksum of a whole packet holds (0 in UDP: there is none)."""
    six = packet[0] >> 4 == 6
    protocol = packet[6] if six else packet[9]
    segment = packet[40 if six else (packet[0] & 15) * 4 :]
    if protocol == UDP:
        if segment[6:8] == b"\0\0":
            return True
        segment = segment[: int.from_bytes(segment[4:6], "big")]
    ends = (packet[8:24], packet[24:40]) if six else (packet[12:16], packet[16:20])
    source, destination = (str(ip_address(end)) for end in ends)
    return valid(pseudo(source, destination, protocol, len(segment)) + segment)
