"""What test_tun's programs do with a TUN device, from the other side of which the kernel's own TCP speaks."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from pqtun.daemon.host import make_tun, segment_limits
from pqtun.pump.tun import open_tun
from tests.pump import packets as p

__all__ = [
    "TUNSETOFFLOAD", "TUN_F_CSUM", "TUN_F_TSO4", "IPv4Interface", "fcntl", "ip", "make_tun", "open_tun", "os", "p",
    "read_all", "segment_limits", "socket", "stream",
]  # fmt: skip

# linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM = 1
TUN_F_TSO4 = 2

_VNET = struct.Struct("=BBHHHH")  # linux/virtio_net.h, struct virtio_net_hdr
_NEEDS_CSUM = 1
_SECONDS = 10.0


@dataclass(frozen=True)
class Train:
    """One read with a virtio header."""

    flags: int
    gso_type: int
    gso_size: int
    csum_start: int
    csum_offset: int
    packet: bytes

    @property
    def payload(self) -> int:
        return len(self.packet) - 20 - (self.packet[32] >> 4) * 4

    @property
    def segments(self) -> int:
        return -(-self.payload // self.gso_size) if self.gso_size else 1


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def read_all(queues: list[int], quiet: float = 0.3) -> list[bytes]:
    """Read IPv4 packets until nothing comes for ``quiet`` seconds."""
    packets = []
    while ready := select.select(queues, [], [], quiet)[0]:
        packets += [os.read(queue, 65536) for queue in ready]
    return [packet for packet in packets if packet[0] >> 4 == 4]


def stream(queue: int, own: str, peer: str, count: int) -> list[Train]:
    """Let the kernel send ``count`` bytes to a peer that we play; return what it wrote with data in it."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((peer, 80))
    rest = memoryview(bytes(count))
    seen: list[Train] = []
    first = got = 0
    deadline = time.monotonic() + _SECONDS
    while got < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{got} of {count} bytes")
        if rest and first and select.select([], [sock], [], 0)[1]:
            rest = rest[sock.send(rest) :]
        if not select.select([queue], [], [], 0.1)[0]:
            continue
        read = os.read(queue, 10 + 65536)
        flags, kind, _, size, start, offset = _VNET.unpack_from(read)
        packet = read[10:]
        if packet[0] >> 4 != 4 or packet[9] != p.TCP or packet[16:20] != IPv4Address(peer).packed:
            continue
        sport, _, sequence = struct.unpack_from("!HHI", packet, 20)
        if packet[33] & 2:  # SYN
            first = sequence + 1
            _answer(queue, peer, own, sport, first, syn=True)
            continue
        train = Train(flags, kind, size, start, offset, packet)
        if train.payload:
            seen.append(train)
            if (sequence - first) & 0xFFFFFFFF == got:
                got += train.payload
            _answer(queue, peer, own, sport, first + got, syn=False)
    sock.close()
    return seen


def _answer(queue: int, source: str, destination: str, dport: int, acknowledged: int, *, syn: bool) -> None:
    options = struct.pack("!BBHBBBBBBII", 2, 4, 1356, 3, 3, 7, 1, 8, 10, 1, 0) if syn else b""
    options = options or struct.pack("!BBBBII", 1, 1, 8, 10, 1, 0)
    options += bytes(-len(options) % 4)
    segment = struct.pack(
        "!HHIIBBHHH",
        80,
        dport,
        1000 if syn else 1001,
        acknowledged & 0xFFFFFFFF,
        (20 + len(options)) // 4 << 4,
        0x12 if syn else 0x10,
        65535 if syn else 60000,
        0,
        0,
    )
    pseudo = ~p.checksum(p.pseudo(source, destination, p.TCP, len(segment + options))) & 0xFFFF
    segment = segment[:16] + struct.pack("!H", pseudo) + segment[18:] + options
    os.write(queue, _VNET.pack(_NEEDS_CSUM, 0, 0, 0, 20, 16) + p.ip(source, destination, p.TCP, segment))
