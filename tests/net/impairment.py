"""What a bad path does to packets: loss, bursts of it, delay, reordering, duplicates, bit errors, a rate. Pure.

A path has two directions, each a `Direction` with a seed of its own: the same packets at the same times have the same
fate in each run. Times are seconds of any clock that does not go back.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush

_HEADERS = {4: 20, 6: 40}  # bytes of an IP header by version; options are as good as payload here


@dataclass(frozen=True)
class Conditions:
    """What happens to the packets of one direction. Shares are from 0 to 1, times in seconds, sizes those of IP."""

    delay: float = 0.0  # one way
    loss: float = 0.0  # share
    burst: int = 0  # packets lost in a row, again and again ...
    burst_every: int = 0  # ... after so many that were not (0: never) ...
    burst_for: float = 0.5  # ... or fewer in so much time: else TCP would wait ever longer between what it sends
    reorder: float = 0.0  # share that ...
    reorder_by: float = 0.003  # ... is held back for so long
    duplicate: float = 0.0  # share
    corrupt: float = 0.0  # share in which one bit behind the IP header is flipped
    rate: float = 0.0  # bit/s (0: unlimited)
    queue: float = 0.2  # how long a packet may wait for the rate before it is dropped
    largest: int = 0  # bytes; larger packets vanish, without ICMP (0: none do)
    cut: bool = False  # nothing passes

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is no share: {getattr(self, name)}")
        for name in ("delay", "burst", "burst_every", "burst_for", "reorder_by", "rate", "queue", "largest"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is negative: {getattr(self, name)}")


class Direction:
    """Packets on their way from one end of a path to the other."""

    def __init__(self, conditions: Conditions, seed: int | str) -> None:
        self.conditions = conditions  # may be replaced at any time: it holds for what enters from then on
        # entered, delivered, bytes (delivered), duplicated, reordered, corrupted;
        # of those that vanished: cut, too_large, burst, lost, queue
        self.counters: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._under_way: list[tuple[float, int, bytes]] = []  # a heap: arrival, serial number, packet
        self._serial = 0
        self._free_at = 0.0  # when the rate has passed all that entered
        self._to_lose = 0
        self._burst_end = float("inf")
        self._since_burst = 0

    def lose_next(self, count: int) -> None:
        """The next `count` packets that enter are lost, however long it takes."""
        self._to_lose, self._burst_end = count, float("inf")

    @property
    def next_arrival(self) -> float | None:
        """When the next packet is due; None if none is under way."""
        return self._under_way[0][0] if self._under_way else None

    def enter(self, packet: bytes, now: float) -> None:
        """A packet begins its way."""
        self.counters["entered"] += 1
        fate = self._vanishes(packet, now)
        if fate is not None:
            self.counters[fate] += 1
            return
        conditions = self.conditions
        if conditions.corrupt and self._dice.random() < conditions.corrupt:
            packet = self._corrupted(packet)
            self.counters["corrupted"] += 1
        arrival = now + conditions.delay
        if conditions.rate:
            self._free_at = max(now, self._free_at) + len(packet) * 8 / conditions.rate
            arrival = self._free_at + conditions.delay
        copies = 1
        if conditions.duplicate and self._dice.random() < conditions.duplicate:
            copies = 2
            self.counters["duplicated"] += 1
        if conditions.reorder and self._dice.random() < conditions.reorder:
            arrival += conditions.reorder_by
            self.counters["reordered"] += 1
        for _ in range(copies):
            self._serial += 1
            heappush(self._under_way, (arrival, self._serial, packet))

    def arrived(self, now: float) -> list[bytes]:
        """The packets that are there by `now`, in the order of their arrival; each is returned once."""
        found = []
        under_way = self._under_way
        while under_way and under_way[0][0] <= now:
            found.append(heappop(under_way)[2])
        if found:
            self.counters["delivered"] += len(found)
            self.counters["bytes"] += sum(map(len, found))
        return found

    def _vanishes(self, packet: bytes, now: float) -> str | None:
        """Why the packet does not arrive, or None."""
        conditions = self.conditions
        if conditions.cut:
            return "cut"
        if conditions.largest and len(packet) > conditions.largest:
            return "too_large"
        if conditions.burst_every:
            self._since_burst += 1
            if self._since_burst > conditions.burst_every:
                self._since_burst = 0
                self._to_lose, self._burst_end = conditions.burst, now + conditions.burst_for
        if self._to_lose and now <= self._burst_end:
            self._to_lose -= 1
            self._since_burst = 0
            return "burst"
        if conditions.loss and self._dice.random() < conditions.loss:
            return "lost"
        if conditions.rate and self._free_at - now > conditions.queue:
            return "queue"
        return None

    def _corrupted(self, packet: bytes) -> bytes:
        """The packet with one bit flipped; no checksum is mended."""
        first = min(_HEADERS.get(packet[0] >> 4, 0), len(packet) - 1) if packet else 0
        changed = bytearray(packet)
        if changed:
            changed[self._dice.randrange(first, len(changed))] ^= 1 << self._dice.randrange(8)
        return bytes(changed)
