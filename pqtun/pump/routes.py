"""All tunnels of a Python engine, and which of them leads to an address."""

import heapq
from collections.abc import Iterator
from ipaddress import IPv4Address
from math import inf

from pqtun.pump.inner import Inbound
from pqtun.pump.link import Link


class Routes:
    """Tunnels by their id, by the 4-byte private address that they stand for, and by when their keys are due to go.

    Several may stand for one address. What is for it goes through the newest that is no standby.
    """

    def __init__(self) -> None:
        self._links: dict[bytes, Link] = {}
        self._by_inner: dict[bytes, list[Link]] = {}  # oldest first
        self._through: dict[bytes, Link] = {}
        self._deadlines: list[tuple[float, int, bytes]] = []  # heap; a tunnel's deadline only ever moves later
        self._number = 0

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def __contains__(self, tid: bytes) -> bool:
        return tid in self._links

    def get(self, tid: bytes) -> Link | None:
        """Return the tunnel of that id."""
        return self._links.get(tid)

    def through(self, inner: bytes) -> Link | None:
        """Return the tunnel that packets for ``inner`` go through."""
        return self._through.get(inner)

    def add(self, link: Link) -> None:
        """Take a tunnel in; its id is none that is here."""
        self._number += 1
        link.number = self._number
        self._links[link.tid] = link
        self._enter(link)
        self._watch(link)

    def move(self, link: Link, inner: IPv4Address, inbound: Inbound) -> None:
        """Make a tunnel the newest of ``inner``, whose packets ``inbound`` readdresses, and no standby."""
        self._leave(link)
        link.inner, link.inbound = inner, inbound
        link.standby = False
        self._enter(link)

    def remove(self, tid: bytes) -> Link | None:
        """Forget a tunnel and return it. Its keys are the caller's to erase."""
        link = self._links.pop(tid, None)
        if link is not None:
            self._leave(link)
        return link

    def expire(self, now: float) -> list[Link]:
        """Erase keys that are due; return the tunnels, still here, that have none left."""
        dead = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number, tid = heapq.heappop(self._deadlines)
            link = self._links.get(tid)
            if link is None or link.number != number:
                continue
            link.tunnel.expire(now)
            if link.tunnel.dead:
                dead.append(link)
            else:
                self._watch(link)
        return dead

    def next_deadline(self) -> float:
        """When ``expire`` has something to do next, or earlier; infinite if there is no tunnel."""
        return self._deadlines[0][0] if self._deadlines else inf

    def _watch(self, link: Link) -> None:
        deadline = link.tunnel.next_deadline
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, link.number, link.tid))

    def _enter(self, link: Link) -> None:
        self._by_inner.setdefault(link.inner.packed, []).append(link)
        self._choose(link.inner.packed)

    def _leave(self, link: Link) -> None:
        inner = link.inner.packed
        links = self._by_inner[inner]
        links.remove(link)
        if not links:
            del self._by_inner[inner]
        self._choose(inner)

    def _choose(self, inner: bytes) -> None:
        for link in reversed(self._by_inner.get(inner, ())):
            if not link.standby:
                self._through[inner] = link
                return
        self._through.pop(inner, None)
