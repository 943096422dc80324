"""Tunnel packets that came before the handshake that names their tunnel was done. Pure; bounded; unauthenticated."""

from collections import OrderedDict

from pqtun.pump.engine import Endpoint
from pqtun.pump.limits import EARLY_BYTES, EARLY_PACKETS, EARLY_PACKETS_PER_TUNNEL, EARLY_SECONDS

EarlyPacket = tuple[bytes, Endpoint]


class EarlyPackets:
    """A small stash by tid. Anyone can write into it, so the oldest packets make room for new ones."""

    def __init__(self) -> None:
        self._packets: OrderedDict[int, tuple[float, bytes, bytes, Endpoint]] = OrderedDict()
        self._by_tid: dict[bytes, list[int]] = {}
        self._next = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._packets)

    def add(self, tid: bytes, datagram: bytes, source: Endpoint, now: float) -> int:
        """Keep a datagram; return how many datagrams were dropped for it (itself, or older ones)."""
        if len(self._by_tid.get(tid, ())) >= EARLY_PACKETS_PER_TUNNEL or len(datagram) > EARLY_BYTES:
            return 1
        dropped = 0
        while len(self._packets) >= EARLY_PACKETS or self._bytes + len(datagram) > EARLY_BYTES:
            self._drop_oldest()
            dropped += 1
        self._packets[self._next] = (now, tid, datagram, source)
        self._by_tid.setdefault(tid, []).append(self._next)
        self._next += 1
        self._bytes += len(datagram)
        return dropped

    def take(self, tid: bytes) -> list[EarlyPacket]:
        """Remove and return the datagrams of a tunnel, in the order in which they came."""
        taken = []
        for number in self._by_tid.pop(tid, ()):
            _, _, datagram, source = self._packets.pop(number)
            self._bytes -= len(datagram)
            taken.append((datagram, source))
        return taken

    def expire(self, now: float) -> int:
        """Drop datagrams older than a second; return how many."""
        dropped = 0
        while self._packets and next(iter(self._packets.values()))[0] + EARLY_SECONDS <= now:
            self._drop_oldest()
            dropped += 1
        return dropped

    def next_deadline(self) -> float | None:
        """When the oldest datagram is a second old."""
        for arrived, _, _, _ in self._packets.values():
            return arrived + EARLY_SECONDS
        return None

    def clear(self) -> None:
        """Forget everything."""
        self._packets.clear()
        self._by_tid.clear()
        self._bytes = 0

    def _drop_oldest(self) -> None:
        number, (_, tid, datagram, _) = self._packets.popitem(last=False)
        self._bytes -= len(datagram)
        numbers = self._by_tid[tid]
        numbers.remove(number)
        if not numbers:
            del self._by_tid[tid]
