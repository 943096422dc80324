"""An attacker on the path between client and server: sees all packets, sends any, changes none.

`python -m benchmarks.attacker DEVICE SERVER`, in the router's namespace. Each line of its input is an order, a
JSON object, answered with one:

    {"do": "watch", "seconds": 1}                  keeps datagrams of both directions, and handshakes
    {"do": KIND, "seconds": 5, "rate": 20000}      says "begin" and sends datagrams of that KIND (see KINDS)

It is fast enough to be no measurement of Python: packets are made first, then handed over by sendmmsg(2). 64-bit Linux.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SERVER_PORT = 42424
HANDSHAKE, COOKIE, HINT = b"\x01\x00", b"pqccookE", b"\x03\x00"
HANDSHAKE_BYTES, COOKIE_BYTES = 1299, 144
TUNNEL_HEAD = 40  # bytes before the ciphertext: type 2, tunnel id 32, epoch 2, counter 4
KEPT = 4096  # datagrams of each direction
MADE = 20_000  # packets of a kind: so many before the first is sent again
BATCH = 64

# linux/if_packet.h, linux/virtio_net.h
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_GSO_UDP = 5
_ALL = 3  # linux/if_ether.h; with any other protocol one sees what arrives only
_ETHERNET, _VNET = 14, 10
_MMSGHDR = struct.Struct("QIIQQQQIIII")  # name, its length, iovec, their number, control, its length, flags, sent
_IOVEC = struct.Struct("QQ")


@dataclass(frozen=True)
class Datagram:
    """One that was seen, or is to be sent."""

    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes

    def packet(self) -> bytes:
        """As an IPv4 packet; without UDP checksum (RFC 768), the kernel writes the header's."""
        length = 8 + len(self.data)
        addresses = socket.inet_aton(self.source[0]) + socket.inet_aton(self.destination[0])
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
        return header + struct.pack(">HHHH", self.source[1], self.destination[1], length, 0) + self.data


@dataclass
class Seen:
    """What the attacker has seen."""

    to_server: list[Datagram] = field(default_factory=list)
    to_client: list[Datagram] = field(default_factory=list)
    handshakes: list[Datagram] = field(default_factory=list)

    def take(self, datagram: Datagram) -> None:
        """Keep it, in the place of an older one."""
        if datagram.data[:2] == HANDSHAKE and len(datagram.data) == HANDSHAKE_BYTES:
            kept = self.handshakes
        elif len(datagram.data) > TUNNEL_HEAD:
            kept = self.to_server if datagram.destination[1] == SERVER_PORT else self.to_client
        else:
            return
        kept.append(datagram)
        del kept[:-KEPT]


def datagrams(frame: bytes) -> Iterator[Datagram]:
    """The UDP datagrams of a frame with its virtio header: several where the sender leaves segmentation to others."""
    gso_type, gso_size = frame[1], int.from_bytes(frame[4:6], sys.byteorder)
    ip = frame[_VNET + _ETHERNET :]
    if len(ip) < 28 or ip[0] >> 4 != 4 or ip[9] != socket.IPPROTO_UDP:
        return
    udp = ip[4 * (ip[0] & 15) : int.from_bytes(ip[2:4], "big")]
    ports = struct.unpack_from(">HH", udp)
    if SERVER_PORT not in ports:
        return
    source, destination = (socket.inet_ntoa(ip[at : at + 4]) for at in (12, 16))
    data = udp[8:]
    size = gso_size if gso_type == _GSO_UDP and gso_size else max(len(data), 1)
    for at in range(0, len(data), size):
        yield Datagram((source, ports[0]), (destination, ports[1]), data[at : at + size])


def watch(device: str, seconds: float, seen: Seen) -> None:
    """Keep what passes for so long."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as sock:
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        sock.bind((device, _ALL))
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                frame = sock.recv(70_000)
            except TimeoutError:
                return
            for datagram in datagrams(frame):
                seen.take(datagram)


class Forger:
    """Makes datagrams of each kind from what was seen."""

    def __init__(self, seen: Seen, server: str, seed: str) -> None:
        self._seen, self._server = seen, (server, SERVER_PORT)
        self._dice = random.Random(seed)

    def make(self, kind: str) -> Datagram:
        """One datagram."""
        return KINDS[kind](self)

    def anybody(self) -> tuple[str, int]:
        """A source address and port that may be anybody's."""
        address = ipaddress.IPv4Address(self._dice.randrange(0x0B000000, 0x7E000000))
        return str(address), self._dice.randrange(1024, 65536)

    def somebody(self) -> tuple[str, int]:
        """A source that is always the same host."""
        return "203.0.113.77", self._dice.randrange(1024, 65536)

    def one_of_ours(self) -> Datagram:
        """A datagram of a live tunnel, of either direction."""
        return self._dice.choice(self._dice.choice([self._seen.to_server, self._seen.to_client]))

    def garbage_handshake(self, source: tuple[str, int]) -> Datagram:
        return Datagram(source, self._server, HANDSHAKE + self._dice.randbytes(HANDSHAKE_BYTES - 2))

    def replayed_handshake(self) -> Datagram:
        handshake = self._dice.choice(self._seen.handshakes)
        source = self._dice.choice([handshake.source, self.anybody()])
        return Datagram(source, handshake.destination, handshake.data)

    def forged(self, source: tuple[str, int] | None = None) -> Datagram:
        """A right tunnel id, epochs and counters of all sorts, noise for a ciphertext."""
        like = self.one_of_ours()
        epoch, counter = struct.unpack_from(">HI", like.data, 34)
        epochs = [0, epoch - 1, epoch, epoch, epoch, epoch + 1, epoch + 2, epoch + 4, epoch + 5, epoch + 100, 0xFFFF]
        counters = [0, counter, counter + 1, counter + 90, counter + 1000, counter + 65_000, counter + (1 << 20)]
        counters += [0xFFFFFFFF, self._dice.randrange(1 << 32)]
        chosen = self._dice.choice(epochs) & 0xFFFF, self._dice.choice(counters) & 0xFFFFFFFF
        noise = self._dice.randbytes(self._dice.choice([16, 17, 60, 200, len(like.data) - TUNNEL_HEAD]))
        data = like.data[:34] + struct.pack(">HI", *chosen) + noise
        return Datagram(source or like.source, like.destination, data)

    def replayed(self, source: tuple[str, int] | None = None) -> Datagram:
        like = self.one_of_ours()
        return Datagram(source or like.source, like.destination, like.data)

    def flipped(self) -> Datagram:
        like = self.one_of_ours()
        data = bytearray(like.data)
        data[self._dice.randrange(len(data))] ^= 1 << self._dice.randrange(8)
        return Datagram(like.source, like.destination, bytes(data))

    def truncated(self) -> Datagram:
        like = self.one_of_ours()
        return Datagram(like.source, like.destination, like.data[: self._dice.randrange(len(like.data))])

    def hint(self) -> Datagram:
        """ "Handshake failed", from the server or from anybody, to the client; the server is sent some too."""
        like = self.one_of_ours()
        return Datagram(self._dice.choice([like.source, self.anybody()]), like.destination, HINT)

    def cookie(self) -> Datagram:
        data = COOKIE + self._dice.randbytes(COOKIE_BYTES - len(COOKIE))
        return Datagram(self.anybody(), self._server, data)

    def noise(self) -> Datagram:
        like = self.one_of_ours()
        return Datagram(self.anybody(), like.destination, self._dice.randbytes(self._dice.randrange(1, 1400)))

    def nowhere(self) -> Datagram:
        """What the machine spends on packets that no daemon sees: to a port that nothing listens on."""
        return Datagram(self.anybody(), (self._server[0], 9), self._dice.randbytes(HANDSHAKE_BYTES))


KINDS: dict[str, Callable[[Forger], Datagram]] = {
    "to a closed port": Forger.nowhere,
    "garbage handshakes, one source": lambda forger: forger.garbage_handshake(forger.somebody()),
    "garbage handshakes, all sources": lambda forger: forger.garbage_handshake(forger.anybody()),
    "replayed handshakes": Forger.replayed_handshake,
    "forged tunnel packets": Forger.forged,
    "forged tunnel packets, other sources": lambda forger: forger.forged(forger.anybody()),
    "replayed tunnel packets": Forger.replayed,
    "replayed tunnel packets, other sources": lambda forger: forger.replayed(forger.anybody()),
    "bit-flipped copies": Forger.flipped,
    "truncated copies": Forger.truncated,
    "03 00": Forger.hint,
    "garbage cookies": Forger.cookie,
    "noise": Forger.noise,
}


class Sender:
    """Packets ready to be sent again and again, in turn."""

    def __init__(self, made: list[Datagram]) -> None:
        packets = [datagram.packet() for datagram in made]
        self._count = len(packets)
        self._bytes = ctypes.create_string_buffer(b"".join(packets))
        at = ctypes.addressof(self._bytes)
        pieces = []
        for packet in packets:
            pieces.append(_IOVEC.pack(at, len(packet)))
            at += len(packet)
        self._iovecs = ctypes.create_string_buffer(b"".join(pieces))
        # A raw socket's packets go where its address says, not where their header does.
        names = b"".join(
            struct.pack("=H", socket.AF_INET) + bytes(2) + socket.inet_aton(datagram.destination[0]) + bytes(8)
            for datagram in made
        )
        self._names = ctypes.create_string_buffer(names)
        name, iovec = ctypes.addressof(self._names), ctypes.addressof(self._iovecs)
        messages = (
            _MMSGHDR.pack(name + 16 * n, 16, 0, iovec + _IOVEC.size * n, 1, 0, 0, 0, 0, 0, 0)
            for n in range(self._count)
        )
        self._messages = ctypes.create_string_buffer(b"".join(messages))
        self._libc = ctypes.CDLL(None, use_errno=True)

    def send(self, seconds: float, rate: float) -> tuple[int, float]:
        """Send so many a second for so long; how many were sent, and in what time."""
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            first = ctypes.addressof(self._messages)
            sent = 0
            begin = time.monotonic()
            while (now := time.monotonic() - begin) < seconds:
                due = min(int(now * rate) - sent, BATCH, self._count - sent % self._count)
                if due <= 0:
                    time.sleep(BATCH / 2 / rate)
                    continue
                done = self._libc.sendmmsg(
                    sock.fileno(), ctypes.c_void_p(first + _MMSGHDR.size * (sent % self._count)), due, 0
                )
                if done < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                sent += done
        return sent, now


def main(device: str, server: str) -> None:
    """Obey until the input ends."""
    seen = Seen()
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "watch":
            watch(device, order["seconds"], seen)
            answer: dict[str, float] = {name: len(kept) for name, kept in vars(seen).items()}
        else:
            forger = Forger(seen, server, order["do"])
            sender = Sender([forger.make(order["do"]) for _ in range(order.get("made", MADE))])
            print("begin", flush=True)
            sent, took = sender.send(order["seconds"], order["rate"])
            answer = {"sent": sent, "seconds": took}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
