"""What scripts send (test_differential.py): packets of programs and of peers, good ones and odd ones, by a seed."""

import random
import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

from pqtun.protocol import private6
from tests.pump import gso
from tests.pump import packets as p
from tests.pump.rig import FAR_OWN, FAR_US, OWN6

FAR_PREFIX: Final = private6.prefix(IPv4Network("10.42.0.0/16"))
PROTOCOLS: Final = [p.ICMP, p.TCP, p.UDP, p.DCCP, p.UDP_LITE, 47]
PROTOCOLS_6: Final = [p.ICMP6, p.TCP, p.UDP, p.DCCP, 47, 59, p.HOP_BY_HOP, p.ROUTING, p.FRAGMENT, p.DESTINATION_OPTIONS]
PAD: Final = bytes([0, 0, 1, 4, 0, 0, 0, 0])
_SYN = 2


class Ends(NamedTuple):
    """Source and target of packets of both versions."""

    source: str
    target: str
    source6: str
    target6: str


def from_here(source: str, target: str) -> Ends:
    """A program here, writing to a peer."""
    peer = private6.address6(OWN6.network, IPv4Address(target))
    return Ends(source, target, str(OWN6.ip), str(peer))


FROM_FAR: Final = Ends(
    FAR_OWN, FAR_US, *(str(private6.address6(FAR_PREFIX, IPv4Address(inner))) for inner in (FAR_OWN, FAR_US))
)


def size(rng: random.Random) -> int:
    return rng.choice([0, 1, 7, 8, 9, 27, 64, 100, 100, 536, 1143, 1144, 1372])


def options(rng: random.Random) -> bytes:
    return rng.choice([b"", b"", b"", b"\1\1\1\1", b"\x94\4\0\0", b"\x83\7\4\1\2\3\4\0", b"\7\3\4\0", b"\1\x94\1\0"])


def packet(rng: random.Random, ends: Ends) -> list[bytes]:
    """A packet such as programs send, or the fragments of one."""
    if rng.random() < 0.1:
        return [syn(rng, ends)]
    return packet6(rng, ends.source6, ends.target6) if rng.random() < 0.3 else packet4(rng, ends.source, ends.target)


def packet4(rng: random.Random, source: str, target: str) -> list[bytes]:
    """The same of IPv4."""
    data = rng.randbytes(size(rng))
    kind = rng.randrange(8)
    if kind < 3:
        return [p.ip(source, target, p.UDP, p.udp(source, target, data, summed=rng.random() < 0.8))]
    if kind < 5:
        flags = rng.choice([2, 0x10, 0x18, 0x11, 0x12, 4])
        return [p.ip(source, target, p.TCP, p.tcp(source, target, data, flags=flags), options=options(rng))]
    if kind == 5:
        return [p.ip(source, target, p.ICMP, p.icmp(rng.choice([0, 8, 13]), 0, bytes(4) + data))]
    if kind == 6:
        quoted = p.udp_packet(target, source, data)[: rng.choice([8, 19, 20, 28, 40, 500])]
        return [p.ip(source, target, p.ICMP, p.icmp(rng.choice([3, 4, 5, 11, 12]), 1, bytes(4) + quoted))]
    whole = p.ip(source, target, rng.choice([p.UDP, p.TCP, p.ICMP, 47]), rng.randbytes(rng.randrange(20, 3000)))
    return p.fragments(whole, rng.choice([8, 24, 544, 1144]))[:4]


def packet6(rng: random.Random, source: str, target: str) -> list[bytes]:
    """The same of IPv6."""
    data = rng.randbytes(size(rng))
    kind = rng.randrange(8)
    if kind < 3:
        whole = p.ip6(source, target, p.UDP, p.udp(source, target, data, summed=rng.random() < 0.9))
    elif kind < 5:
        whole = p.ip6(source, target, p.TCP, p.tcp(source, target, data, flags=rng.choice([2, 0x10, 0x18, 0x11, 4])))
    elif kind == 5:
        message = p.icmp6(source, target, rng.choice([128, 129, 129, 130, 133, 135, 137, 143]), 0, bytes(4) + data)
        whole = p.ip6(source, target, p.ICMP6, message)
    elif kind == 6:
        quoted = p.udp_packet(target, source, data)[: rng.choice([8, 39, 40, 48, 60, 500])]
        whole = p.ip6(source, target, p.ICMP6, p.icmp6(source, target, rng.randrange(1, 6), 0, bytes(4) + quoted))
    else:
        protocol = rng.choice([p.UDP, p.TCP, p.ICMP6, 47])
        whole = p.ip6(source, target, protocol, rng.randbytes(rng.randrange(20, 3000)))
        return p.fragments6(whole, rng.choice([8, 24, 544, 1144]))[:4]
    if rng.random() < 0.2:
        word = struct.pack("!H", rng.choice([0, 0, 1, 8, 0xFFF9]))
        headers = [(p.DESTINATION_OPTIONS, PAD), (p.FRAGMENT, b"\0\0" + word + bytes(4))]
        headers += [(p.DESTINATION_OPTIONS, bytes([0, 0, 201, 4, 0, 0, 0, 0])), (p.ROUTING, PAD), (p.HOP_BY_HOP, PAD)]
        whole = p.extended(whole, *rng.choices(headers, [6, 3, 1, 1, 1], k=rng.choice([1, 1, 2, 6])))
    return [whole]


def syn(rng: random.Random, ends: Ends) -> bytes:
    """What a connection begins with."""
    mss = struct.pack("!BBH", 2, rng.choice([4, 4, 4, 4, 3, 9]), rng.choice([0, 536, 1100, 1220, 1240, 1460, 0xFFFF]))
    extra = (
        rng.choice([b"", b"\1", b"\3\3\7", b"\4\2", b"\0"]) + mss + rng.choice([b"", mss, b"\1\1\x08\x0a" + bytes(8)])
    )
    source, target = (ends.source, ends.target) if rng.random() < 0.6 else (ends.source6, ends.target6)
    flags, extra = rng.choice([_SYN, _SYN | 0x10]), extra + bytes(-len(extra) % 4)
    return gso.tcp_packet(source, target, b"", flags=flags, options=extra)


def odd(rng: random.Random, ends: Ends) -> bytes:
    """Something that nobody sends."""
    if rng.random() < 0.3:
        return odd6(rng, ends)
    if rng.random() < 0.1:
        return p.ip(ends.source, ends.target, rng.choice(PROTOCOLS), rng.randbytes(rng.randrange(24)))
    data = bytearray(rng.choice(packet4(rng, ends.source, ends.target)))
    for _ in range(rng.choice([1, 1, 2, 5])):
        change = rng.randrange(7)
        if change == 0:
            del data[rng.randrange(len(data)) + 1 :]
        elif change == 1:
            data += rng.randbytes(rng.choice([1, 4, 100]))
        elif change == 2 and len(data) >= 10:
            data[9] = rng.choice(PROTOCOLS)
        elif change == 3 and len(data) >= 8:
            data[6:8] = struct.pack("!H", rng.choice([0, 0x2000, 0x4000, 1, 2, 0x2001, 0x1FFF, 0x3FFF, 0x8000]))
        elif change == 4 and len(data) >= 4:
            data[2:4] = struct.pack("!H", rng.choice([0, 19, 20, 21, 28, 39, len(data) - 1, len(data) + 1, 65535]))
        elif change == 5:
            data[0] = rng.choice([0x40, 0x44, 0x46, 0x4F, 0x60])
        else:
            data[rng.choice([0, rng.randrange(min(len(data), 48))])] = rng.randrange(256)
    return bytes(data)


def odd6(rng: random.Random, ends: Ends) -> bytes:
    """The same of IPv6."""
    if rng.random() < 0.1:
        return p.ip6(ends.source6, ends.target6, rng.choice(PROTOCOLS_6), rng.randbytes(rng.randrange(24)))
    data = bytearray(rng.choice(packet6(rng, ends.source6, ends.target6)))
    for _ in range(rng.choice([1, 1, 2, 5])):
        change = rng.randrange(6)
        if change == 0:
            del data[rng.randrange(len(data)) + 1 :]
        elif change == 1:
            data += rng.randbytes(rng.choice([1, 4, 100]))
        elif change == 2 and len(data) >= 7:
            data[6] = rng.choice(PROTOCOLS_6)
        elif change == 3 and len(data) >= 6:
            data[4:6] = struct.pack("!H", rng.choice([0, 7, 8, 20, len(data) - 41, len(data) - 39, 65535]) % 65536)
        elif change == 4 and len(data) > 40:
            data[rng.randrange(40, min(len(data), 64))] = rng.choice([0, 1, 44, 60, 255])
        else:
            data[rng.choice([0, rng.randrange(min(len(data), 64))])] = rng.randrange(256)
    return bytes(data)


def flow(rng: random.Random, port: int) -> list[bytes]:
    """A run of packets of one flow; sometimes there is a break in it."""
    source, target = (FAR_OWN, FAR_US) if rng.random() < 0.6 else (FROM_FAR.source6, FROM_FAR.target6)
    at, number, packets = rng.randrange(2**32), rng.randrange(65536), []
    fixed = {"dont_fragment": rng.random() < 0.5}
    tcp, length = rng.random() < 0.6, rng.choice([1, 100, 1000, 1144])
    for _ in range(rng.choice([2, 10, 70])):
        odd = rng.randrange(30)
        data = rng.randbytes(rng.choice([0, 1, length, 1200]) if odd == 0 else length)
        ports, identification = (port, 80), number + (odd == 1)
        if tcp:
            flags = rng.choice([2, 0x11, 0x12, 0x14, 0x18, 0x50, 0x90]) if odd == 2 else 0x10
            more = {"service": int(odd == 3), "ttl": 64 - (odd == 4), "window": 1024 + (odd == 5)}
            more |= {"acknowledged": 77 + (odd == 6), "sequence": at + (odd == 7)}
            extra = bytes([1, 1, 1, 1 + (odd == 8)]) if length == 1000 else b""
            packets.append(
                gso.tcp_packet(
                    source,
                    target,
                    data,
                    flags=flags,
                    ports=ports,
                    identification=identification,
                    options=extra,
                    **fixed,
                    **more,
                )
            )
        else:
            packets.append(gso.udp_packet(source, target, data, ports=ports, identification=identification, **fixed))
        at, number = at + len(data), number + 1
    return packets
