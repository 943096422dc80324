"""A network in memory with a clock of its own, between a Download and a server function."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from pqtun.keyserver.download import Download

HEADERS = 28  # IPv4 and UDP, bytes


@dataclass
class Link:
    """One direction. `rate` in bit/s (None: infinite), `queue` in datagrams, `burst` in bytes, delays in seconds, the
    rest probabilities. `burst` may pass at once after a pause, as a token bucket lets it.
    """

    delay: float = 0.05
    rate: float | None = None
    queue: int = 1000
    burst: int = 0
    loss: float = 0.0
    jitter: float = 0.0
    duplicates: float = 0.0
    damage: float = 0.0
    random: Random = field(default_factory=lambda: Random(1))
    free_at: float = 0.0
    departures: list[float] = field(default_factory=list)
    offered: int = 0
    overflowed: int = 0
    longest: int = 0

    def carry(self, datagram: bytes, now: float) -> list[tuple[float, bytes]]:
        """What arrives of one datagram, and when."""
        self.offered += 1
        if self.rate is not None:
            self.departures = [moment for moment in self.departures if moment > now]
            if len(self.departures) >= self.queue:
                self.overflowed += 1
                return []
            self.free_at = max(self.free_at, now) + (len(datagram) + HEADERS) * 8 / self.rate
            now = max(now, self.free_at - self.burst * 8 / self.rate)
            self.departures.append(now)
            self.longest = max(self.longest, len(self.departures))
        if self.random.random() < self.loss:
            return []
        if self.random.random() < self.damage:
            place = self.random.randrange(len(datagram))
            datagram = (
                datagram[:place] + bytes([datagram[place] ^ 1 << self.random.randrange(8)]) + datagram[place + 1 :]
            )
        copies = 2 if self.random.random() < self.duplicates else 1
        return [(now + self.delay + self.random.random() * self.jitter, datagram) for _ in range(copies)]


Server = Callable[[bytes], bytes | None]


@dataclass
class Simulation:
    """Runs a download until it ends. `processing`: seconds that the server takes for each datagram, one by one."""

    download: Download
    server: Server
    up: Link
    down: Link
    processing: float = 0.0
    start: float = 1000.0
    now: float = 1000.0
    steps: int = 0
    most_in_flight: int = 0
    server_free_at: float = 0.0

    def run(self, limit: float = 1000.0) -> float:
        """Seconds of virtual time until the download was done or failed; fails if that takes longer than `limit`."""
        order = itertools.count()
        events: list[tuple[float, int, str, bytes]] = []

        def transmit(link: Link, kind: str, datagram: bytes, at: float) -> None:
            for moment, arrived in link.carry(datagram, at):
                heapq.heappush(events, (moment, next(order), kind, arrived))

        def step() -> None:
            self.steps += 1
            for request in self.download.requests_to_send(self.now):
                transmit(self.up, "request", request, self.now)
            self.most_in_flight = max(self.most_in_flight, self.download.in_flight)

        step()
        while (timer := self.download.next_timer) is not None:
            assert self.steps < 200_000, "the download spins"
            if events and events[0][0] <= timer:
                self.now, _, kind, datagram = heapq.heappop(events)
                if kind == "response":
                    self.download.receive(datagram, self.now)
                    step()
                elif (response := self.server(datagram)) is not None:
                    self.server_free_at = max(self.server_free_at, self.now) + self.processing
                    transmit(self.down, "response", response, self.server_free_at)
            else:
                self.now = max(self.now, timer)
                step()
            assert self.now - self.start < limit, f"still running after {limit} s: {self.download.counters}"
        return self.now - self.start
