"""Memory of accepted handshakes, so that none is accepted twice (doc/protocol.md section 5)."""

from collections import deque
from typing import Final

from pqtun.protocol.constants import EPHEMERAL_LIFETIME
from pqtun.protocol.errors import MessageError
from pqtun.protocol.primitives import hash32

# Handshakes of so many seconds are forgotten together, that many seconds later than need be.
SPAN: Final = 10

# All that comes in that time at 4000 accepted handshakes a second; about 55 MB when full.
MAX_REMEMBERED: Final = (EPHEMERAL_LIFETIME + SPAN) * 4000

_NAME_BYTES: Final = 16  # of the hash of c0: nobody finds two c0 with the same name


class ReplayMemory:
    """Remembers the ``c0`` of each accepted handshake for as long as its ephemeral key could still be accepted."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._spans: deque[tuple[float, set[bytes]]] = deque()  # when each began, and names; oldest first
        self._remembered = 0

    def check(self, c0: bytes, now: float) -> bytes:
        """Return the name to remember ``c0`` by. Raises MessageError: ``replay`` (known), ``replay_memory_full``.

        Changes nothing but what has expired: call it before the expensive work, ``remember`` after it.
        """
        while self._spans and self._spans[0][0] + SPAN + EPHEMERAL_LIFETIME <= now:
            _, forgotten = self._spans.popleft()
            self._remembered -= len(forgotten)
        name = hash32(c0)[:_NAME_BYTES]
        for _, names in self._spans:
            if name in names:
                raise MessageError("replay")
        if self._remembered >= self._limit:
            raise MessageError("replay_memory_full")
        return name

    def remember(self, name: bytes, now: float) -> None:
        """Take note of an accepted handshake that ``check`` let pass. ``now`` is in seconds and must not go back."""
        if not self._spans or now >= self._spans[-1][0] + SPAN:
            self._spans.append((now, set()))
        self._spans[-1][1].add(name)
        self._remembered += 1

    def __len__(self) -> int:
        return self._remembered
