"""How much may be sent to an endpoint that nobody confirmed. Pure."""

from pqtun.pump.limits import (
    UNCONFIRMED_BYTES,
    UNCONFIRMED_FACTOR,
    UNCONFIRMED_PREFIX_BYTES,
    UNCONFIRMED_PREFIX_RATE,
    UNCONFIRMED_PREFIX_SLOTS,
    UNCONFIRMED_RATE,
)
from pqtun.rates.buckets import PrefixBuckets, TokenBucket


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
