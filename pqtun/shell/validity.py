"""From when to when a certificate is valid: what `ssh-keygen -V` takes.

Source: ssh-keygen(1), sshd_config(5) (TIME FORMATS).
"""

import re
from datetime import UTC, datetime
from typing import Final

from pqtun.protocol.errors import UserError

FOREVER: Final = (1 << 64) - 1
"""The end that means none (PROTOCOL.certkeys)."""

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MINUTE: Final = 60
_FORMATS: Final = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_MAX_DIGITS: Final = 18


def duration(text: str) -> int:
    """Seconds of 90, 90s, 1h30m, 2d or 4w (also in upper case). ValueError."""
    if not text.isascii() or not re.fullmatch(r"(\d+[smhdwSMHDW]?)+", text) or len(text) > _MAX_DIGITS:
        raise ValueError("a duration looks like 90, 1h30m, 2d or 4w")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhdw]?)", text.lower()))


def moment(text: str, now: int) -> int:
    """Seconds since 1970 of +4w or -1h from `now`, 0x4b3d3b00, or YYYYMMDD[HHMM[SS]][Z] (local time without Z).

    ValueError.
    """
    if text[:1] in ("+", "-"):
        away = duration(text[1:])
        return now + away if text[0] == "+" else max(0, now - away)
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    utc = text.endswith("Z")
    digits = text.removesuffix("Z")
    if not re.fullmatch(r"[0-9]+", digits) or len(digits) not in _FORMATS:
        raise ValueError("a time looks like +4w, 20261231, 202612312359, 20261231235959Z or 0x4b3d3b00")
    parsed = datetime.strptime(digits, _FORMATS[len(digits)])
    try:
        seconds = int((parsed.replace(tzinfo=UTC) if utc else parsed.astimezone()).timestamp())
    except (OverflowError, OSError):
        raise ValueError("the time is out of range") from None
    if seconds < 0:
        raise ValueError("the time is before 1970")
    return seconds


def interval(text: str, now: int) -> tuple[int, int]:
    """First and last second since 1970 of an interval START:END, or END alone, which starts now. UserError.

    START may be "always", END "forever". An interval that starts now does so one to two minutes ago, at a full minute
    (as in ssh-keygen), for clocks that are a little behind.
    """
    start, colon, end = text.partition(":")
    if not colon:
        start, end = "", text
    try:
        if not colon and text[:1] != "+":
            raise ValueError("without a start it is +DURATION")
        first = (
            (now - _MINUTE + 1) // _MINUTE * _MINUTE if not start else 0 if start == "always" else moment(start, now)
        )
        last = FOREVER if end == "forever" else moment(end, now)
    except ValueError as error:
        raise UserError(f"validity {text!r}: {error}") from None
    if last <= first:
        raise UserError(f"validity {text!r}: it ends before it starts")
    if last > FOREVER:
        raise UserError(f"validity {text!r}: it ends too late for a certificate")
    return first, last


def describe(first: int, last: int) -> str:
    """What ssh-keygen prints of an interval, in local time."""
    if first == 0:
        return "forever" if last == FOREVER else f"before {_local(last)}"
    return f"after {_local(first)}" if last == FOREVER else f"from {_local(first)} to {_local(last)}"


def _local(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"second {seconds}"
