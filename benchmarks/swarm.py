"""`python -m benchmarks.swarm ENGINE KEYS SERVER`: the clients of many tunnels to one server, in one process.

For each number on its input it makes tunnels with real handshakes until there are so many, and answers with a line
once the server has replied in all of them. Tunnel number n has the private address FIRST + n. The engine, its TUN
device and sockets are those of a client; only what would look up names and start tunnels is not there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

from pqtun.daemon import clock, host
from pqtun.daemon.connector import connected_socket
from pqtun.daemon.engines import choose_engine, make_engine
from pqtun.daemon.settings import ClientSettings
from pqtun.keys.directory import load_public
from pqtun.keyserver.fetch import fetch_ephemeral
from pqtun.protocol import control
from pqtun.protocol.constants import KEY_SERVER_PORT, SERVER_PORT
from pqtun.protocol.handshake import EphemeralPublicKey, initiate
from pqtun.protocol.keytree import ServerPublicKey
from pqtun.pump.engine import Alive, Dead, Engine, Event, Wanted

FIRST = IPv4Address("10.43.0.2")
WINDOW = 32  # handshakes without an answer: fewer than the server's queue holds
FRESH_SECONDS = 20.0  # younger than a server's ephemeral key must be
ANSWER_SECONDS = 2.0


class Swarm:
    """The tunnels."""

    def __init__(self, engine: Engine, own: IPv4Address, mtu: int, key: ServerPublicKey, server: str) -> None:
        self._engine, self._key, self._server = engine, key, server
        self._hello = control.encode([control.Hello(control.PROTOCOL_VERSION, 0, mtu)], own)
        self._waiting: dict[bytes, IPv4Address] = {}
        self._changed = asyncio.Event()
        self._ephemeral: EphemeralPublicKey | None = None
        self._fetched = 0.0
        self.count = 0
        self.again = 0

    def handle(self, event: Event) -> None:
        """Take an event of the engine."""
        match event:
            case Alive(tid) if self._waiting.pop(tid, None) is not None:
                self._changed.set()
            case Wanted(inner):
                self._engine.drop_held(inner, unreachable=True)
            case Dead(tid) if tid not in self._waiting:
                print("a tunnel died", file=sys.stderr)
            case _:
                pass

    async def grow(self, wanted: int) -> None:
        """Make tunnels until there are so many that have carried an answer."""
        while self.count < wanted:
            await self._room(WINDOW)
            await self._make(FIRST + self.count)
            self.count += 1
        await self._room(1)

    async def _room(self, window: int) -> None:
        """Wait until fewer than `window` have no answer; those that get none in time are made anew."""
        while len(self._waiting) >= window:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), ANSWER_SECONDS)
            except TimeoutError:
                lost = dict(self._waiting)
                self._waiting.clear()
                for tid, inner in lost.items():
                    self._engine.remove_tunnel(tid)
                    await self._make(inner)
                self.again += len(lost)

    async def _make(self, inner: IPv4Address) -> None:
        now = clock.boottime()
        if self._ephemeral is None or now > self._fetched + FRESH_SECONDS:
            with connected_socket((self._server, KEY_SERVER_PORT)) as sock:
                self._ephemeral = await fetch_ephemeral(sock, clock=clock.boottime)
            self._fetched = now
        datagram, session = initiate(self._key, self._ephemeral)
        endpoint = (self._server, SERVER_PORT)
        self._waiting[session.tid] = inner
        self._engine.send_datagram(datagram, endpoint)
        self._engine.add_tunnel(session, inner, endpoint, first=self._hello)
        session.erase()


async def _lines() -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        yield line.decode()


def run(engine_name: str, keys: Path, server: str) -> None:
    """Serve the input until it ends."""
    settings = ClientSettings(engine=engine_name)
    choice = choose_engine(settings)
    key = load_public(keys)
    udp = host.bind_udp_group(settings.port, "--port", choice.workers, choice.socket_buffer)
    tun = host.make_tun(
        settings.interface,
        settings.address,
        settings.mtu,
        movable=False,
        queues=choice.workers,
        vnet_header=choice.offload.vnet_header,
    )

    async def serve() -> None:
        engine = make_engine(choice, tun, udp, clock.boottime)
        swarm = Swarm(engine, tun.address.ip, tun.mtu, key, server)
        engine.start(swarm.handle)
        try:
            async for line in _lines():
                await swarm.grow(int(line))
                print(f"{swarm.count} {swarm.again}", flush=True)
        finally:
            engine.close()

    asyncio.run(serve())


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
