"""How much may pass in a time: rates of events, and bytes to an endpoint that nobody confirmed. Pure."""

from pqtun.pump.limits import UNCONFIRMED_BYTES, UNCONFIRMED_FACTOR, UNCONFIRMED_RATE


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
        level = min(self._burst, self._level + (now - self._since) * self._rate)
        self._since = now
        enough = amount <= level
        self._level = level - amount if enough else level
        return enough


class SendBudget:
    """What a tunnel may send to the endpoint of its peer (RFC 9000 section 8.2, where it is called anti-amplification).

    An endpoint is believed as soon as a packet from it authenticates, but the peer can have given somebody else's
    address as its own. Until the peer was shown to be reached there, little is sent: some bytes, which all endpoints
    of the tunnel share, and a multiple of those that came from there.
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

    def take(self, size: int, now: float) -> bool:
        """Say whether a datagram of ``size`` bytes may be sent to the endpoint, and count it if so."""
        if self.confirmed:
            return True
        earned = min(size, self._credit)
        if not self._bucket.take(now, size - earned):
            return False
        self._credit -= earned
        return True
