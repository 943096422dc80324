"""An IP link between two namespaces, on which packets fare as tests/net/impairment.py says.

relay.py NAMESPACE-A DEVICE-A NAMESPACE-B DEVICE-B SOCKET SEED: makes the two TUN devices, carries packets between
them, and takes orders (JSON objects, each answered with one) on the UNIX socket SOCKET, of type SOCK_SEQPACKET:

    {"set": {"loss": 0.05}, "towards": ["a", "b"]}     other conditions from now on; what is not named stays
    {"lose": 500, "towards": ["b"]}                    the next 500 packets are lost

The answer to any order, {} too, is {"a": counters, "b": counters}, by where the packets went. It prints "ready" once
the devices exist. With an answer to an order, the order is in force.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.net.impairment import Conditions, Direction

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_PACKET = 9216  # bytes of the longest packet: a jumbo frame's
_BATCH = 64  # packets read from one side before the other has its turn
_ORDER = 65536
_NICENESS = -10  # the path must not become worse because the programs under test are busy


def open_tun(namespace: str, device: str) -> int:
    """A TUN device in a namespace; this process is in that namespace afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(handle, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns {namespace}")
    os.close(handle)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    return tun


@dataclass(frozen=True)
class Way:
    """One direction with its devices."""

    source: int
    sink: int
    path: Direction

    def take(self, now: float) -> None:
        """What has come to the source enters."""
        for _ in range(_BATCH):
            try:
                packet = os.read(self.source, _PACKET)
            except OSError:  # there is no more, or the device is down
                return
            self.path.enter(packet, now)

    def give(self, now: float) -> None:
        """What is due leaves by the sink."""
        for packet in self.path.arrived(now):
            try:
                os.write(self.sink, packet)
            except OSError:  # the device is not up: as good as an unplugged cable
                pass


def obey(order: dict[str, Any], ways: dict[str, Way]) -> dict[str, dict[str, int]]:
    """Carry out an order; the answer to it."""
    for name in order.get("towards", ways):
        path = ways[name].path
        path.conditions = replace(path.conditions, **order.get("set", {}))
        if "lose" in order:
            path.lose_next(order["lose"])
    return {name: dict(way.path.counters) for name, way in ways.items()}


def carry(ways: dict[str, Way], listener: socket.socket) -> None:
    """Carry packets and take orders until killed."""
    masters: dict[int, socket.socket] = {}
    sources = {way.source: way for way in ways.values()}
    while True:
        arrivals = [at for way in ways.values() if (at := way.path.next_arrival) is not None]
        wait = max(0.0, min(arrivals) - time.monotonic()) if arrivals else None
        readable, _, _ = select.select([*sources, listener.fileno(), *masters], [], [], wait)
        now = time.monotonic()
        for handle in readable:
            if handle in sources:
                sources[handle].take(now)
            elif handle in masters:
                order = masters[handle].recv(_ORDER)
                if order:
                    masters[handle].send(json.dumps(obey(json.loads(order), ways)).encode())
                else:
                    masters.pop(handle).close()
            else:
                master = listener.accept()[0]
                masters[master.fileno()] = master
        for way in ways.values():
            way.give(now)


def main(ns_a: str, device_a: str, ns_b: str, device_b: str, place: str, seed: str) -> None:
    """Make the devices and carry."""
    os.nice(_NICENESS)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(place)
        listener.listen()
        a, b = open_tun(ns_a, device_a), open_tun(ns_b, device_b)
        ways = {
            "a": Way(b, a, Direction(Conditions(), f"{seed} a")),
            "b": Way(a, b, Direction(Conditions(), f"{seed} b")),
        }
        print("ready", flush=True)
        carry(ways, listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
