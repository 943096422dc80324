"""Patterns of file names, as glob(7) has them: ``*``, ``?``, ``[a-z]``, and a backslash before what is meant as it is.

Patterns and names are bytes, as names of files are.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

from pqtun.protocol.errors import UserError

MAX_ALTERNATIVES: Final = 1000  # patterns that braces may make of one

Lister = Callable[[bytes], Awaitable[list[bytes]]]
"""The names in a directory, without . and ..; none if it cannot be read."""
Existence = Callable[[bytes], Awaitable[bool]]
"""Whether a path is there, be it a broken link."""

_SPECIAL: Final = re.compile(rb"[*?\[\\]")


def is_pattern(pattern: bytes) -> bool:
    """Whether it may stand for several names."""
    return re.search(rb"(?:^|[^\\])(?:\\\\)*[*?\[]", pattern) is not None


def escape(name: bytes) -> bytes:
    """Return the pattern that means this name only."""
    return _SPECIAL.sub(rb"\\\g<0>", name)


def unescape(pattern: bytes) -> bytes:
    """Return the name that is meant where a pattern is not looked for."""
    return re.sub(rb"\\(.)", rb"\1", pattern, flags=re.DOTALL)


def matches(pattern: bytes, name: bytes) -> bool:
    """Whether one component of a path fits; a leading dot must stand in the pattern."""
    if name.startswith(b".") and not pattern.startswith((b".", b"\\.")):
        return False
    return _compiled(pattern).fullmatch(name) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    parts: list[bytes] = []
    index = 0
    while index < len(pattern):
        letter = pattern[index : index + 1]
        index += 1
        if letter == b"*":
            if parts[-1:] != [b".*"]:
                parts.append(b".*")
        elif letter == b"?":
            parts.append(b".")
        elif letter == b"\\" and index < len(pattern):
            parts.append(re.escape(pattern[index : index + 1]))
            index += 1
        elif letter == b"[" and (found := _brackets(pattern, index)):
            parts.append(found[0])
            index = found[1]
        else:
            parts.append(re.escape(letter))
    return re.compile(b"".join(parts), re.DOTALL)


def _brackets(pattern: bytes, index: int) -> tuple[bytes, int] | None:
    """Return the expression for what begins after ``[``, and where it ends; None if it is not closed."""
    end = index
    negated = pattern[end : end + 1] in (b"!", b"^") and pattern[end : end + 1] != b""
    end += negated
    first = end
    members: list[bytes] = []
    while end < len(pattern):
        letter = pattern[end : end + 1]
        if letter == b"]" and end > first:
            break
        if letter == b"\\" and end + 1 < len(pattern):
            end += 1
            letter = pattern[end : end + 1]
        end += 1
        if pattern[end : end + 1] == b"-" and pattern[end + 1 : end + 2] not in (b"", b"]"):
            last = pattern[end + 1 : end + 2]
            end += 2
            if last == b"\\" and end < len(pattern):
                last = pattern[end : end + 1]
                end += 1
            if letter <= last:
                members.append(re.escape(letter) + b"-" + re.escape(last))
        else:
            members.append(re.escape(letter))
    else:
        return None
    if not members:  # such as [z-a]
        return (b"(?s:.)" if negated else b"(?!)"), end + 1
    return b"[" + (b"^" if negated else b"") + b"".join(members) + b"]", end + 1


async def expand(pattern: bytes, names: Lister, exists: Existence) -> list[bytes]:
    """Return the paths that fit, sorted; each component is matched by itself, so a name never adds one.

    ``names`` that have a slash or are . or .. are never taken, whatever the pattern.
    """
    absolute = pattern.startswith(b"/")
    found = [b"/" if absolute else b""]
    for component in filter(None, pattern.split(b"/")):
        following: list[bytes] = []
        for directory in found:
            if not is_pattern(component):
                following.append(posixpath.join(directory, unescape(component)))
                continue
            following += [
                posixpath.join(directory, name)
                for name in await names(directory or b".")
                if b"/" not in name and name not in (b"", b".", b"..") and matches(component, name)
            ]
        found = following
    return [path for path in sorted(found) if await exists(path)]


def alternatives(pattern: bytes) -> list[bytes]:
    """Return the patterns that ``{a,b}`` stands for, as a shell would; ``{}`` and single braces mean themselves.

    Raises UserError if there are more than MAX_ALTERNATIVES.
    """
    done: list[bytes] = []
    waiting = [pattern]
    while waiting:
        current = waiting.pop()
        parts = _first_braces(current)
        if parts is None:
            done.append(current)
        else:
            before, choices, after = parts
            waiting += [before + choice + after for choice in reversed(choices)]
        if len(done) + len(waiting) > MAX_ALTERNATIVES:
            raise UserError(f"more than {MAX_ALTERNATIVES} names in braces")
    return done


def _first_braces(pattern: bytes) -> tuple[bytes, list[bytes], bytes] | None:
    index = 0
    while index < len(pattern):
        letter = pattern[index : index + 1]
        if letter == b"\\":
            index += 1
        elif letter == b"{" and (closed := _choices(pattern, index + 1)):
            return pattern[:index], closed[0], pattern[closed[1] :]
        index += 1
    return None


def _choices(pattern: bytes, begin: int) -> tuple[list[bytes], int] | None:
    """Return what commas part after an opening brace, and where it ends; None if it is not closed or has no comma."""
    depth = 0
    choices = []
    start = index = begin
    while index < len(pattern):
        letter = pattern[index : index + 1]
        if letter == b"\\":
            index += 1
        elif letter == b"{":
            depth += 1
        elif letter == b"}" and depth:
            depth -= 1
        elif letter == b"}":
            choices.append(pattern[start:index])
            return (choices, index + 1) if len(choices) > 1 else None
        elif letter == b"," and not depth:
            choices.append(pattern[start:index])
            start = index + 1
        index += 1
    return None
