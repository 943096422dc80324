"""Reads an audit log and says what, if anything, has been done to it since it was written."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from pqtun.protocol.errors import UserError
from pqtun.shell.audit import head_path, rotated_path
from pqtun.shell.auditline import HEAD_BYTES, MAX_LINE_BYTES, NO_HASH, Head, Line, LineError, decode

_TRIES: Final = 3
"""A log that is being written to may be caught in the middle of a line."""

_HEAD_TRIES: Final = 50
_HEAD_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing that is wrong: in which file, at which line of it (from 1; 0: none), and what."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


@dataclass(slots=True)
class Report:
    """What a log says. Without a problem, every line from `first` to `last` is as it was written."""

    files: list[Path]
    lines: int = 0
    first: int = 0
    last: int = 0
    hash: str = NO_HASH
    problem: Problem | None = None
    notes: list[str] = field(default_factory=list)


def verify(path: Path, contains: str | None = None) -> Report:
    """Checks a log and the files of it that were put aside and are still there, oldest first.

    `contains` is the hash of a line that was noted elsewhere and must be in the log. UserError if a file cannot be
    read. The log may be written to meanwhile.
    """
    for _ in range(_TRIES):
        before = _read_head(path)
        report = _verify(path, before, contains)
        if report.problem is None or _read_head(path) == before:
            break
    return report


def _verify(path: Path, head: Head | None, contains: str | None) -> Report:
    with _open(path) as current:  # which stays the same file if it is put aside meanwhile
        report = Report(_files(path, current))
        check = _Check(report, head, contains)
        for file in report.files[:-1]:
            with _open(file) as older:
                report.problem = _read(file, older, check)
            if report.problem:
                return report
        report.problem = _read(path, current, check)
    wrong = None if report.problem else check.end(_head_of(path, report.last))
    if wrong:
        report.problem = Problem(path, 0, wrong)
    report.problem = report.problem or _gap(path, report)
    return report


def _head_of(path: Path, last: int) -> Head | None:
    """The head file, once a writer who has just written the line `last` has had the time to write it too."""
    for _ in range(_HEAD_TRIES):
        head = _read_head(path)
        if head is None or head.sequence >= last:
            break
        time.sleep(_HEAD_SECONDS)
    return head


def _read(file: Path, opened: BinaryIO, check: "_Check") -> Problem | None:
    opened.seek(0)
    for number, text in enumerate(_texts(file, opened), 1):
        wrong = check.line(text)
        if wrong:
            return Problem(file, number, wrong)
    return None


class _Check:
    """Where the check has got to."""

    def __init__(self, report: Report, head: Head | None, contains: str | None) -> None:
        self._report = report
        self._head = head
        self._contains = contains
        self._before: Line | None = None

    def line(self, text: bytes) -> str | None:
        """What is wrong with the next line, or None."""
        try:
            line = decode(text)
        except LineError as error:
            return str(error)
        wrong = self._begins(line) if self._before is None else self._follows(self._before, line)
        if wrong:
            return wrong
        if self._head and line.sequence == self._head.sequence and line.hash != self._head.hash:
            return "it is not the line that the head file knows under its number: everything up to it may be made up"
        report = self._report
        report.first = report.first or line.sequence
        report.lines += 1
        report.last, report.hash = line.sequence, line.hash
        if line.hash == self._contains:
            self._contains = None
        self._before = line
        return self._says(line)

    def _begins(self, line: Line) -> str | None:
        if line.sequence == 1 and line.previous == NO_HASH:
            return None
        if line.log_action() == "continued":
            self._report.notes.append(f"lines 1 to {line.sequence - 1} were put aside and are not here")
            return None
        if line.log_action() == "missing":
            return None  # which `_says` reports
        return f"lines 1 to {line.sequence - 1} are missing before it"

    def _follows(self, before: Line, line: Line) -> str | None:
        expected = before.sequence + 1
        if line.sequence > expected:
            return f"{_lines(expected, line.sequence - 1)} missing before it"
        if line.sequence < expected:
            return f"it is line {line.sequence}, where line {expected} belongs: moved, repeated or put in"
        if line.previous != before.hash:
            return f"it does not continue line {before.sequence} as that is now: one of the two was replaced"
        return None

    def _says(self, line: Line) -> str | None:
        log = line.about.get("log")
        match line.log_action():
            case "missing" if log and log.get("head"):
                return "the head file was gone when the log was opened here: lines before it may be missing"
            case "missing":
                return "lines before it were gone when the log was opened here"
            case "lost" if log:
                self._note(line, f"{log.get('events')} events could not be written")
            case "recovered" if log:
                lines, removed = log.get("lines"), log.get("bytes_removed")
                self._note(line, f"after a crash, {lines} lines were newer than the head file; {removed} bytes of an "
                                 "unfinished line were removed")  # fmt: skip
        return None

    def _note(self, line: Line, text: str) -> None:
        self._report.notes.append(f"line {line.sequence} ({line.time}): {text}")

    def end(self, head_after: Head | None) -> str | None:
        """What is wrong with the end of the log, or None. `head_after` was read after the lines."""
        last = self._before
        if last is None:
            return "it is empty" + ("" if self._head is None else f": {_lines(1, self._head.sequence)} missing")
        if self._head is None or head_after is None:
            if last.log_action() != "rotated":
                return "its head file is missing: lines may be missing at the end"
        elif last.sequence < self._head.sequence:
            return f"{_lines(last.sequence + 1, self._head.sequence)} missing at the end"
        elif last.sequence > head_after.sequence:
            return f"{_lines(head_after.sequence + 1, last.sequence)} unknown to the head file: a crash, or added"
        if self._contains is not None:
            return "the line with the hash that was noted elsewhere is not in it: it is another log"
        return None


def _lines(first: int, last: int) -> str:
    return f"line {first} is" if first == last else f"lines {first} to {last} are"


def _files(path: Path, current: BinaryIO) -> list[Path]:
    """The log's files that are there, oldest first: each one's first line names the one before it."""
    files, name = [path], _file_before(path, path, current)
    seen = {path.name}
    while name is not None and name not in seen and (older := path.with_name(name)).exists():
        files.append(older)
        seen.add(name)
        with _open(older) as opened:
            name = _file_before(older, path, opened)
    return files[::-1]


def _gap(path: Path, report: Report) -> Problem | None:
    """Old files may be taken away, but not from among others: then lines are missing."""
    base = path.with_name(_base(path))
    aside = re.compile(re.escape(base.name) + r"\.([0-9]{12,18})")
    try:
        names = os.listdir(base.parent)
    except OSError as error:
        raise UserError(f"{base.parent} cannot be read: {error.strerror}") from None
    older = [name for name in names if (found := aside.fullmatch(name)) and int(found[1]) < report.first - 1]
    if not older:
        return None
    return Problem(rotated_path(base, report.first - 1), 0, f"it is missing, while {max(older)} before it is here")


def _base(path: Path) -> str:
    """The name of the log that a file, put aside or not, is of."""
    return path.name if head_path(path).exists() else path.name.rsplit(".", 1)[0]


def _file_before(file: Path, path: Path, opened: BinaryIO) -> str | None:
    try:
        log = decode(next(_texts(file, opened), b"")).about.get("log")
    except LineError:
        return None
    name = log.get("file") if isinstance(log, dict) else None
    beside = isinstance(name, str) and name.startswith(_base(path) + ".") and name == os.path.basename(name)
    return name if beside else None


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _texts(file: Path, opened: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, with their newlines; one that is too long comes in pieces."""
    try:
        while text := opened.readline(MAX_LINE_BYTES):
            yield text
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _read_head(path: Path) -> Head | None:
    file = head_path(path)
    try:
        with file.open("rb") as opened:
            return Head.decode(opened.read(HEAD_BYTES + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except LineError:
        return None
