"""What the kernel does with packets behind a virtio header, modelled the plain way (linux/virtio_net.h, RFC 1071).

It cuts what an engine writes to a TUN device with IFF_VNET_HDR, and says which segments a large packet stands for.
"""

import struct

from tests.pump import packets as p

HEADER = struct.Struct("=BBHHHH")  # flags, GSO type, header length, GSO size, checksum start, checksum offset
NEEDS_CSUM = 1
NONE, TCPV4, TCPV6, UDP_L4, ECN = 0, 1, 4, 5, 0x80
PLAIN = bytes(HEADER.size)
IPV4_BYTES, IPV6_BYTES, UDP_BYTES = 20, 40, 8
FIN, PSH, CWR = 1, 8, 0x80
DONT_FRAGMENT = 0x4000
MOST_SEGMENTS = 64


def word_sum(data: bytes) -> int:
    """The folded one's-complement sum of 16-bit words."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def is_ipv6(packet: bytes) -> bool:
    return len(packet) >= IPV6_BYTES and packet[0] >> 4 == 6


def upper(packet: bytes) -> tuple[int, int]:
    """The protocol behind the IP header, of IPv6 behind destination options too, and where it begins."""
    if not is_ipv6(packet):
        return packet[9], (packet[0] & 15) * 4
    protocol, at = packet[6], IPV6_BYTES
    while protocol == p.DESTINATION_OPTIONS:
        protocol, at = packet[at], at + 8 * packet[at + 1] + 8
    return protocol, at


def protocol(packet: bytes) -> int:
    return upper(packet)[0]


def header_bytes(packet: bytes) -> int:
    """Bytes of all before the transport header."""
    return upper(packet)[1]


def pseudo(packet: bytes, length: int) -> bytes:
    """Something with the sum of the pseudo-header."""
    addresses = packet[8:40] if is_ipv6(packet) else packet[12:20]
    return addresses + struct.pack("!BBH", 0, protocol(packet), length)


def put(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def put_word(data: bytes, at: int, value: int) -> bytes:
    return put(data, at, struct.pack("!H", value))


def word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def ip_summed(packet: bytes) -> bytes:
    """With a fresh IP header checksum, which IPv6 has not."""
    if is_ipv6(packet):
        return packet
    end = (packet[0] & 15) * 4
    packet = put_word(packet, 10, 0)
    return put_word(packet, 10, 0xFFFF ^ word_sum(packet[:end]))


def summed(packet: bytes) -> bytes:
    """With fresh checksums of the IP header and of TCP or UDP."""
    packet = ip_summed(packet)
    header = header_bytes(packet)
    at = header + p.CHECKSUM_AT[protocol(packet)]
    packet = put_word(packet, at, 0)
    value = 0xFFFF ^ word_sum(pseudo(packet, len(packet) - header) + packet[header:])
    return put_word(packet, at, (value or 0xFFFF) if protocol(packet) == p.UDP else value)


def segments(packet: bytes, size: int) -> list[bytes]:
    """The packets that a large one of TCP or UDP stands for, each with checksums of its own."""
    transport = header_bytes(packet)
    tcp = protocol(packet) == p.TCP
    headers = transport + ((packet[transport + 12] >> 4) * 4 if tcp else UDP_BYTES)
    payload = packet[headers:]
    result = []
    for number, at in enumerate(range(0, len(payload), size)):
        piece = packet[:headers] + payload[at : at + size]
        if is_ipv6(packet):
            piece = put_word(piece, 4, len(piece) - IPV6_BYTES)
        else:
            piece = put_word(piece, 2, len(piece))
            piece = put_word(piece, 4, (word(packet, 4) + number) & 0xFFFF)
        if tcp:
            sequence = int.from_bytes(packet[transport + 4 : transport + 8], "big") + at
            piece = put(piece, transport + 4, (sequence & 0xFFFFFFFF).to_bytes(4, "big"))
            flags = packet[transport + 13]
            if number:
                flags &= ~CWR
            if at + size < len(payload):
                flags &= ~(FIN | PSH)
            piece = put(piece, transport + 13, bytes([flags]))
        else:
            piece = put_word(piece, transport + 4, len(piece) - transport)
        result.append(summed(piece))
    return result


def cut(message: bytes) -> list[bytes]:
    """The packets in a message that was written to the TUN device; it is one that the kernel takes."""
    flags, kind, hdr_len, size, start, offset = HEADER.unpack_from(message)
    packet = message[HEADER.size :]
    assert flags in (0, NEEDS_CSUM)
    if kind == NONE:
        assert size == hdr_len == 0
        if not flags:
            assert start == offset == 0
            return [packet]
        assert_partial(packet, start, offset)
        return [summed(packet)]
    assert flags == NEEDS_CSUM, "the kernel wants a checksum to finish in what it cuts"
    assert kind == gso_type(packet)
    assert_partial(packet, start, offset)
    headers = start + ((packet[start + 12] >> 4) * 4 if kind != UDP_L4 else UDP_BYTES)
    assert hdr_len == headers
    if is_ipv6(packet):
        assert word(packet, 4) == len(packet) - start
    else:
        assert word(packet, 2) == len(packet)
        assert p.valid(packet[:start])
    assert kind != UDP_L4 or word(packet, start + 4) == len(packet) - start
    count = -(-(len(packet) - headers) // size)
    assert 2 <= count <= MOST_SEGMENTS
    return segments(packet, size)


def gso_type(packet: bytes) -> int:
    """The kind of large packet that it would be."""
    if protocol(packet) != p.TCP:
        return UDP_L4
    return TCPV6 if is_ipv6(packet) else TCPV4


def assert_partial(packet: bytes, start: int, offset: int) -> None:
    """The field holds the sum of the pseudo-header, and the hints say where."""
    header = header_bytes(packet)
    assert start == header
    assert offset == p.CHECKSUM_AT[protocol(packet)]
    assert is_ipv6(packet) or not word(packet, 6) & 0x3FFF, "no fragment"
    length = len(packet) - header
    assert word(packet, header + offset) % 0xFFFF == word_sum(pseudo(packet, length)) % 0xFFFF


def loose(packet: bytes) -> bytes:
    """Without the identification where it says nothing: packets that are never cut (RFC 6864)."""
    if len(packet) < IPV4_BYTES or is_ipv6(packet) or not word(packet, 6) & DONT_FRAGMENT:
        return packet
    assert p.valid(packet[: (packet[0] & 15) * 4])
    return put(put(packet, 4, bytes(2)), 10, bytes(2))


def flow(packet: bytes) -> tuple[object, ...]:
    """Packets of one flow keep their order."""
    if is_ipv6(packet):
        if packet[6] in (p.FRAGMENT, p.DESTINATION_OPTIONS):
            return ("fragment",)
        return (packet[6], packet[8:44]) if packet[6] in (p.TCP, p.UDP) else ("other",)
    if len(packet) < IPV4_BYTES or packet[9] not in (p.TCP, p.UDP):
        return ("other",)
    if word(packet, 6) & 0x3FFF:
        return ("fragment",)
    header = (packet[0] & 15) * 4
    return packet[9], packet[12:20], packet[header : header + 4]


def tcp_packet(
    source: str,
    destination: str,
    data: bytes,
    *,
    sequence: int = 1,
    acknowledged: int = 77,
    flags: int = 0x10,
    window: int = 1024,
    options: bytes = b"",
    ports: tuple[int, int] = (1000, 80),
    identification: int = 1,
    dont_fragment: bool = True,
    service: int = 0,
    ttl: int = 64,
) -> bytes:
    """A TCP packet with right checksums."""
    offset = (20 + len(options)) // 4 << 4
    fixed = (*ports, sequence & 0xFFFFFFFF, acknowledged, offset, flags, window, 0, 0)
    segment = struct.pack("!HHIIBBHHH", *fixed) + options + data
    if ":" in source:
        return summed(p.ip6(source, destination, p.TCP, segment, ttl=ttl, label=service << 20))
    fragment = DONT_FRAGMENT if dont_fragment else 0
    packet = p.ip(
        source, destination, p.TCP, segment, fragment=fragment, ttl=ttl, identification=identification & 0xFFFF
    )
    return summed(put(packet, 1, bytes([service])))


def udp_packet(
    source: str,
    destination: str,
    data: bytes,
    *,
    ports: tuple[int, int] = (1000, 2000),
    identification: int = 1,
    dont_fragment: bool = True,
) -> bytes:
    """A UDP packet with right checksums."""
    datagram = struct.pack("!HHHH", *ports, UDP_BYTES + len(data), 0) + data
    if ":" in source:
        return summed(p.ip6(source, destination, p.UDP, datagram))
    fragment = DONT_FRAGMENT if dont_fragment else 0
    return summed(p.ip(source, destination, p.UDP, datagram, fragment=fragment, identification=identification & 0xFFFF))


def large(packet: bytes, size: int, *, hdr_len: int | None = None, kind: int | None = None) -> bytes:
    """A large packet as the TUN device hands it over: behind a virtio header, its checksum begun."""
    start = header_bytes(packet)
    tcp = protocol(packet) == p.TCP
    headers = start + ((packet[start + 12] >> 4) * 4 if tcp else UDP_BYTES)
    if kind is None:
        kind = gso_type(packet)
    offset = p.CHECKSUM_AT[protocol(packet)]
    head = HEADER.pack(NEEDS_CSUM, kind, headers if hdr_len is None else hdr_len, size, start, offset)
    return head + begun(packet)


def begun(packet: bytes) -> bytes:
    """With the sum of the pseudo-header in place of the checksum."""
    start = header_bytes(packet)
    value = word_sum(pseudo(packet, len(packet) - start))
    return put_word(packet, start + p.CHECKSUM_AT[protocol(packet)], value)
