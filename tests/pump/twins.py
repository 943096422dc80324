"""The engine in Python and the native one, told the same and watched closely."""

import asyncio
import contextlib
import dataclasses
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pqtun.pump import _native
from pqtun.pump.engine import Datagram, Endpoint, Engine, Event, HandshakeLimits, Roamed
from pqtun.pump.native import NativeEngine
from pqtun.pump.python import PythonEngine
from tests.pump import gso
from tests.pump.rig import OWN6, EngineFactory, FakeClock, Rig, endpoint_of, rig

UDP_SEGMENT = 103  # linux/udp.h
SOCKETS = 4
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
ALL_OFFLOADS = ("tun-tso", "tun-uso", "tun-gro", "udp-gso", "udp-gro")


def native(*, virtio: bool, offload: Sequence[str] = ALL_OFFLOADS) -> EngineFactory:
    """Make native engines of this kind."""

    def make(tun_fd: int, udp: socket.socket, *, clock: FakeClock, **rest: Any) -> Engine:
        manual = _native.ManualClock(clock.now)
        clock.watchers.append(manual.set)
        return NativeEngine([tun_fd], [udp], virtio=virtio, offload=offload, clock=manual, **rest)

    return make


@dataclasses.dataclass
class Seen:
    """What an engine did since it was looked at last. Endpoints are numbers of the test's sockets."""

    events: list[Event]
    delivered: list[bytes]
    sent: list[list[bytes]]  # by the socket that they came to
    stats: dict[str, Any]


class Side:
    """One of the engines with far sockets; those of the other side have the same numbers."""

    def __init__(self, made: Rig, *, virtio: bool = False, dual: bool = False) -> None:
        """``dual``: the last of the sockets is one of IPv6."""
        self.rig = made
        self.virtio = virtio
        self.sockets = [made.udp_socket(six=dual and number == SOCKETS - 1) for number in range(SOCKETS)]
        with socket.socket(fileno=os.dup(made.tun_fd)) as device:  # no packet is lost for want of room
            device.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE if os.geteuid() == 0 else socket.SO_SNDBUF, 8 << 20)
        self._numbers = {endpoint_of(sock): number for number, sock in enumerate(self.sockets)}
        self.messages: list[bytes] = []  # what was written to the device, as it was

    async def write(self, packet: bytes) -> None:
        await self.write_message(gso.PLAIN + packet if self.virtio else packet)

    async def write_message(self, message: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.rig.programs, message)

    def send(self, datagram: bytes, number: int = 0) -> None:
        self.sockets[number].sendto(datagram, self._address(number))

    def send_train(self, datagrams: Sequence[bytes], number: int = 0) -> None:
        """Datagrams of one length, the last may be shorter, as one message."""
        size = struct.pack("=H", len(datagrams[0]))
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, size)] if len(datagrams) > 1 else []
        self.sockets[number].sendmsg([b"".join(datagrams)], control, 0, self._address(number))

    def _address(self, number: int) -> tuple[str, int]:
        """Where the engine is reached from a socket."""
        return self.rig.address6 if self.sockets[number].family == socket.AF_INET6 else self.rig.address

    def endpoint(self, number: int) -> tuple[str, int]:
        return endpoint_of(self.sockets[number])

    async def look(self) -> Seen:
        await self.rig.settle()
        events = [self._named(event) for event in self.rig.events]
        self.rig.events.clear()
        return Seen(events, self.delivered(), [_drain(sock) for sock in self.sockets], self._stats())

    def delivered(self) -> list[bytes]:
        messages = _drain(self.rig.programs)
        self.messages += messages
        if not self.virtio:
            return messages
        return [packet for message in messages for packet in gso.cut(message)]

    def _named(self, event: Event) -> Event:
        if isinstance(event, Datagram):
            return dataclasses.replace(event, source=("far", self._numbers[event.source]))
        if isinstance(event, Roamed):
            return dataclasses.replace(event, endpoint=("far", self._numbers[event.endpoint]))
        return event

    def _stats(self) -> dict[str, Any]:
        stats = dataclasses.asdict(self.rig.engine.stats())
        for tunnel in stats["tunnels"]:
            tunnel["endpoint"] = self._numbers.get(tunnel["endpoint"], tunnel["endpoint"])
        stats["tunnels"].sort(key=lambda tunnel: tunnel["tid"])
        return stats


def _drain(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(1 << 17))
        except BlockingIOError:
            return found


class Twins:
    """Both engines. What is done to one is done to the other."""

    def __init__(self, python: Side, native: Side) -> None:
        self.python = python
        self.native = native
        self.both = (python, native)
        self.compared: Counter[str] = Counter()

    @property
    def now(self) -> float:
        return self.python.rig.clock.now

    async def write(self, packet: bytes) -> None:
        for side in self.both:
            await side.write(packet)

    async def write_large(self, packet: bytes, size: int) -> None:
        """A packet that the device cuts in segments, unless the engine does it."""
        for side in self.both:
            if side.virtio:
                await side.write_message(gso.large(packet, size))
            else:
                for piece in gso.segments(packet, size):
                    await side.write(piece)

    def send(self, datagram: bytes, number: int = 0) -> None:
        for side in self.both:
            side.send(datagram, number)

    def send_train(self, datagrams: Sequence[bytes], number: int = 0) -> None:
        for side in self.both:
            side.send_train(datagrams, number)

    def pass_time(self, seconds: float) -> None:
        for side in self.both:
            side.rig.clock.now += seconds

    async def compare(self) -> Seen:
        """Both have done the same since the last time. Says what the engine in Python did."""
        python, native = await asyncio.gather(*(side.look() for side in self.both))
        for kind in ("expected datagram", "other datagram", "other event"):
            found, expected = ([e for e in seen.events if _kind(e) == kind] for seen in (native, python))
            assert found == expected, f"{kind}s {found}\n{expected}"
        assert _places(native.events) == _places(python.events)
        if self.native.virtio:
            same_packets(native.delivered, python.delivered)
        else:
            assert native.delivered == python.delivered, f"delivered {native.delivered}\n{python.delivered}"
        assert native.sent == python.sent, f"sent {native.sent}\n{python.sent}"
        assert native.stats == python.stats, f"counted {native.stats}\n{python.stats}"
        self.compared.update(events=len(python.events), delivered=len(python.delivered))
        self.compared.update(sent=sum(map(len, python.sent)))
        return python


def _kind(event: Event) -> str:
    """Which order it is in: of each kind one is delivered before the next, as far as it is there then."""
    if isinstance(event, Datagram):
        return "expected datagram" if event.expected else "other datagram"
    return "move" if isinstance(event, Roamed) else "other event"


def _places(events: list[Event]) -> dict[bytes, Endpoint]:
    """Where the peers are that have moved. Of moves not told of yet only the last is sure to be reported."""
    return {event.tid: event.endpoint for event in events if isinstance(event, Roamed)}


def same_packets(found: list[bytes], expected: list[bytes]) -> None:
    """The same packets, in an order that no flow can tell from the other. Nothing overtakes a fragment of its flow."""
    found, expected = [gso.loose(packet) for packet in found], [gso.loose(packet) for packet in expected]
    assert sorted(found) == sorted(expected)
    for flow in {gso.flow(packet) for packet in expected}:
        kept = (flow, ("fragment",))
        assert [packet for packet in found if gso.flow(packet) in kept] == [
            packet for packet in expected if gso.flow(packet) in kept
        ]


@contextlib.asynccontextmanager
async def twins(
    *,
    virtio: bool = False,
    offload: Sequence[str] = ALL_OFFLOADS,
    deliver_to: str | None = None,
    handshakes: HandshakeLimits | None = None,
    dual: bool = False,
) -> AsyncIterator[Twins]:
    """Engines with IPv6 in tunnels, which goes with no other host. ``dual``: with sockets of both families."""
    own6 = OWN6 if deliver_to is None else None
    options: dict[str, Any] = {"deliver_to": deliver_to, "handshakes": handshakes, "own6": own6, "dual": dual}
    with rig(PythonEngine, **options) as python, rig(native(virtio=virtio, offload=offload), **options) as other:
        yield Twins(Side(python, dual=dual), Side(other, virtio=virtio, dual=dual))
