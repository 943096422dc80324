"""How many requests the key server answers: of one source prefix, and altogether. Sans-IO.

Sources can be forged, so there is no entry a source: prefixes share the slots of a fixed table, by a hash that nobody
else can compute.
"""

import secrets
from array import array
from hashlib import blake2b
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

from pqtun.keyserver.limits import (
    EPHEMERAL_BURST,
    EPHEMERAL_RATE,
    IPV4_PREFIX_BYTES,
    IPV6_PREFIX_BYTES,
    PREFIX_BURST,
    PREFIX_RATE,
    PREFIX_SLOTS,
    STATIC_BURST,
    STATIC_RATE,
)

_SLOT_BYTES: Final = 8


class Admission:
    """Token buckets. ``now`` is in seconds, of one clock that never goes back."""

    def __init__(self, ephemeral_per_prefix: float = PREFIX_RATE, slots: int = PREFIX_SLOTS) -> None:
        """``ephemeral_per_prefix``: of the answers to a prefix, so many a second may be ephemeral keys."""
        self._key = secrets.token_bytes(16)
        self._slots = slots
        self._tokens = array("d", [PREFIX_BURST]) * slots
        self._filled = array("d", [0.0]) * slots
        # What an ephemeral key takes of a prefix's tokens, of which one is a static answer.
        self._ephemeral_price = max(PREFIX_RATE / ephemeral_per_prefix, 1.0)
        self._static = _Bucket(STATIC_RATE, STATIC_BURST)
        self._ephemeral = _Bucket(EPHEMERAL_RATE, EPHEMERAL_BURST)

    def refusal(self, host: str, *, ephemeral: bool, now: float) -> str | None:
        """Return why a request of this source is not answered (``prefix_limit``, ``limit``), None if it is.

        Ephemeral keys have a share of their own: who knows the long-term key can connect while others download.
        """
        if not self._prefix(source_prefix(host), now, self._ephemeral_price if ephemeral else 1.0):
            return "prefix_limit"
        return None if (self._ephemeral if ephemeral else self._static).take(now) else "limit"

    def _prefix(self, prefix: bytes, now: float, price: float) -> bool:
        digest = blake2b(prefix, digest_size=_SLOT_BYTES, key=self._key).digest()
        slot = int.from_bytes(digest, "big") % self._slots
        tokens = min(PREFIX_BURST, self._tokens[slot] + (now - self._filled[slot]) * PREFIX_RATE)
        self._filled[slot] = now
        self._tokens[slot] = tokens - price if tokens >= price else tokens
        return tokens >= price


class _Bucket:
    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._filled = burst, 0.0

    def take(self, now: float) -> bool:
        tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        self._tokens = tokens - 1 if tokens >= 1 else tokens
        return tokens >= 1


def source_prefix(host: str) -> bytes:
    """Return the /24 or /56 of a source's address."""
    if ":" in host:
        return inet_pton(AF_INET6, host)[:IPV6_PREFIX_BYTES]
    return inet_pton(AF_INET, host)[:IPV4_PREFIX_BYTES]
