"""Completion of `pqtun sftp`'s lines: commands, and paths here and there."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pqtun.shell.client.sftpline import ALIASES, COMMANDS, Word, quoted, split

FRESH: Final = 5.0  # seconds that a listing of the server is taken for true

Names = Callable[[bytes], list[tuple[bytes, bool]]]
"""Name, and whether it is a directory, of what is in a directory; nothing if it cannot be read."""


@dataclass(frozen=True)
class Completion:
    """``line`` is the whole line with the word completed, ``shown`` what a list of choices shows for it."""

    line: str
    shown: str


def complete(line: str, remote: Names, local: Names) -> list[Completion]:
    """Return what a line (up to the cursor) may become, sorted."""
    stripped = line.lstrip()
    prefix = line[: len(line) - len(stripped)]
    while stripped[:1] in ("-", "@") and stripped[:1]:
        prefix, stripped = prefix + stripped[0], stripped[1:]
    found = split(stripped)
    if found.open_escape:
        return []
    words = list(found.words)
    current = words.pop() if found.open_word else None
    if not words:
        command = "" if current is None else os.fsdecode(current.text)
        names = sorted(name for name in {*COMMANDS, *ALIASES} if name.startswith(command) and name.isalpha())
        return [Completion(f"{prefix}{name} ", name) for name in names]
    where = _argument(words, local, remote)
    if where is None:
        return []
    begin = len(stripped) if current is None else current.begin
    head = prefix + stripped[:begin]
    begun = b"" if current is None else current.text
    return [
        Completion(
            head + _typed(path, found.quote, is_directory), os.fsdecode(posixpath.basename(path)) + "/" * is_directory
        )
        for path, is_directory in _paths(begun, where)
    ]


def _argument(words: list[Word], local: Names, remote: Names) -> Names | None:
    """Return who lists the argument that comes after `words`, None if it is no path."""
    typed = os.fsdecode(words[0].text).lower()
    syntax = COMMANDS.get(ALIASES.get(typed, typed))
    if syntax is None or not syntax.paths:
        return None
    before = [word for word in words[1:] if not word.pattern.startswith(b"-")]
    kind = syntax.paths[min(len(before), len(syntax.paths) - 1)] if len(before) < max(syntax.most, 1) else "-"
    return {"r": remote, "l": local}.get(kind)


def _paths(begun: bytes, names: Names) -> list[tuple[bytes, bool]]:
    directory, name = posixpath.split(begun)
    base = begun[: len(begun) - len(name)]
    return sorted(
        (base + found, is_directory)
        for found, is_directory in names(directory or b".")
        if found.startswith(name) and (name or not found.startswith(b".")) and b"/" not in found
    )


def _typed(path: bytes, quote: str, is_directory: bool) -> str:
    """Return a path as it would be typed: a directory is gone on with, after a file comes the next word."""
    text = quote + quoted(path, quote)
    return f"{text}/" if is_directory else f"{text}{quote} "


class CachedNames:
    """Listings of the server, kept for a moment: each key that asks for a completion would ask the server."""

    def __init__(self, names: Names, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = names
        self._clock = clock
        self._kept: dict[bytes, tuple[float, list[tuple[bytes, bool]]]] = {}

    def __call__(self, path: bytes) -> list[tuple[bytes, bool]]:
        """See Names."""
        now = self._clock()
        self._kept = {key: value for key, value in self._kept.items() if now - value[0] < FRESH}
        if path not in self._kept:
            self._kept[path] = (now, self._names(path))
        return self._kept[path][1]

    def forget(self) -> None:
        """Ask again: a command may have changed something, or the directory."""
        self._kept.clear()


def local_names(path: bytes) -> list[tuple[bytes, bool]]:
    """Return what is in a directory here; see Names."""
    try:
        with os.scandir(os.path.expanduser(path)) as found:
            return [(entry.name, entry.is_dir()) for entry in found]
    except OSError:
        return []
