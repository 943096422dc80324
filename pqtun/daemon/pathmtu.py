"""Finds out how large a packet the way to a peer takes, by probes in the tunnel (RFC 8899 does the same). Pure."""

from math import inf
from typing import Final

# Bytes of inner packets. Beside the wanted size: what fits an outer path of 1492 (PPPoE), 1420 (another tunnel), 1280
# (IPv6's least) bytes over IPv6, and what every IPv4 path takes.
STEPS: Final = (1388, 1316, 1176, 1024, 768, 576)

PROBES: Final = 5  # unanswered ones in a row mean that the size does not pass: at 20 % loss a false alarm in 50 minutes
PROBE_INTERVAL: Final = 0.5
MAX_PROBES: Final = 20  # where small packets are not answered either: they say nothing then
CHECK_SECONDS: Final = 120.0  # how often a path in use is looked at anew: large packets may be dropped from now on
RAISE_SECONDS: Final = 600.0  # RFC 8899 PMTU_RAISE_TIMER: after that a larger size is tried


class PathMtu:
    """The largest inner packet for one peer. Times are seconds."""

    def __init__(self, wanted: int, now: float) -> None:
        """``wanted``: bytes, the most that this host and the peer allow, if that is no less than the least step."""
        self._sizes = (max(wanted, STEPS[-1]), *(step for step in STEPS if step < wanted))
        self._at = 0  # which size is in use
        self._trying = 0  # which is probed: that one, or a larger one
        self._sent = 0
        self._since = now  # when the first of these probes was sent
        self._next = now
        self._raise = inf

    @property
    def mtu(self) -> int:
        """Bytes of the largest inner packet that is worth sending."""
        return self._sizes[self._at]

    @property
    def doubtful(self) -> bool:
        """Whether a probe has not come back yet: a small packet then tells whether anything does."""
        return self._sent > 1

    def answered(self, size: int, now: float) -> None:
        """A probe of ``size`` bytes has come back."""
        if size == self._sizes[self._trying]:
            self._at, self._sent = self._trying, 0
            self._next = now + CHECK_SECONDS

    def check(self, now: float) -> None:
        """The path may have changed: begin anew with the largest size."""
        self._trying, self._sent, self._next = 0, 0, now

    def tick(self, now: float, answered: float | None) -> int | None:
        """Return how many bytes a probe shall have that is due now, None if none is.

        ``answered``: when the latest of the small packets was sent that have come back. Where none does, because
        nothing passes, or takes long, or the peer does not answer such packets, that is no matter of size.
        """
        if now >= self._raise:
            self._raise = inf
            self.check(now)
        if now < self._next:
            return None
        if self._sent >= PROBES and answered is not None and answered > self._since:
            self._too_large(now)
            self._sent = 0
        if self._sent >= MAX_PROBES:
            self._sent, self._next = 0, now + CHECK_SECONDS
            return None
        if self._sent == 0:
            self._since = now
        self._sent += 1
        self._next = now + PROBE_INTERVAL
        return self._sizes[self._trying]

    def _too_large(self, now: float) -> None:
        self._trying = min(self._trying + 1, len(self._sizes) - 1)
        self._at = max(self._at, self._trying)
        self._raise = now + RAISE_SECONDS
