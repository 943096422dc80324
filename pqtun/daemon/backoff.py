"""How long to wait between handshakes that nobody answers. Pure."""

import random
from typing import Final

FIRST_PAUSE: Final = 1.0  # seconds; doubled each time
LONGEST_PAUSE: Final = 16.0
JITTER: Final = 0.25  # share by which a pause is longer or shorter, so that a server's clients do not come all at once
GIVE_UP_SECONDS: Final = 90.0  # then programs are told; WireGuard's REKEY_ATTEMPT_TIME is the same


class Backoff:
    """Pauses of one series of attempts. Times are seconds."""

    def __init__(self, now: float, patience: float = GIVE_UP_SECONDS) -> None:
        """After ``patience`` there is no further attempt."""
        self._end = now + patience
        self._pause = FIRST_PAUSE

    def pause(self, now: float) -> float | None:
        """Return how long to wait before the next attempt, None if it was the last."""
        left = self._end - now
        if left <= 0:
            return None
        pause = self._pause * random.uniform(1 - JITTER, 1 + JITTER)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return min(pause, left)
