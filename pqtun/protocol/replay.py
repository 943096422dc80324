"""Memory of accepted handshakes, so that none is accepted twice (doc/protocol.md section 5)."""

from collections import OrderedDict
from typing import Final

from pqtun.protocol.constants import EPHEMERAL_LIFETIME
from pqtun.protocol.errors import MessageError

# 120 s at 1000 accepted handshakes a second; about 40 MB when full.
MAX_REMEMBERED: Final = 120_000


class ReplayMemory:
    """Remembers the ``c0`` of each accepted handshake for as long as its ephemeral key could still be accepted."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._forget_at: OrderedDict[bytes, float] = OrderedDict()  # oldest first: one lifetime for all

    def check(self, c0: bytes, now: float) -> None:
        """Raise MessageError("replay") for a known ``c0``, MessageError("replay_memory_full") when there is no room.

        Changes nothing but what has expired: call it before the expensive work, ``remember`` after it.
        """
        while self._forget_at and next(iter(self._forget_at.values())) <= now:
            self._forget_at.popitem(last=False)
        if c0 in self._forget_at:
            raise MessageError("replay")
        if len(self._forget_at) >= self._limit:
            raise MessageError("replay_memory_full")

    def remember(self, c0: bytes, now: float) -> None:
        """Take note of an accepted handshake. ``now`` is in seconds and must not go back."""
        self._forget_at[c0] = now + EPHEMERAL_LIFETIME

    def __len__(self) -> int:
        return len(self._forget_at)
