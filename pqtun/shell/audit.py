"""The audit log: JSON lines in a hash chain (pqtun.shell.auditline), written by one process at a time.

Who can write to the directory, as root can, can make a whole new chain; then only a hash kept elsewhere tells
(`Report.hash`). Against everybody else, and against accidents, the chain and the head file beside the log show every
line changed, added, removed or moved, at the end too: the head file (NAME.head) holds number and hash of the last line.

No line is synced to the disk on its own: a line is in the kernel when `write` returns, so it survives every crash of
pqtun, but a power failure may take the last half minute. What is lost so is reported as missing. `sync` and `close` and
each rotation sync. A file that has grown to `max_bytes` is renamed to NAME.<number of its last line> and continues in a
fresh one; old files are kept.
"""

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pqtun.keys.directory import sync_directory
from pqtun.protocol.errors import UserError
from pqtun.shell.auditline import HEAD_BYTES, MAX_LINE_BYTES, NO_HASH, Head, Line, LineError, bounded, decode, encode

MAX_BYTES: Final = 64 << 20
"""Size at which a file is put aside."""

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

log = logging.getLogger(__name__)


def head_path(path: Path) -> Path:
    """Where the head file of a log is."""
    return path.with_name(path.name + ".head")


def rotated_path(path: Path, sequence: int) -> Path:
    """Where a file of the log whose last line is `sequence` is put aside."""
    return path.with_name(f"{path.name}.{sequence:012d}")


class AuditLog:
    """An open log. Not for several threads. A process that is forked off must not write to it."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.time) -> None:
        """Opens the log, or makes it (mode 600) with its directory (700), and continues the chain.

        What a crash left is put right and written down. UserError if the file is not ours alone, cannot be written, or
        another process writes to it.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._clock = clock
        self._file = self._head_file = -1
        self._size = 0
        self._last = Head(0, NO_HASH, 0)
        self._lost = 0
        self._rotated = False  # whether the file's last line is "rotated"
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            self._head_file = _open(head_path(path), os.O_RDWR)
            _lock(self._head_file, path)
            self._continue("opened")
            self.sync()  # lest a power failure takes the head file itself
            sync_directory(path.parent)
        except OSError as error:
            self.close()
            raise UserError(f"cannot write the audit log {path}: {error.strerror}") from None
        except UserError:
            self.close()
            raise

    @property
    def sequence(self) -> int:
        """The number of the last line."""
        return self._last.sequence

    @property
    def hash(self) -> str:
        """The hash of the last line: kept elsewhere, it shows that the lines up to here have not been changed since."""
        return self._last.hash

    def write(self, event: Mapping[str, object]) -> bool:
        """Appends an event, bounded; whether that worked. Never raises for the disk's sake.

        Where it did not, as on a full disk, one warning is logged, and the next line that can be written says how many
        events are not there.
        """
        try:
            self._look()
            if self._lost:
                self._append({"log": {"action": "lost", "events": self._lost}})
                self._lost = 0
            self._append({"event": bounded(event)})
            return True
        except (OSError, UserError) as error:
            if not self._lost:
                log.warning("the audit log %s cannot be written, events are lost: %s", self._path, error)
            self._lost += 1
            return False

    def sync(self) -> None:
        """Waits until all lines are on the disk. OSError."""
        os.fdatasync(self._file)
        os.fdatasync(self._head_file)

    def close(self) -> None:
        """Syncs and closes. May be repeated."""
        for descriptor in (self._file, self._head_file):
            if descriptor >= 0:
                try:
                    os.fdatasync(descriptor)
                except OSError as error:
                    log.warning("the audit log %s cannot be synced: %s", self._path, error)
                os.close(descriptor)
        self._file = self._head_file = -1

    # --- writing ---

    def _append(self, about: Mapping[str, object]) -> None:
        if self._size >= self._max_bytes:
            self._rotate()
        self._put(about)

    def _put(self, about: Mapping[str, object]) -> None:
        """Writes a line and the head, or neither. OSError."""
        sequence = self._last.sequence + 1
        line, digest = encode(sequence, self._clock(), self._last.hash, about)
        head = Head(sequence, digest, self._size + len(line))
        try:
            _write_whole(self._file, line)
            os.pwrite(self._head_file, head.encode(), 0)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size = head.end
        self._last = head

    def _rotate(self) -> None:
        """Closes the file with the line "rotated", puts it aside and goes on in a fresh one.

        There is always a file with a line at the path, for who reads it. May be called again after it failed half-way.
        OSError, UserError.
        """
        if not self._rotated:
            self._put({"log": {"action": "rotated"}})
            self._rotated = True
        self.sync()
        aside = rotated_path(self._path, self._last.sequence)
        try:
            os.link(self._path, aside)  # unlike a rename, it never replaces
        except FileExistsError:
            if not os.path.samefile(self._path, aside):
                raise
        self._begin({"log": {"action": "continued", "file": aside.name}})
        sync_directory(self._path.parent)

    def _begin(self, about: Mapping[str, object]) -> None:
        """Writes the first line of a fresh file, which then takes the place of the one at the path."""
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.unlink(missing_ok=True)  # of a crash
        sequence = self._last.sequence + 1
        line, digest = encode(sequence, self._clock(), self._last.hash, about)
        descriptor = _open(fresh, _OPEN | os.O_EXCL)
        try:
            _write_whole(descriptor, line)
            os.rename(fresh, self._path)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file, self._size, self._rotated = descriptor, len(line), False
        self._last = Head(sequence, digest, len(line))
        os.pwrite(self._head_file, self._last.encode(), 0)

    # --- continuing ---

    def _look(self) -> None:
        """Notices that somebody put the file away, cut it or wrote to it; the chain then says so."""
        if self._head_file < 0:
            raise OSError(errno.EBADF, "it is closed")
        try:
            status = os.stat(self._path, follow_symlinks=False)
            own = os.fstat(self._file) if self._file >= 0 else None
            if own and os.path.samestat(status, own) and status.st_size == self._size > 0:
                return
        except FileNotFoundError:
            pass
        self._continue("continued")

    def _continue(self, action: str) -> None:
        """Opens the file at the path and goes on where head and file say."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._rotated = False
        head = self._read_head()
        self._file = _open(self._path, _OPEN)
        self._size = os.fstat(self._file).st_size
        if head is None:
            self._start(self._size == 0)
        else:
            self._resume(head, action)

    def _start(self, empty: bool) -> None:
        """No head file: a first start, or somebody removed it."""
        if empty:
            self._last = Head(0, NO_HASH, 0)
            self._put({"log": {"action": "started"}})
            return
        last = self._last_line()
        self._last = Head(last.sequence, last.hash, self._size) if last else Head(0, NO_HASH, 0)
        self._put({"log": {"action": "missing", "head": True}})

    def _resume(self, head: Head, action: str) -> None:
        """The file may have more than the head knows (a crash between the two), or less (lines were lost)."""
        self._last = head
        first = self._line_before(self._first_end())
        if first and (first.sequence, first.previous) == (head.sequence + 1, head.hash):
            head = Head(head.sequence, head.hash, 0)  # killed between the first line of a fresh file and the head
        last = self._line_before(head.end) if head.end else first
        if last is None or (head.end and (last.sequence, last.hash) != (head.sequence, head.hash)):
            if not self._ends_with_newline():
                os.write(self._file, b"\n")
                self._size += 1
            self._put({"log": {"action": "missing"}})
            return
        newer, torn = self._newer_lines(head)
        if torn:
            os.ftruncate(self._file, self._size)
        if (newer[-1] if newer else last).log_action() == "rotated":
            self._rotated = True
            self._rotate()
        if newer or torn:
            self._put({"log": {"action": "recovered", "lines": len(newer), "bytes_removed": torn}})
        else:
            self._put({"log": {"action": action}})

    def _newer_lines(self, head: Head) -> tuple[list[Line], int]:
        """The lines after the head's that continue the chain, and how many bytes after them are no such line."""
        rest = os.pread(self._file, self._size - head.end, head.end)
        found: list[Line] = []
        self._size = head.end
        for text in rest.splitlines(keepends=True):
            try:
                line = decode(text)
            except LineError:
                break
            if (line.sequence, line.previous) != (self._last.sequence + 1, self._last.hash):
                break
            self._size += len(text)
            self._last = Head(line.sequence, line.hash, self._size)
            found.append(line)
        return found, head.end + len(rest) - self._size

    def _last_line(self) -> Line | None:
        return self._line_before(self._size)

    def _line_before(self, end: int) -> Line | None:
        """The line that ends at an offset; None if there is none that is whole."""
        if end > self._size:
            return None
        start = max(0, end - MAX_LINE_BYTES - 1)
        data = os.pread(self._file, end - start, start)
        begin = data.rfind(b"\n", 0, -1) + 1
        try:
            return decode(data[begin:])
        except LineError:
            return None

    def _first_end(self) -> int:
        """Where the first line ends."""
        return os.pread(self._file, MAX_LINE_BYTES, 0).find(b"\n") + 1

    def _ends_with_newline(self) -> bool:
        return self._size == 0 or os.pread(self._file, 1, self._size - 1) == b"\n"

    def _read_head(self) -> Head | None:
        try:
            return Head.decode(os.pread(self._head_file, HEAD_BYTES + 1, 0))
        except LineError:
            return None


def _open(path: Path, flags: int) -> int:
    """Opens a file that nobody but us may write to or read, or makes it. OSError, UserError."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
        return descriptor
    os.close(descriptor)
    raise UserError(f"{path} must be a plain file of {os.geteuid()}'s that nobody else may write to: move it away")


def _write_whole(descriptor: int, data: bytes) -> None:
    """OSError if there is room for a part only."""
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(descriptor: int, path: Path) -> None:
    """Keeps a second writer out.

    A record lock and not flock(2), as processes that are forked off would keep that when this one has ended. It goes
    when this process closes any descriptor of the file, so the log is checked by another one.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(f"another process writes to the audit log {path}: give each its own") from None
