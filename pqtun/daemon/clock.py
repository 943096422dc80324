"""The two clocks of the services, and the event loop that goes by them."""

import asyncio
import os
import selectors
import time
from typing import Final


def _scale() -> float:
    try:
        return max(float(os.environ.get("PQTUN_CLOCK_SCALE", "")), 1.0)
    except ValueError:
        return 1.0


# For tests of what takes minutes: seconds pass that many times as fast, in every deadline of the process. Slower is not
# to be had, for keys would live longer.
SCALE: Final = _scale()


def boottime() -> float:
    """Seconds since boot, sleep included (CLOCK_BOOTTIME): deadlines of secrets run on it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) * SCALE


def wall() -> float:
    """Seconds since 1970; may step."""
    return time.time() * SCALE


def event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop whose timers go by the scale too."""
    return asyncio.new_event_loop() if SCALE == 1 else _ScaledLoop(_ScaledSelector())


class _ScaledSelector(selectors.EpollSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout if timeout is None else timeout / SCALE)


class _ScaledLoop(asyncio.SelectorEventLoop):
    def time(self) -> float:
        return super().time() * SCALE
