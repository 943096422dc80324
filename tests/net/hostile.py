"""hostile.py HOST PORT crowd|noise ...: connections of clients that do not behave; says as JSON what became of them.

crowd COUNT: opens so many connections, says nothing in them, and waits until the server has ended them all.
noise COUNT SEED: so many connections, one after the other, in each of which something malformed is sent.
"""

from __future__ import annotations

import json
import random
import resource
import selectors
import socket
import struct
import sys
import time

BANNER = b"SSH-2.0-hostile\r\n"
LIMIT = 40.0  # seconds until a connection is thought to be held for ever
KEX = ["mlkem768x25519-sha256", "ssh-mldsa44-ed25519,ssh-ed25519", *["chacha20-poly1305@openssh.com"] * 2]
KEX += [*["hmac-sha2-256"] * 2, *["none"] * 2, *[""] * 2]


def connected(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), 20)


def crowd(host: str, port: int, count: int) -> dict[str, object]:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (count + 64, max(count + 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    )
    watched, greeted, lasted = selectors.DefaultSelector(), set(), []
    for _ in range(count):
        sock = connected(host, port)
        sock.setblocking(False)
        watched.register(sock, selectors.EVENT_READ, time.monotonic())
    print(f"{count} are open", flush=True)
    end = time.monotonic() + LIMIT
    while watched.get_map() and time.monotonic() < end:
        for key, _ in watched.select(1):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                data = sock.recv(4096)
            except ConnectionError:
                data = b""
            if data:
                greeted.add(sock)
            else:
                lasted.append(time.monotonic() - key.data)
                watched.unregister(sock)
                sock.close()
    return {"greeted": len(greeted), "held": len(watched.get_map()), "longest": max(lasted, default=0.0)}


def packet(payload: bytes, length: int | None = None) -> bytes:
    """RFC 4253 section 6, before keys are there."""
    padding = 8 - (5 + len(payload)) % 8
    padding += 8 if padding < 4 else 0
    size = 1 + len(payload) + padding if length is None else length
    return struct.pack(">IB", size, padding) + payload + bytes(padding)


def kexinit(chance: random.Random) -> bytes:
    lists = b"".join(struct.pack(">I", len(name)) + name.encode() for name in KEX)
    return b"\x14" + chance.randbytes(16) + lists + b"\0" + bytes(4)


def spoilt(chance: random.Random, data: bytes) -> bytes:
    """One to three bytes are others, or it ends early, or something follows."""
    kind = chance.randrange(3)
    if kind == 0:
        found = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            found[chance.randrange(len(found))] = chance.randrange(256)
        return bytes(found)
    return data[: chance.randrange(len(data))] if kind == 1 else data + chance.randbytes(chance.randint(1, 3000))


def malformed(chance: random.Random) -> bytes:
    """What a hostile client sends in one connection."""
    good = packet(kexinit(chance))
    kinds = [
        lambda: chance.randbytes(chance.randint(1, 2000)),
        lambda: b"SSH-2.0-" + b"x" * chance.randint(300, 100_000),  # a banner that is too long
        lambda: b"SSH-1.5-old\r\n",
        lambda: b"GET / HTTP/1.0\r\n\r\n",
        lambda: b"\n" * 5000 + BANNER,
        lambda: BANNER + packet(kexinit(chance), chance.choice([0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20])),
        lambda: BANNER + packet(spoilt(chance, kexinit(chance))),
        lambda: BANNER + spoilt(chance, good),
        # What must not come before keys are there, and messages of every number with something in them.
        lambda: BANNER + good + packet(bytes([chance.randrange(256)]) + chance.randbytes(chance.randrange(600))),
        lambda: (
            BANNER
            + good
            + packet(b"\x1e" + struct.pack(">I", chance.choice([0, 1216, 1 << 31])) + chance.randbytes(1216))
        ),
        lambda: BANNER + good * 3,
        lambda: BANNER + packet(b"\x05\0\0\0\x0cssh-userauth"),
        lambda: BANNER + packet(b"\x5a" + chance.randbytes(40)),
        lambda: BANNER + good + packet(b"\x01\0\0\0\x02" + struct.pack(">I", 1 << 30) + b"x"),
    ]
    return chance.choice(kinds)()


def noise(host: str, port: int, count: int, seed: str) -> dict[str, object]:
    chance, answered = random.Random(seed), 0
    for _ in range(count):
        with connected(host, port) as sock:
            sock.settimeout(20)
            try:
                sock.sendall(malformed(chance))
                sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(65_536):
                    answered += len(data)
            except ConnectionError:
                pass
    return {"answered": answered}


def main() -> None:
    host, port, what, count, *rest = sys.argv[1:]
    said = crowd(host, int(port), int(count)) if what == "crowd" else noise(host, int(port), int(count), rest[0])
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
