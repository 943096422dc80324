"""A process with one engine, for tests/pump/test_erasure.py, which plays everything around it and reads its memory.

Arguments: the engine, whether it may lock memory ("lock" or "no-lock"), then the descriptors of TUN device, UDP socket,
keys, orders and answers. Keys come through a pipe of their own into memory that is overwritten after use, as those of a
handshake do.
"""

import asyncio
import json
import os
import resource
import socket
import sys
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from pqtun.protocol.handshake import Session
from pqtun.pump.engine import Engine

OWN, SUBNET = IPv4Address("10.43.0.1"), IPv4Network("10.43.0.0/16")
NOBODY = 65534


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def set(self, now: float) -> None:
        self.now = now


class Child:
    def __init__(self, kind: str, lock: str, tun: int, udp: int, keys: int, orders: int, answers: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.keys, self.orders, self.answers = keys, orders, answers
        self.engine: Engine
        self.clock: Any
        self.done: asyncio.Future[None] = self.loop.create_future()
        sock = socket.socket(fileno=udp)
        if kind == "native":
            from pqtun.pump import _native
            from pqtun.pump.native import NativeEngine

            if lock == "no-lock":
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
                if os.geteuid() == 0:  # whom the limit does not bind
                    os.setresuid(NOBODY, NOBODY, NOBODY)
            self.clock = _native.ManualClock(1000.0)
            self.key_memory = _native.key_memory
            self.engine = NativeEngine(
                [tun],
                [sock],
                own=OWN,
                subnet=SUBNET,
                virtio=False,
                offload=["udp-gso", "udp-gro"],
                loop=self.loop,
                clock=self.clock,
            )
        else:
            from pqtun.pump.python import PythonEngine

            self.clock = Clock()
            self.engine = PythonEngine(tun, sock, own=OWN, subnet=SUBNET, clock=self.clock, loop=self.loop)
        self.events: list[str] = []
        self.engine.start(lambda event: self.events.append(type(event).__name__))
        self.loop.add_reader(orders, self.order)

    def order(self) -> None:
        order, *words = os.read(self.orders, 4096).decode().split() or ["quit"]
        answer = getattr(self, "do_" + order)(*words)
        os.write(self.answers, json.dumps(answer).encode() + b"\n")

    def do_add(self, inner: str, port: str, first: str) -> None:
        tid, send, receive, resume = (bytearray(32) for _ in range(4))
        if os.readv(self.keys, [tid, send, receive, resume]) != 128:
            raise EOFError
        session = Session(bytes(tid), send, receive, resume)
        self.engine.add_tunnel(
            session, IPv4Address(inner), ("127.0.0.1", int(port)), first=bytes.fromhex(first) if first != "-" else None
        )
        session.erase()

    def do_clock(self, now: str) -> None:
        self.clock.set(float(now))

    def do_send(self, tid: str, packet: str) -> None:
        self.engine.send_inner(bytes.fromhex(tid), bytes.fromhex(packet))

    def do_remove(self, tid: str) -> None:
        self.engine.remove_tunnel(bytes.fromhex(tid))

    def do_put_aside(self, tid: str) -> None:
        self.engine.put_aside(bytes.fromhex(tid), os.urandom(32), os.urandom(12), 1_700_000_000)

    def do_drops(self) -> dict[str, int]:
        return self.engine.stats().drops

    def do_tunnels(self) -> dict[str, dict[str, int]]:
        return {tunnel.tid.hex(): tunnel.drops for tunnel in self.engine.stats().tunnels}

    def do_events(self) -> list[str]:
        return self.events

    def do_key_memory(self) -> tuple[int, int]:
        return self.key_memory()

    def do_close(self) -> None:
        self.engine.close()

    def do_quit(self) -> None:
        """Whoever gave orders is gone."""
        self.done.set_result(None)
        self.loop.remove_reader(self.orders)


async def main() -> None:
    child = Child(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    await child.done


asyncio.run(main())
