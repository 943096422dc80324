"""Which datagrams that are no tunnel packets reach the control plane. Pure; what it keeps has a fixed size.

Anybody can send these, from any source address. What costs the control plane most, a handshake, has to be bounded
before anything looks into it, so that neither one customer's network nor all the others together take the time that
live tunnels and new clients need.
"""

from array import array

from pqtun.protocol.constants import (
    COOKIE_BYTES,
    COOKIE_PREFIX,
    HANDSHAKE,
    HANDSHAKE_BYTES,
    HANDSHAKE_FAILED,
    TUNNEL,
    TUNNEL_OVERHEAD,
)
from pqtun.protocol.errors import MessageError
from pqtun.pump.engine import Datagram, Endpoint, HandshakeLimits
from pqtun.pump.limits import (
    ALL_BURST_SECONDS,
    EXPECTED_SECONDS,
    HINTS_PER_SECOND,
    PREFIX_BURST_SECONDS,
    PREFIX_SLOTS,
    UNEXPECTED_SHARE,
)
from pqtun.rates.buckets import PrefixBuckets, TokenBucket


class Admission:
    """Admits hints at a client; at a server handshakes and returned cookies, within its limits."""

    def __init__(self, limits: HandshakeLimits | None, key: bytes, now: float) -> None:
        """Without ``limits`` it is a client's. ``key``: random bytes, so that nobody can aim at another's slot."""
        self._hints = TokenBucket(HINTS_PER_SECOND, HINTS_PER_SECOND, now)
        self._limits = limits
        if limits is not None:
            burst = limits.per_prefix * PREFIX_BURST_SECONDS
            self._prefixes = PrefixBuckets(limits.per_prefix, burst, PREFIX_SLOTS, key, now)
            self._expected_until = array("d", [now]) * PREFIX_SLOTS
            self._expected = _bucket(limits.per_second, now)
            self._others = _bucket(limits.per_second * UNEXPECTED_SHARE, now)

    @property
    def of_server(self) -> bool:
        """Whether this host takes handshakes."""
        return self._limits is not None

    def expect(self, host: str, now: float) -> None:
        """The next handshake may well come from this outer address: its prefix is expected for some time."""
        if self._limits is not None:
            self._expected_until[self._prefixes.slot(host)] = now + EXPECTED_SECONDS

    def admit(self, data: bytes, source: Endpoint, now: float) -> Datagram:
        """Return the datagram for the control plane.

        Raises MessageError: datagram_unknown (neither handshake nor cookie nor hint), handshake_unwanted (at a
        client), handshake_prefix_limit, handshake_limit, hint_unwanted (at a server), hint_limit.
        """
        if data == HANDSHAKE_FAILED:
            if self._limits is not None:
                raise MessageError("hint_unwanted")
            if not self._hints.take(now):
                raise MessageError("hint_limit")
            return Datagram(data, source)
        handshake = len(data) == HANDSHAKE_BYTES and data.startswith(HANDSHAKE)
        if not handshake and not (len(data) == COOKIE_BYTES and data.startswith(COOKIE_PREFIX)):
            raise MessageError("datagram_unknown")
        if self._limits is None:
            raise MessageError("handshake_unwanted")
        slot = self._prefixes.slot(source[0])
        if not self._prefixes.take(slot, now):
            raise MessageError("handshake_prefix_limit")
        expected = now < self._expected_until[slot]
        if not (self._expected if expected else self._others).take(now):
            raise MessageError("handshake_limit")
        return Datagram(data, source, expected)


def behind_cookie(datagram: bytes) -> tuple[bytes, bytes]:
    """Cut a datagram in a returned cookie and the tunnel packet that a PQConnect client sends behind it.

    Any other datagram comes back as it is, with nothing behind it.
    """
    packet = datagram[COOKIE_BYTES:]
    if datagram.startswith(COOKIE_PREFIX) and packet.startswith(TUNNEL) and len(packet) >= TUNNEL_OVERHEAD:
        return datagram[:COOKIE_BYTES], packet
    return datagram, b""


def _bucket(rate: float, now: float) -> TokenBucket:
    return TokenBucket(rate, max(rate * ALL_BURST_SECONDS, 1.0), now)
