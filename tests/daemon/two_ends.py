"""A client and a server, services and engines and keys of production, in one process and in virtual time.

Between them is a relay over loopback sockets, which loses, delays, reorders and duplicates as its seed has it and may
give the client's packets another source. A pair of Unix sockets stands for each TUN device: what a program of the
client sends is a datagram of the test's, and the server's program sends each back.
"""

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from functools import cache
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pqtun.daemon import clock
from pqtun.daemon.client import ClientService
from pqtun.daemon.host import Tun
from pqtun.daemon.server import ServerService
from pqtun.daemon.settings import ClientSettings, ServerSettings
from pqtun.dns.answer import Found, Private
from pqtun.keys.directory import LongTermKey
from pqtun.keyserver.server import KeyServerSocket
from pqtun.protocol import primitives
from pqtun.protocol.handshake import ServerSecretKey
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from pqtun.protocol.names import Announcement
from pqtun.pump.engine import HandshakeLimits
from pqtun.pump.python import PythonEngine
from tests.daemon.virtual import now
from tests.pump import packets

CLIENT, SERVER = IPv4Interface("10.43.0.1/16"), IPv4Interface("10.42.0.1/16")
LOOPBACK = "127.0.0.1"
NOBODY = (LOOPBACK, 9)  # the upstream resolver
ECHO_PORT = 7


@cache
def server_key() -> LongTermKey:
    """One for all tests: it takes long to make."""
    mceliece_pk, mceliece_sk = primitives.skem_keypair()
    x25519_pk, x25519_sk = primitives.x25519_keypair()
    public = ServerPublicKey(mceliece_pk, x25519_pk)
    return LongTermKey(ServerSecretKey(mceliece_sk, x25519_sk), public, os.urandom(32), KeyTree(public).keyhash)


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((LOOPBACK, 0))
    return sock


def tun_pair() -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    return ours.detach(), theirs


class Way:
    """One service's way through the relay: the client sends to ``front``, the server sees ``back``."""

    def __init__(self, relay: "Relay", server: tuple[str, int]) -> None:
        self._relay = relay
        self._server = server
        self._client: tuple[str, int] | None = None
        self.front = udp_socket()
        self.back = udp_socket()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.front, self._from_client)
        loop.add_reader(self.back, self._from_server, self.back)

    @property
    def port(self) -> int:
        return int(self.front.getsockname()[1])

    def move(self) -> None:
        """The server sees another source from now on, and what it sends to the old one is lost."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.back)
        self.back.close()
        self.back = udp_socket()
        loop.add_reader(self.back, self._from_server, self.back)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in (self.front, self.back):
            loop.remove_reader(sock)
            sock.close()

    def _from_client(self) -> None:
        for data, source in _all(self.front):
            self._client = source
            self._relay.carry(data, lambda data: self._send(self.back, data, self._server))

    def _from_server(self, sock: socket.socket) -> None:
        for data, _ in _all(sock):
            self._relay.carry(data, lambda data: self._send(self.front, data, self._client))

    @staticmethod
    def _send(sock: socket.socket, data: bytes, to: tuple[str, int] | None) -> None:
        if to is not None and sock.fileno() >= 0:
            try:
                sock.sendto(data, to)
            except OSError:
                pass  # nobody listens there just now


def _all(sock: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    got = []
    while True:
        try:
            got.append(sock.recvfrom(65535))
        except BlockingIOError:
            return got
        except OSError:
            continue


class Relay:
    """What becomes of each datagram, either way."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.delay = 0.01
        self.loss = self.reorder = self.duplicate = 0.0
        self.cut = False
        self.lose_next = 0
        self.seen: list[bytes] = []

    def carry(self, data: bytes, send: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        self.seen.append(data)
        if self.cut or self.random.random() < self.loss:
            return
        if self.lose_next:
            self.lose_next -= 1
            return
        late = 0.003 if self.random.random() < self.reorder else 0.0
        for _ in range(1 + (self.random.random() < self.duplicate)):
            loop.call_later(self.delay + late, send, data)


class TwoEnds:
    """Use as an asynchronous context manager; ``state`` is an empty directory."""

    def __init__(self, state: Path, seed: int = 1, monkeypatch: Any = None) -> None:
        self.relay = Relay(seed)
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Future[None]] = []
        self._echoes: dict[bytes, asyncio.Future[None]] = {}
        self._number = 0
        self.sources: list[str] = []  # who the server's program heard, a name for each change
        self._udp, self._key_udp = udp_socket(), udp_socket()
        self._addresses = self._udp.getsockname(), self._key_udp.getsockname()
        monkeypatch.setattr(clock, "boottime", self._loop.time)
        monkeypatch.setattr(clock, "wall", self._loop.time)

    async def __aenter__(self) -> "TwoEnds":
        self.start_server()
        self.tunnel_path = Way(self.relay, self._addresses[0])
        self.key_path = Way(self.relay, self._addresses[1])
        self._start_client()
        return self

    def start_server(self) -> None:
        """As after a start of the host: it remembers nothing but its key."""
        if self._udp.fileno() < 0:
            self._udp, self._key_udp = self._again(self._addresses[0]), self._again(self._addresses[1])
        fd, self._server_tun = tun_pair()
        engine = PythonEngine(
            fd,
            self._udp,
            own=SERVER.ip,
            subnet=SERVER.network,
            clock=self._loop.time,
            loop=self._loop,
            handshakes=HandshakeLimits(2000, 100),
        )
        tun = Tun((), "pqtsrv0", SERVER)
        self.server = ServerService(ServerSettings(), tun, engine, server_key())
        self._keys = KeyServerSocket(self.server.key_server, [self._key_udp], self._loop.time)
        self._loop.add_reader(self._server_tun, self._serve_programs)
        self.server.start()
        self._keys.start()
        self._server_task = asyncio.ensure_future(self.server.keep_deadlines())

    @staticmethod
    def _again(address: tuple[str, int]) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind(address)
        return sock

    def kill_server(self) -> None:
        """It says nothing to anybody."""
        self._server_task.cancel()
        self._loop.remove_reader(self._server_tun)
        self._server_tun.close()
        self._keys.close()
        self.server._engine.close()
        self.server._ring.erase()
        self.server.failed.cancel()

    def _start_client(self) -> None:
        fd, self._client_tun = tun_pair()
        self.client_engine = PythonEngine(
            fd, udp_socket(), own=CLIENT.ip, subnet=CLIENT.network, clock=self._loop.time, loop=self._loop
        )
        tun = Tun((), "pqtcli0", CLIENT)
        self.client = ClientService(ClientSettings(state=self._state), tun, self.client_engine)
        self.client._look_at_flows = self._no_flows
        self._loop.add_reader(self._client_tun, self._client_hears)
        self.client.start()
        self._tasks.append(asyncio.ensure_future(self.client.keep_up()))

    async def _no_flows(self, _now: float) -> None:
        """Which connections there are the test says, in ``connected``."""

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self.client.close()
        self.client.failed.cancel()
        self._loop.remove_reader(self._client_tun)
        self._client_tun.close()
        self.kill_server()
        self.tunnel_path.close()
        self.key_path.close()

    # -- programs --------------------------------------------------------------------------------

    def look_up(self) -> IPv4Address:
        """A program looks the server's name up."""
        announcement = Announcement(server_key().keyhash, self.tunnel_path.port, self.key_path.port)
        given = self.client.address_of(
            Found(announcement, "pq1test.example.net", "www.example.net", [IPv4Address(LOOPBACK)], None, NOBODY)
        )
        assert isinstance(given, Private)
        self.inner = given.v4
        return self.inner

    def connect(self) -> None:
        """A program has a connection open, as the kernel would tell."""
        self.client._connected = {self.inner}

    def disconnect(self) -> None:
        self.client._connected = set()

    async def say(self, patience: float = 60.0, every: float = 1.0) -> float:
        """A program says something until the server's program has sent it back; seconds until then."""
        self._number += 1
        text = b"number %d" % self._number
        answer = self._echoes[text] = self._loop.create_future()
        begin = now()
        while not answer.done():
            assert now() - begin < patience, (self.client.status({}), self.server.status())
            self._client_tun.send(datagram(str(CLIENT.ip), str(self.inner), text))
            await asyncio.wait([answer], timeout=every)
        return now() - begin

    def _serve_programs(self) -> None:
        while True:
            try:
                packet = self._server_tun.recv(65535)
            except BlockingIOError:
                return
            if not packet:  # the engine is closed
                self._loop.remove_reader(self._server_tun)
                return
            if len(packet) < 28 or packet[9] != packets.UDP:
                if len(packet) >= 28 and packet[9] == packets.ICMP and packet[20] == 8:  # as the kernel answers
                    self._server_tun.send(_echo_reply(packet))
                continue
            source = str(IPv4Address(packet[12:16]))
            if not self.sources or self.sources[-1] != source:
                self.sources.append(source)
            self._server_tun.send(datagram(str(SERVER.ip), source, packet[28:]))

    def _client_hears(self) -> None:
        while True:
            try:
                packet = self._client_tun.recv(65535)
            except BlockingIOError:
                return
            answer = self._echoes.pop(packet[28:], None) if packet[9] == packets.UDP else None
            if answer is not None and not answer.done():
                answer.set_result(None)

    # -- what a test asks ------------------------------------------------------------------------

    @property
    def link(self) -> Any:
        return self.client._links.get(self.inner, SimpleNamespace(state="none"))

    def tunnels(self) -> tuple[int, int]:
        """How many tunnels each end has."""
        return len(self.client_engine.stats().tunnels), len(self.server._engine.stats().tunnels)


def datagram(source: str, destination: str, data: bytes) -> bytes:
    return packets.ip(source, destination, packets.UDP, packets.udp(source, destination, data, dport=ECHO_PORT))


def _echo_reply(packet: bytes) -> bytes:
    body = b"\0\0\0\0" + packet[24:]
    value = packets.checksum(body)
    source, destination = str(IPv4Address(packet[16:20])), str(IPv4Address(packet[12:16]))
    return packets.ip(source, destination, packets.ICMP, body[:2] + value.to_bytes(2, "big") + body[4:])


def two_ends(state: Path, monkeypatch: Any, scenario: Callable[[TwoEnds], Awaitable[None]], seed: int = 1) -> None:
    """Play a scenario."""
    from tests.daemon.virtual import play

    async def body() -> None:
        async with TwoEnds(state, seed, monkeypatch) as ends:
            await scenario(ends)

    play(body())
