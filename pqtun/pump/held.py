"""Packets that wait for a tunnel to their address. Pure; bounded in every direction."""

from collections import deque

from pqtun.pump.limits import HELD_ADDRESSES, HELD_BYTES, HELD_PACKETS, HELD_PACKETS_PER_PEER, HELD_SECONDS

_Queue = deque[tuple[float, bytes]]


class HeldPackets:
    """Queues of packets by 4-byte inner address. Where a bound is reached the new packet is refused."""

    def __init__(self) -> None:
        self._queues: dict[bytes, _Queue] = {}
        self._unreported: set[bytes] = set()
        self.packets = 0
        self.bytes = 0

    @property
    def addresses(self) -> int:
        """How many addresses packets are held for."""
        return len(self._queues)

    def __contains__(self, inner: bytes) -> bool:
        return inner in self._queues

    def hold(self, inner: bytes, *, report: bool) -> bool:
        """Hold for an address; ``report``: its next packet is to be reported. False if too many are held for."""
        if inner not in self._queues:
            if len(self._queues) >= HELD_ADDRESSES:
                return False
            self._queues[inner] = deque()
        if report:
            self._unreported.add(inner)
        else:
            self._unreported.discard(inner)
        return True

    def report(self, inner: bytes) -> bool:
        """A packet for an address that is held for has come: say whether to report it. The next one is not."""
        if inner not in self._unreported:
            return False
        self._unreported.remove(inner)
        return True

    def add(self, inner: bytes, packet: bytes, now: float) -> bool:
        """Add a packet for an address that is held for. False if it was refused: queue or total is full."""
        queue = self._queues[inner]
        if len(queue) >= HELD_PACKETS_PER_PEER or self.packets >= HELD_PACKETS or self.bytes + len(packet) > HELD_BYTES:
            return False
        queue.append((now, packet))
        self.packets += 1
        self.bytes += len(packet)
        return True

    def take(self, inner: bytes) -> list[bytes]:
        """End the holding for an address; return its packets, oldest first. Empty if there was none."""
        self._unreported.discard(inner)
        packets = [packet for _, packet in self._queues.pop(inner, ())]
        self.packets -= len(packets)
        self.bytes -= sum(map(len, packets))
        return packets

    def expire(self, now: float) -> int:
        """Drop packets that have waited 30 s; return how many. Their addresses are held for still."""
        dropped = 0
        for queue in self._queues.values():
            while queue and queue[0][0] + HELD_SECONDS <= now:
                self.bytes -= len(queue.popleft()[1])
                dropped += 1
        self.packets -= dropped
        return dropped

    def next_deadline(self) -> float | None:
        """When the oldest packet has waited long enough."""
        return min((queue[0][0] + HELD_SECONDS for queue in self._queues.values() if queue), default=None)

    def clear(self) -> None:
        """Forget everything."""
        self._queues.clear()
        self._unreported.clear()
        self.packets = self.bytes = 0
