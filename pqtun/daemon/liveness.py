"""Whether a tunnel still reaches its peer: when to ask, and when to give it up. Pure."""

from enum import Enum, auto
from math import inf
from typing import Final

# While a tunnel is used, each direction carries a packet so often: NAT mappings for UDP live for 30 s and more
# (RFC 4787 section 4.3 asks for 120), and both chains of keys keep up.
KEEPALIVE_SECONDS: Final = 20.0

# What is sent is answered, by TCP's acknowledgements or by a pong, within a round trip: after three seconds of silence
# the peer is asked, once a second, and after eight it is taken to be out of reach. Together with a new handshake that
# is less than the ten seconds in which users notice a restarted server.
PROBE_SECONDS: Final = 3.0
LOST_SECONDS: Final = 8.0
PING_INTERVAL: Final = 1.0

# The same for a peer whose tunnels cannot be continued (PQConnect): a new one ends its TCP connections.
PATIENT_LOST_SECONDS: Final = 20.0

# When something says that the way may have changed (an address of this host, a hint of the server), the peer is asked
# at once and has so long to answer.
SUSPECT_SECONDS: Final = 3.0


class Verdict(Enum):
    """What to do about a tunnel now."""

    NOTHING = auto()
    PING = auto()
    LOST = auto()


class Liveness:
    """Watches one tunnel. ``now`` and all times are seconds on one clock that counts sleep and never goes back."""

    def __init__(self, now: float, *, patient: bool = False) -> None:
        """``patient``: wait longer for an answer, for a new tunnel would cost connections."""
        self._lost_after = PATIENT_LOST_SECONDS if patient else LOST_SECONDS
        self._heard = now
        self._asked: float | None = None  # since when nothing came although something was sent
        self._given_up = inf  # when the peer is out of reach unless something comes
        self._pinged = -inf
        self._suspected = False

    def suspect(self) -> None:
        """Something says that the peer may be out of reach: ask at once, or when a program needs it."""
        self._suspected = True

    def tick(self, now: float, *, last_sent: float | None, last_received: float | None, used: bool) -> Verdict:
        """Return what to do. Call it about twice a second; after PING the caller sends something that is answered.

        ``last_sent``, ``last_received``: when a packet of any kind passed; ``used``: whether a program needs the peer.
        """
        if last_received is not None and last_received > self._heard:
            self._heard = last_received
            if self._asked is not None and last_received > self._asked:
                self._asked, self._given_up = None, inf
        if self._asked is None and last_sent is not None and last_sent > self._heard:
            self._asked, self._given_up = last_sent, last_sent + self._lost_after
        if self._suspected and used:
            self._suspected = False
            if self._given_up > now + SUSPECT_SECONDS:
                self._asked, self._given_up = now, now + SUSPECT_SECONDS
                self._pinged = -inf
        if now >= self._given_up:
            return Verdict.LOST
        if now >= self._given_up - self._lost_after + PROBE_SECONDS:
            return self._ping(now, PING_INTERVAL)
        if used and now - min(self._heard, self._heard if last_sent is None else last_sent) >= KEEPALIVE_SECONDS:
            return self._ping(now, KEEPALIVE_SECONDS)
        return Verdict.NOTHING

    def _ping(self, now: float, interval: float) -> Verdict:
        if now - self._pinged < interval:
            return Verdict.NOTHING
        self._pinged = now
        return Verdict.PING
