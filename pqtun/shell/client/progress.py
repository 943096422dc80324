"""The line that shows how far a file is: name, percent, bytes, rate, time left, as scp(1) draws it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from pqtun.shell.client.printable import fit, printable

INTERVAL: Final = 1.0  # seconds between two drawings
STALLED_AFTER: Final = 5.0  # seconds without a byte
DEFAULT_WIDTH: Final = 80  # columns of a terminal that does not tell its size

_UNITS: Final = ("B", "KB", "MB", "GB", "TB", "PB", "EB")
_STEP: Final = 1024
_LARGEST_AMOUNT: Final = 9999  # four digits
_LARGEST_RATE: Final = 999.9  # what would round to 1000.0 takes the next unit
_FIGURES: Final = len(" 100% 9999KB 999.9KB/s 00:00:00 ETA")
_SHORTEST_SAMPLE: Final = 0.001  # seconds
_SMOOTHING: Final = 0.7  # how much of the earlier rate stays after a second
_LONGEST: Final = 99 * 3600 + 59 * 60 + 59  # seconds


def amount(size: int) -> str:
    """Return a number of bytes in 6 columns: `  12KB`."""
    value, unit = size, 0
    while value > _LARGEST_AMOUNT and unit < len(_UNITS) - 1:
        value = (value + _STEP // 2) // _STEP
        unit += 1
    return f"{value:>4}{_UNITS[unit]:<2}"


def rate_text(rate: float) -> str:
    """Return a rate, in bytes a second, in 9 columns: ` 12.3MB/s`."""
    unit = 1  # at least KB, as a rate in bytes is hard to compare with one in megabytes
    value = rate / _STEP
    while value > _LARGEST_RATE and unit < len(_UNITS) - 1:
        value /= _STEP
        unit += 1
    return f"{min(value, _LARGEST_RATE):>5.1f}{_UNITS[unit]}/s"


def clock_text(seconds: float | None) -> str:
    """Return a duration in 8 columns: `   01:05`, `01:00:00`; `   --:--` for None and for 100 hours and more."""
    if seconds is None or not 0 <= seconds <= _LONGEST:
        return "   --:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{second:02}" if hours else f"   {minutes:02}:{second:02}"


def percent(done: int, total: int) -> int:
    """Return the whole percent, 100 only when all of it is there; an empty file is whole."""
    if total <= 0 or done >= total:
        return 100
    return 100 * max(done, 0) // total


def line(name: str, done: int, total: int, rate: float, clock: str, width: int) -> str:
    """Return the line in exactly `width` columns, the name cut as needed; in very narrow ones its beginning."""
    figures = f" {percent(done, total):3}% {amount(done)} {rate_text(rate)} {clock}"
    figures = f"{figures:<{_FIGURES}}"
    return fit(fit(name, max(width - _FIGURES, 0)) + figures, width)


class Meter:
    """The rate of a transfer, in bytes a second, smoothed over a few seconds; `now` is a monotonic time in seconds."""

    def __init__(self, start: int, total: int, now: float) -> None:
        """`start` bytes of `total` were there before the transfer."""
        self.total = total
        self.done = start
        self._start = start
        self._begin = self._marked_at = self._moved_at = now
        self._marked = start
        self._rate: float | None = None

    def update(self, done: int, now: float) -> None:
        """Take notice that `done` bytes are there."""
        if done != self.done:
            self.done = done
            self._moved_at = now

    def sample(self, now: float) -> float:
        """Return the rate as of now; what passed since the last sample counts most."""
        elapsed = now - self._marked_at
        if elapsed < _SHORTEST_SAMPLE:
            return self._rate or 0.0
        latest = max(self.done - self._marked, 0) / elapsed
        kept = _SMOOTHING**elapsed
        self._rate = latest if self._rate is None else kept * self._rate + (1 - kept) * latest
        self._marked_at, self._marked = now, self.done
        return self._rate

    def average(self, now: float) -> float:
        """Return the rate from the beginning."""
        return max(self.done - self._start, 0) / max(now - self._begin, 1e-6)

    def remaining(self, rate: float) -> float | None:
        """Return the seconds that the rest takes at a rate, None if that cannot be said."""
        return (self.total - self.done) / rate if rate > 0 and self.total >= self.done else None

    def stalled(self, now: float) -> bool:
        """Whether nothing has moved for a while."""
        return now - self._moved_at >= STALLED_AFTER

    def elapsed(self, now: float) -> float:
        """Return the seconds since the beginning."""
        return now - self._begin


class ProgressBar:
    """One file's line on a terminal, drawn again each second in the size that the terminal then has."""

    def __init__(
        self, terminal: int, name: bytes, total: int, start: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`terminal` is an open descriptor; drawing begins at once and needs the running event loop."""
        self._terminal = terminal
        self._name = printable(name)
        self._clock = clock
        self._meter = Meter(start, total, clock())
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    def update(self, done: int) -> None:
        """Take notice that `done` bytes of the file are there."""
        self._meter.update(done, self._clock())

    def close(self) -> None:
        """Draw the line for the last time, with the average rate and the time it took, and go to the next line."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        now = self._clock()
        meter = self._meter
        self._draw(meter.average(now), clock_text(meter.elapsed(now)), "\n")

    def _tick(self) -> None:
        now = self._clock()
        meter = self._meter
        rate = meter.sample(now)
        stalled = meter.stalled(now) and meter.done < meter.total
        self._draw(rate, "- stalled -" if stalled else f"{clock_text(meter.remaining(rate))} ETA", "")
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._tick)

    def _draw(self, rate: float, clock: str, end: str) -> None:
        try:
            # A background program that writes may be stopped by its terminal (tostop), or spoil another's screen.
            if os.tcgetpgrp(self._terminal) != os.getpgrp():
                return
            width = os.get_terminal_size(self._terminal).columns or DEFAULT_WIDTH
            text = line(self._name, self._meter.done, self._meter.total, rate, clock, width - 1)
            os.write(self._terminal, f"\r{text}{end}".encode())
        except OSError:
            pass  # a terminal that has gone away is no reason to end a transfer
