"""One line of the audit log, and the head file that says which line is the last one.

A line is a JSON object in printable ASCII: `sequence` (from 1), `time` (UTC), `previous` (the hash in the line before,
64 zeros in the first), then `event` (what a caller wrote) or `log` (what the log says of itself), and at the end
`hash`: SHA-256 over a label and every byte of the line before that. Thus no other spelling of a line has its hash.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

MAX_LINE_BYTES: Final = 64 << 10
"""No line is longer, its newline included. An event's texts are cut so that it fits."""

NO_HASH: Final = "0" * 64
"""`previous` of the first line."""

HEAD_BYTES: Final = 256
"""Size of the head file; always the same, so that it is replaced by one write."""

MAX_TEXT: Final = 1024
MAX_TEXTS: Final = 4096
"""Characters kept of one text, and of all texts of an event together. A character takes 12 bytes at most."""

MAX_ITEMS: Final = 64
MAX_DEPTH: Final = 4
MAX_NAME: Final = 64

_LABEL: Final = b"pqtun audit 1\n"
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_END: Final = re.compile(rb',"hash":"([0-9a-f]{64})"\}\n')
_END_BYTES: Final = 76
_MAX_NUMBER: Final = 1 << 63


class LineError(ValueError):
    """A line, or a head file, is not what the log writes. The text says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a line says. `about` is {"event": ...} or {"log": ...}."""

    sequence: int
    time: str
    previous: str
    hash: str
    about: Mapping[str, Any]

    def log_action(self) -> str | None:
        """What the log did, if the line is its own: started, opened, continued, rotated, lost, recovered, missing."""
        log = self.about.get("log")
        return log["action"] if isinstance(log, dict) and isinstance(log.get("action"), str) else None


def encode(sequence: int, now: float, previous: str, about: Mapping[str, object]) -> tuple[bytes, str]:
    """The line with its newline, and its hash. `now` in seconds since 1970; `about` as `bounded` left it."""
    time = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {"sequence": sequence, "time": time, "previous": previous, **about}
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    body = text[:-1].encode("ascii")
    digest = _digest(body)
    return b'%s,"hash":"%s"}\n' % (body, digest.encode()), digest


def decode(line: bytes) -> Line:
    """What is in a line, its newline included. LineError if it is not exactly what `encode` makes."""
    end = _END.fullmatch(line[-_END_BYTES:])
    if not end:
        raise LineError("the line is cut off" if not line.endswith(b"\n") else "it does not end with its hash")
    body = line[:-_END_BYTES]
    digest = end[1].decode()
    if _digest(body) != digest:
        raise LineError("its text was changed: the hash does not fit")
    try:
        record = json.loads(body + b"}")
    except (ValueError, RecursionError):
        raise LineError("it is no JSON object") from None
    match record:
        case {"sequence": int() as sequence, "time": str() as time, "previous": str() as previous, **rest}:
            about = {str(name): value for name, value in rest.items()}
            if sequence > 0 and _HASH.fullmatch(previous) and len(about) == 1 and about.keys() <= {"event", "log"}:
                return Line(sequence, time, previous, digest, about)
    raise LineError("it is no line of this log")


def _digest(body: bytes) -> str:
    return hashlib.sha256(_LABEL + body).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The last line that was written: its number and hash, and where it ends in the file (bytes)."""

    sequence: int
    hash: str
    end: int

    def encode(self) -> bytes:
        """The head file's content: one line, filled up with blanks."""
        text = json.dumps({"sequence": self.sequence, "hash": self.hash, "end": self.end})
        return text.ljust(HEAD_BYTES - 1).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> "Head":
        """LineError if it is none."""
        try:
            record = json.loads(data) if len(data) == HEAD_BYTES else None
        except ValueError:
            record = None
        match record:
            case {"sequence": int() as sequence, "hash": str() as digest, "end": int() as end}:
                if 0 < sequence <= _MAX_NUMBER and 0 < end <= _MAX_NUMBER and _HASH.fullmatch(digest):
                    return cls(sequence, digest, end)
        raise LineError("it is no head file of this log")


def bounded(event: Mapping[str, object]) -> dict[str, object]:
    """A copy of an event with texts cut and counts limited, fit for a line whatever a peer or a user put into it.

    Cut texts end in "…". Bytes become text; what JSON does not have, and numbers over 64 bits, become a type's name.
    """
    found = _Bounds().value(dict(event), 0)
    return found if isinstance(found, dict) else {}


class _Bounds:
    """What may still be taken of one event."""

    def __init__(self) -> None:
        self._characters = MAX_TEXTS
        self._items = MAX_ITEMS

    def value(self, value: object, depth: int) -> object:
        match value:
            case bool() | None:
                return value
            case int() if -_MAX_NUMBER <= value < _MAX_NUMBER:
                return value
            case float() if -1e300 < value < 1e300:
                return value
            case str():
                return self._text(value, MAX_TEXT)
            case bytes():
                return self._text(value[: MAX_TEXT + 1].decode("utf-8", "backslashreplace"), MAX_TEXT)
            case Mapping() if depth < MAX_DEPTH:
                pairs = ((self._text(str(name), MAX_NAME), item) for name, item in self._some(value.items()))
                return {name: self.value(item, depth + 1) for name, item in pairs}
            case list() | tuple() if depth < MAX_DEPTH:
                return [self.value(item, depth + 1) for item in self._some(value)]
        if isinstance(value, Mapping | list | tuple):
            return "…"
        return self._text(str(value) if isinstance(value, float) else f"<{type(value).__name__}>", MAX_NAME)

    def _some(self, items: Any) -> Any:
        for item in items:
            if not self._items:
                return
            self._items -= 1
            yield item

    def _text(self, text: str, most: int) -> str:
        most = min(most, self._characters)
        self._characters -= min(len(text), most)
        return text if len(text) <= most else text[:most] + "…"
