"""The two clocks of the services."""

import time


def boottime() -> float:
    """Seconds since boot, sleep included (CLOCK_BOOTTIME): deadlines of secrets run on it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since 1970; may step."""
    return time.time()
