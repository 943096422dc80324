"""An Ethernet wire with delay, loss and a rate, for kernels without netem.

slow_wire.py NAMESPACE-A DEVICE-A NAMESPACE-B DEVICE-B DELAY LOSS RATE QUEUE SEED: makes the two TAP devices and carries
frames between them. DELAY is one-way and in seconds, LOSS a share from 0 to 1 (ARP and ICMPv6 are spared), RATE in
bit/s (0: unlimited), QUEUE the seconds that frames may wait for the rate before they are dropped. It prints "ready"
once the devices exist.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_FRAME = 65536 + 18


def open_tap(namespace: str, device: str) -> int:
    """A TAP device in a namespace; this process is in that namespace afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(handle, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns {namespace}")
    os.close(handle)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


@dataclass
class Direction:
    """Frames on their way from one device to the other, in order, with the time when they arrive."""

    source: int
    sink: int
    free_at: float = 0.0
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)


def carry(directions: list[Direction], delay: float, loss: float, rate: float, queue: float, seed: int) -> None:
    """Carry frames until killed."""
    dice = random.Random(seed)
    while True:
        now = time.monotonic()
        due = [d.under_way[0][0] for d in directions if d.under_way]
        wait = max(0.0, min(due) - now) if due else None
        readable, _, _ = select.select([d.source for d in directions], [], [], wait)
        now = time.monotonic()
        for direction in directions:
            while direction.under_way and direction.under_way[0][0] <= now:
                try:
                    os.write(direction.sink, direction.under_way.popleft()[1])
                except OSError:  # the device is not up: as good as an unplugged cable
                    pass
            if direction.source not in readable:
                continue
            frame = os.read(direction.source, _FRAME)
            begin = max(now, direction.free_at)
            if (dice.random() < loss and not _resolves_addresses(frame)) or begin - now > queue:
                continue
            direction.free_at = begin + (len(frame) * 8 / rate if rate else 0.0)
            direction.under_way.append((direction.free_at + delay, frame))


def _resolves_addresses(frame: bytes) -> bool:
    """Whether losing the frame would stop the link for a second: ARP, or ICMPv6 with its neighbour discovery."""
    kind = frame[12:14]
    return kind == b"\x08\x06" or (kind == b"\x86\xdd" and frame[20:21] == b"\x3a")


def main(ns_a: str, device_a: str, ns_b: str, device_b: str, *numbers: str) -> None:
    """Make the devices and carry."""
    delay, loss, rate, queue = map(float, numbers[:4])
    a, b = open_tap(ns_a, device_a), open_tap(ns_b, device_b)
    print("ready", flush=True)
    carry([Direction(a, b), Direction(b, a)], delay, loss, rate, queue, int(numbers[4]))


if __name__ == "__main__":
    main(*sys.argv[1:])
