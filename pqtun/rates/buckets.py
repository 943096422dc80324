"""Token buckets, for all and for each prefix of source addresses. Pure.

Sources can be forged, so there is no entry a source: prefixes share the slots of a fixed table, by a hash that nobody
else can compute.
"""

from array import array
from hashlib import blake2b
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

from pqtun.protocol.limits import IPV4_PREFIX_BYTES, IPV6_PREFIX_BYTES

KEY_BYTES: Final = 16
_DIGEST_BYTES: Final = 8


def source_prefix(host: str) -> bytes:
    """Return the /24 or /56 of a source's address. Raises OSError if it is none."""
    if ":" in host:
        return inet_pton(AF_INET6, host)[:IPV6_PREFIX_BYTES]
    return inet_pton(AF_INET, host)[:IPV4_PREFIX_BYTES]


class TokenBucket:
    """Lets ``burst`` pass at once and ``rate`` a second. ``now`` is in seconds on a clock that never goes back."""

    __slots__ = ("_burst", "_level", "_rate", "_since")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._since = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take so much out. False if there is less, which then stays."""
        enough = self.holds(now, amount)
        if enough:
            self._level -= amount
        return enough

    def holds(self, now: float, amount: float) -> bool:
        """Say whether so much could be taken."""
        self._level = min(self._burst, self._level + (now - self._since) * self._rate)
        self._since = now
        return amount <= self._level


class PrefixBuckets:
    """A token bucket for each prefix of outer addresses: slots of a fixed table, which prefixes share."""

    def __init__(self, rate: float, burst: float, slots: int, key: bytes, now: float) -> None:
        """``key``: random bytes, so that nobody can aim at another's slot."""
        self._rate = rate
        self._burst = burst
        self._slots = slots
        self._key = key
        self._levels = array("d", [burst]) * slots
        self._since = array("d", [now]) * slots

    def slot(self, host: str) -> int:
        """Return which one the prefix of ``host`` has."""
        digest = blake2b(source_prefix(host), digest_size=_DIGEST_BYTES, key=self._key).digest()
        return int.from_bytes(digest, "big") % self._slots

    def take(self, slot: int, now: float, amount: float = 1.0) -> bool:
        """Take so much out of a slot. False if there is less, which then stays."""
        level = min(self._burst, self._levels[slot] + (now - self._since[slot]) * self._rate)
        enough = amount <= level
        self._levels[slot] = level - amount if enough else level
        self._since[slot] = now
        return enough
