"""Two native engines back to back, each with two queues, and programs on both sides that send as fast as they can."""

import asyncio
import itertools
import select
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

from pqtun.protocol.handshake import Session
from pqtun.pump.engine import Event
from pqtun.pump.native import NativeEngine
from tests.pump import gso
from tests.pump import packets as p
from tests.pump.rig import SUBNET
from tests.pump.twins import ALL_OFFLOADS

QUEUES = 2
FLOWS_PER_QUEUE = 2
PAYLOAD: Final = 996
AT_ONCE = 4  # segments in one packet of the device
# Packets of a flow under way when its program waits. Of all flows together there are fewer under way than an end keeps
# for a tunnel that it does not know yet (64).
WINDOW = 8
SEQUENCE_AT = gso.HEADER.size + 24
SO_RCVBUFFORCE = 33


def pair(number: int) -> tuple[Session, Session]:
    """Both ends of a tunnel."""
    tid, up, down, resume = (bytes([kind]) * 28 + number.to_bytes(4, "big") for kind in (1, 2, 3, 4))
    there = Session(tid, bytearray(up), bytearray(down), bytearray(resume))
    return there, Session(tid, bytearray(down), bytearray(up), bytearray(resume))


class Flow:
    """Packets of one TCP connection, numbered by its sequence numbers, all the same way."""

    def __init__(self, source: str, destination: str, port: int) -> None:
        packet = gso.tcp_packet(source, destination, bytes(AT_ONCE * PAYLOAD), ports=(port, 80), sequence=0)
        self.message = gso.large(packet, PAYLOAD)
        self.sent = 0
        self.joined = 0
        self._lock = threading.Lock()
        self._last = [0] * QUEUES
        self._ahead: dict[int, int] = {}
        self.got = 0

    def next(self) -> bytes:
        """The next packets, as one large one. Its stale checksum is for others to mend."""
        number = struct.pack("!I", self.sent * PAYLOAD & 0xFFFFFFFF)
        self.sent += AT_ONCE
        return self.message[:SEQUENCE_AT] + number + self.message[SEQUENCE_AT + 4 :]

    def take(self, queue: int, packet: bytes, size: int) -> None:
        """Note one or more packets that came out of a queue. In each queue they are in order.

        What came before its tunnel comes out of the first queue, what comes next perhaps out of another: two queues
        that two threads read have no order between them.
        """
        payload = len(packet) - 40
        assert payload % PAYLOAD == 0
        assert size in (0, PAYLOAD)
        number = int.from_bytes(packet[24:28], "big") // PAYLOAD
        with self._lock:
            assert number >= self._last[queue], f"packet {number} after {self._last[queue]}"
            self._last[queue] = number
            self.joined += payload > PAYLOAD
            self._ahead[number] = payload // PAYLOAD
            while count := self._ahead.pop(self.got, 0):
                self.got += count


class End:
    """An engine, its programs, and one thread for each queue that plays them."""

    def __init__(self, own: str, peer: str, loop: asyncio.AbstractEventLoop) -> None:
        self.own, self.peer = own, IPv4Address(peer)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(QUEUES)]
        self.programs = [ours for ours, _ in pairs]
        sockets = []
        for _ in range(QUEUES):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
            sock.bind(("127.0.0.1", sockets[0].getsockname()[1] if sockets else 0))
            sockets.append(sock)
        self.address: tuple[str, int] = sockets[0].getsockname()
        self.engine = NativeEngine(
            [theirs.detach() for _, theirs in pairs],
            sockets,
            own=IPv4Address(own),
            subnet=SUBNET,
            virtio=True,
            offload=ALL_OFFLOADS,
            loop=loop,
        )
        self.events: list[Event] = []
        self.engine.start(self.events.append)
        self.flows = {port: Flow(own, peer, port) for port in range(QUEUES * FLOWS_PER_QUEUE)}
        self.failures: list[BaseException] = []

    def play(self, other: "End", stop: threading.Event) -> list[threading.Thread]:
        """Start to send our flows, and to take those of the other end."""
        threads = [
            threading.Thread(target=self._run, args=(work, queue, other, stop))
            for work in (self._write, self._read)
            for queue in range(QUEUES)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _run(
        self, work: Callable[[int, "End", threading.Event], None], queue: int, other: "End", stop: threading.Event
    ) -> None:
        try:
            work(queue, other, stop)
        except BaseException as error:  # noqa: BLE001  shown by the test
            self.failures.append(error)
            stop.set()

    def _write(self, queue: int, other: "End", stop: threading.Event) -> None:
        mine = [flow for port, flow in self.flows.items() if port % QUEUES == queue]
        for flow in itertools.cycle(mine):
            if stop.is_set():
                return
            if flow.sent - flow.got > WINDOW:
                stop.wait(0.0002)
                continue
            self.programs[queue].send(flow.next())

    def _read(self, queue: int, other: "End", stop: threading.Event) -> None:
        sock = self.programs[queue]
        while not stop.is_set() or select.select([sock], [], [], 0.3)[0]:
            if not select.select([sock], [], [], 0.05)[0]:
                continue
            message = sock.recv(1 << 17)
            if not message:
                raise ConnectionError("the engine has closed the device")
            packet = message[gso.HEADER.size :]
            assert packet[9] == p.TCP
            (port,) = struct.unpack_from("!H", packet, 20)
            other.flows[port].take(queue, packet, gso.HEADER.unpack_from(message)[3])

    def sent(self) -> list[int]:
        return [flow.sent for flow in self.flows.values()]

    def got(self) -> list[int]:
        """How many packets of each flow have reached the other end."""
        return [flow.got for flow in self.flows.values()]

    def close(self) -> None:
        self.engine.close()
        for sock in self.programs:
            sock.close()
