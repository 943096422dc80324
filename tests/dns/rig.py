"""A DNS proxy between a program and a resolver that are this test's own sockets on the loopback; no redirection."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

SECONDS = 5.0


class Origins:
    """Stands for OriginalDestinations: every lookup is meant for `resolver`."""

    def __init__(self, resolver: tuple[str, int] | None) -> None:
        self.resolver = resolver
        self.counters: Counter[str] = Counter()

    def of_datagram(self, family: int, source: tuple[str, int]) -> tuple[str, int] | None:
        return self.resolver

    def of_stream(self, sock: socket.socket) -> tuple[str, int] | None:
        return self.resolver


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(("127.0.0.1", 0))
    return sock


def listener() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def receive(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    async with asyncio.timeout(SECONDS):
        return await asyncio.get_running_loop().sock_recvfrom(sock, 65535)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)
