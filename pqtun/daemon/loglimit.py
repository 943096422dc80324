"""Keeps a log from being filled by whoever can cause a line of it."""

import logging
from collections.abc import Callable
from typing import Final

BURST: Final = 20  # lines that may come at once
SECONDS_A_LINE: Final = 10.0  # after that; journald's own limit is for the whole service


class LogLimit(logging.Filter):
    """Lets a logger's records through at a bounded rate, and says how many it left out. Errors always pass."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._left = float(BURST)
        self._latest = clock()
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on one record."""
        if record.levelno >= logging.ERROR:
            return True
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._latest) / SECONDS_A_LINE)
        self._latest = now
        if self._left < 1:
            self._left_out += 1
            return False
        self._left -= 1
        if self._left_out:
            record.msg = f"{record.getMessage()} (and {self._left_out} lines like it that were left out)"
            record.args = None
            self._left_out = 0
        return True
