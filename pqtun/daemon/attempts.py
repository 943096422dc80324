"""The client's connection attempts under way, bounded: anybody can have this host look up names without end."""

from collections import Counter
from typing import Final

from pqtun.daemon.link import Link

# Each attempt may hold a megabyte of a key and two sockets. An attempt at a server that answers takes few round trips.
# So many are made at peers that there was a tunnel to before, and so many at others, who take no place of those.
MAX_ATTEMPTS: Final = 32


class Attempts:
    """Has links connect. Beyond the bound the oldest attempt at a new peer that nothing came of yet makes room.

    A peer that there was a tunnel to before keeps its place, as does a download that moves.
    """

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._links: list[Link] = []  # oldest first

    def want(self, link: Link) -> None:
        """Have a link connect if it should, soon if it does already. Where there is no room, its held packets fail."""
        if not link.idle or link.refuses:
            link.want()
            return
        self._links = [other for other in self._links if not other.idle and other.state == "connecting"]
        alike = [other for other in self._links if other.peer.proven == link.peer.proven]
        if len(alike) >= MAX_ATTEMPTS:
            oldest = next((other for other in alike if not other.progress and not other.peer.proven), None)
            if oldest is None:
                self._counters["attempts_full"] += 1
                link.refuse()
                return
            self._counters["attempts_given_up"] += 1
            self._links.remove(oldest)
            oldest.give_up("given up for others: too many servers are being connected to")
        link.want()
        if not link.idle:
            self._links.append(link)
