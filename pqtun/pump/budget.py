"""How much may pass in a time: rates of events, and bytes to an endpoint that nobody confirmed. Pure."""

from array import array
from hashlib import blake2b
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

from pqtun.pump.limits import (
    IPV4_PREFIX_BYTES,
    IPV6_PREFIX_BYTES,
    UNCONFIRMED_BYTES,
    UNCONFIRMED_FACTOR,
    UNCONFIRMED_PREFIX_BYTES,
    UNCONFIRMED_PREFIX_RATE,
    UNCONFIRMED_PREFIX_SLOTS,
    UNCONFIRMED_RATE,
)

KEY_BYTES: Final = 16


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
        six = ":" in host
        prefix = inet_pton(AF_INET6, host)[:IPV6_PREFIX_BYTES] if six else inet_pton(AF_INET, host)[:IPV4_PREFIX_BYTES]
        return int.from_bytes(blake2b(prefix, digest_size=8, key=self._key).digest(), "big") % self._slots

    def take(self, slot: int, now: float, amount: float = 1.0) -> bool:
        """Take so much out of a slot. False if there is less, which then stays."""
        level = min(self._burst, self._levels[slot] + (now - self._since[slot]) * self._rate)
        enough = amount <= level
        self._levels[slot] = level - amount if enough else level
        self._since[slot] = now
        return enough


def unconfirmed_prefixes(key: bytes, now: float) -> PrefixBuckets:
    """Return what all tunnels together may send to unconfirmed endpoints of a prefix, in bytes."""
    return PrefixBuckets(UNCONFIRMED_PREFIX_RATE, UNCONFIRMED_PREFIX_BYTES, UNCONFIRMED_PREFIX_SLOTS, key, now)


class SendBudget:
    """What a tunnel may send to the endpoint of its peer (RFC 9000 section 8.2, where it is called anti-amplification).

    An endpoint is believed as soon as a packet from it authenticates, but the peer can have given somebody else's
    address as its own. Until the peer was shown to be reached there, little is sent: some bytes, which all endpoints
    of the tunnel share and all tunnels to the endpoint's network, and a multiple of those that came from there.
    """

    __slots__ = ("_bucket", "_credit", "confirmed")

    def __init__(self, confirmed: bool, now: float) -> None:
        self.confirmed = confirmed
        self._bucket = TokenBucket(UNCONFIRMED_RATE, UNCONFIRMED_BYTES, now)
        self._credit = 0  # bytes, for those that were received

    def moved(self) -> None:
        """The peer has another endpoint now."""
        self.confirmed = False
        self._credit = 0

    def received(self, size: int) -> None:
        """A datagram of ``size`` bytes came from the endpoint and authenticated."""
        if not self.confirmed:
            self._credit += UNCONFIRMED_FACTOR * size

    def take(self, size: int, host: str, prefixes: PrefixBuckets, now: float) -> bool:
        """Say whether a datagram of ``size`` bytes may be sent to the endpoint, at ``host``, and count it if so."""
        if self.confirmed:
            return True
        earned = min(size, self._credit)
        free = size - earned
        if free:
            if not (self._bucket.holds(now, free) and prefixes.take(prefixes.slot(host), now, free)):
                return False
            self._bucket.take(now, free)
        self._credit -= earned
        return True
