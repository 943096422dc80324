"""How many requests the key server answers: of one source prefix, and altogether. Sans-IO."""

import secrets

from pqtun.keyserver.limits import (
    EPHEMERAL_BURST,
    EPHEMERAL_RATE,
    PREFIX_BURST,
    PREFIX_RATE,
    PREFIX_SLOTS,
    STATIC_BURST,
    STATIC_RATE,
)
from pqtun.rates.buckets import KEY_BYTES, PrefixBuckets, TokenBucket


class Admission:
    """Token buckets. ``now`` is in seconds, of one clock that never goes back."""

    def __init__(self, ephemeral_per_prefix: float = PREFIX_RATE, slots: int = PREFIX_SLOTS) -> None:
        """``ephemeral_per_prefix``: of the answers to a prefix, so many a second may be ephemeral keys."""
        self._prefixes = PrefixBuckets(PREFIX_RATE, PREFIX_BURST, slots, secrets.token_bytes(KEY_BYTES), 0.0)
        # What an ephemeral key takes of a prefix's tokens, of which one is a static answer.
        self._ephemeral_price = max(PREFIX_RATE / ephemeral_per_prefix, 1.0)
        self._static = TokenBucket(STATIC_RATE, STATIC_BURST, 0.0)
        self._ephemeral = TokenBucket(EPHEMERAL_RATE, EPHEMERAL_BURST, 0.0)

    def refusal(self, host: str, *, ephemeral: bool, now: float) -> str | None:
        """Return why a request of this source is not answered (``prefix_limit``, ``limit``), None if it is.

        Ephemeral keys have a share of their own: who knows the long-term key can connect while others download.
        """
        price = self._ephemeral_price if ephemeral else 1.0
        if not self._prefixes.take(self._prefixes.slot(host), now, price):
            return "prefix_limit"
        return None if (self._ephemeral if ephemeral else self._static).take(now) else "limit"
