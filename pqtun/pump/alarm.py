"""A call when a time of the engine's clock has come."""

import asyncio
from collections.abc import Callable
from math import inf

from pqtun.pump.limits import TIMER_SECONDS


class Alarm:
    """Rings once at a time of a clock that counts sleep, which the event loop's own does not: late by a second then."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], ring: Callable[[float], None]
    ) -> None:
        """``ring`` is called with the time that it is."""
        self._loop = loop
        self._clock = clock
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self.deadline = inf  # seconds of the clock

    def set(self, deadline: float) -> None:
        """Ring at ``deadline``, at no other time; never, if it is infinite."""
        self.deadline = deadline
        self._start(self._clock())

    def at_latest(self, deadline: float) -> None:
        """Ring at ``deadline`` unless it is to ring before."""
        if deadline < self.deadline:
            self.set(deadline)

    def cancel(self) -> None:
        """Ring no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, now: float) -> None:
        self.cancel()
        if self.deadline < inf:
            delay = min(max(self.deadline - now, 0.0), TIMER_SECONDS)
            self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        now = self._clock()
        if now >= self.deadline:
            self._ring(now)
        else:
            self._start(now)
