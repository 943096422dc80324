"""What `ls` and `df` of sftp print."""

from __future__ import annotations

import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pqtun.shell.client.printable import columns, printable
from pqtun.shell.client.store import Entry

_HALF_A_YEAR: Final = 365 * 86400 // 2  # seconds; older files show the year, as with ls(1)
_GAP: Final = 2
_UNITS: Final = "KMGTPE"


@dataclass(frozen=True)
class Listed:
    """One line of a listing; ``longname`` is what the server made of it for `ls -l`, empty if it made nothing."""

    name: bytes
    entry: Entry
    longname: bytes = b""


def ordered(files: Sequence[Listed], flags: frozenset[str]) -> list[Listed]:
    """Return files in the order that -f, -t, -S and -r ask for; by name if nothing does."""
    if "f" in flags:
        return list(files)
    if "t" in flags:
        found = sorted(files, key=lambda file: (-(file.entry.mtime or 0), file.name))
    elif "S" in flags:
        found = sorted(files, key=lambda file: (-file.entry.size, file.name))
    else:
        found = sorted(files, key=lambda file: file.name)
    return found[::-1] if "r" in flags else found


def lines(files: Sequence[Listed], flags: frozenset[str], width: int, now: float) -> list[str]:
    """Return the lines of a listing: long with -l or -n, one name each with -1, else in columns of the terminal."""
    if flags & {"l", "n"}:
        return [_long(file, flags, now) for file in files]
    names = [printable(file.name) for file in files]
    return names if "1" in flags else in_columns(names, width)


def in_columns(names: Sequence[str], width: int) -> list[str]:
    """Return names in columns, read downwards, in lines of at most `width` columns where they fit."""
    if not names:
        return []
    widest = max(columns(name) for name in names) + _GAP
    across = max(width // widest, 1)
    down = -(-len(names) // across)
    rows = []
    for row in range(down):
        cells = names[row::down]
        rows.append("".join(cell + " " * (widest - columns(cell)) for cell in cells).rstrip())
    return rows


def _long(file: Listed, flags: frozenset[str], now: float) -> str:
    if file.longname and not flags & {"n", "h"}:
        return printable(file.longname)
    entry = file.entry
    mode = "?" * 10 if entry.mode is None else stat.filemode(entry.mode)
    size = human(entry.size) if "h" in flags else str(entry.size)
    owner = "?" if entry.uid is None else str(entry.uid)
    group = "?" if entry.gid is None else str(entry.gid)
    links = "?" if entry.links is None else str(entry.links)
    return f"{mode} {links:>4} {owner:<8} {group:<8} {size:>8} {_when(entry.mtime, now)} {printable(file.name)}"


def _when(mtime: float | None, now: float) -> str:
    if mtime is None:
        return "?" * 12
    form = "%b %e %H:%M" if 0 <= now - mtime < _HALF_A_YEAR else "%b %e  %Y"
    try:
        return f"{time.strftime(form, time.localtime(mtime)):>12}"
    except (OverflowError, ValueError, OSError):
        return "?" * 12


def human(size: int) -> str:
    """Return a size in few characters: 1023B, 1.5K, 20M."""
    value = float(size)
    unit = "B"
    for following in _UNITS:
        if value < 1023.5:
            break
        value, unit = value / 1024, following
    return f"{value:.1f}{unit}" if unit != "B" and value < 9.95 else f"{value:.0f}{unit}"


def space(total: int, used: int, available: int, unit: int, *, readable: bool, inodes: bool) -> list[str]:
    """Return the lines of df: `total`, `used` and `available` in units of `unit` bytes, or in inodes."""
    percent = f"{-(-100 * used // (used + available))}%" if used + available > 0 else "ERR"
    if inodes:
        return [
            f"{'Inodes':>12} {'Used':>12} {'Avail':>12} {'(root)':>12} {'%Capacity':>9}",
            f"{total:>12} {used:>12} {available:>12} {total - used:>12} {percent:>9}",
        ]
    amounts = (total * unit, used * unit, available * unit, (total - used) * unit)
    shown = [human(amount) if readable else str(amount // 1024) for amount in amounts]
    wide = 8 if readable else 12
    titles = ["Size", "Used", "Avail", "(root)"]
    return [
        " ".join(f"{title:>{wide}}" for title in titles) + "    %Capacity",
        " ".join(f"{text:>{wide}}" for text in shown) + f"    {percent:>9}",
    ]
