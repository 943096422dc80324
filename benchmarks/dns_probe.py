"""dns_probe.py SERVER NAME COUNT: asks for the A records of NAME, one question after the other.

It prints the round-trip times in seconds as a JSON list. A socket a question, as the C library's resolver does it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

_TIMEOUT = 5.0


def question(name: str) -> bytes:
    """A recursive question of class IN for type A (RFC 1035 section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    header = struct.pack(">2sHHHHH", os.urandom(2), 0x0100, 1, 0, 0, 0)
    return header + labels + b"\0" + struct.pack(">HH", 1, 1)


def main(server: str, name: str, count: str) -> None:
    """Measure and print."""
    times = []
    for _ in range(int(count)):
        asked = question(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_TIMEOUT)
            begin = time.perf_counter()
            sock.sendto(asked, (server, 53))
            answer = sock.recv(4096)
            times.append(time.perf_counter() - begin)
        if answer[:2] != asked[:2] or answer[3] & 15:
            raise SystemExit(f"wrong answer: {answer.hex()}")
    print(json.dumps(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
