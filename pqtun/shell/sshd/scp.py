"""The server's end of scp's old protocol (scp -O), for hosts that have no program scp.

The client starts ``scp -t`` to send and ``scp -f`` to get. Each file is a line ``C<mode> <size> <name>``, the data and
an answer; ``D<mode> 0 <name>`` and ``E`` enclose a directory; ``T<mtime> 0 <atime> 0`` comes before either. An answer
is a zero byte, or 1 (2: and give up) and a line of text.
"""

import errno
import getopt
import glob
import os
import re
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pqtun.shell.sshd.sftp import Report, Transfer
from pqtun.shell.sshd.stream import Stream

MAX_LINE: Final = 8192  # bytes: a mode, a size and a name of PATH_MAX
MAX_DEPTH: Final = 512  # directories in directories; paths would be too long anyway
BLOCK: Final = 256 << 10

_ENTRY: Final = re.compile(rb"([0-7]{4,5}) (\d{1,19}) ([^/\n]+)")
_TIMES: Final = re.compile(rb"(\d{1,19}) \d{1,6} (\d{1,19}) \d{1,6}")


class _Fatal(Exception):
    """The other side broke the protocol, or has gone."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the client asks of this end."""

    sends: bool  # -f
    path: str
    recursive: bool = False
    preserve: bool = False
    directory: bool = False  # the target must be one


def options(arguments: Sequence[str]) -> Options:
    """Parse scp's arguments. Raises ValueError."""
    try:
        pairs, paths = getopt.gnu_getopt(list(arguments), "tfrpdvq")
    except getopt.GetoptError as error:
        raise ValueError(error.msg) from None
    flags = {name for name, _ in pairs}
    if len(paths) != 1 or ("-t" in flags) == ("-f" in flags):
        raise ValueError("one path, and either -t or -f")
    return Options("-f" in flags, paths[0], "-r" in flags, "-p" in flags, "-d" in flags)


def serve(sock: socket.socket, arguments: Sequence[str], report: Report) -> int:
    """Serve one client on a socket that waits; return the exit status."""
    stream = Stream(sock)
    try:
        wanted = options(arguments)
        end = _Source(stream, wanted, report) if wanted.sends else _Sink(stream, wanted, report)
        end.run()
    except ValueError as error:
        stream.write(b"\x02scp: " + str(error).encode() + b"\n")
        return 1
    except (_Fatal, EOFError, OSError):
        return 1
    return 1 if end.failed else 0


class _End:
    def __init__(self, stream: Stream, wanted: Options, report: Report) -> None:
        self._stream = stream
        self._wanted = wanted
        self._report = report
        self.failed = False

    def _complain(self, path: bytes, error: OSError) -> None:
        """Tell of a file that could not be copied; the others still may."""
        self.failed = True
        name = path.replace(b"\n", b"?")
        self._stream.write(b"\x01scp: " + name + b": " + (error.strerror or "failed").encode() + b"\n")

    def _answered(self) -> bool:
        answer = self._stream.take_exactly(1)
        if answer == b"\0":
            return True
        self._stream.take_line(MAX_LINE)
        self.failed = True
        if answer != b"\x01":
            raise _Fatal
        return False


class _Source(_End):
    """Sends."""

    def run(self) -> None:
        self._answered()
        pattern = os.path.expanduser(self._wanted.path)
        paths = sorted(glob.glob(pattern)) or [pattern]
        for path in paths:
            self._send(os.fsencode(path), 0)

    def _send(self, path: bytes, depth: int) -> None:
        try:
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode) and self._wanted.recursive and depth < MAX_DEPTH:
                self._send_directory(path, status, depth)
            elif stat.S_ISREG(status.st_mode):
                self._send_file(path, status)
            else:
                raise OSError(errno.EINVAL, "not a regular file")
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            self._complain(path, error)

    def _announce(self, kind: bytes, path: bytes, status: os.stat_result, size: int) -> bool:
        if self._wanted.preserve:
            self._stream.write(b"T%d 0 %d 0\n" % (max(int(status.st_mtime), 0), max(int(status.st_atime), 0)))
            if not self._answered():
                return False
        name = os.path.basename(os.path.abspath(path)) or b"."
        if b"\n" in name:
            raise OSError(errno.EINVAL, "no name for this protocol")
        self._stream.write(b"%s%04o %d %s\n" % (kind, stat.S_IMODE(status.st_mode), size, name))
        return self._answered()

    def _send_directory(self, path: bytes, status: os.stat_result, depth: int) -> None:
        names = sorted(os.listdir(path))
        if not self._announce(b"D", path, status, 0):
            return
        for name in names:
            self._send(os.path.join(path, name), depth + 1)
        self._stream.write(b"E\n")
        self._answered()

    def _send_file(self, path: bytes, status: os.stat_result) -> None:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if not self._announce(b"C", path, status, size):
                return
            fault: OSError | None = None
            left = size
            while left:
                # As many bytes as were announced must follow, whatever becomes of the file.
                data = b""
                if fault is None:
                    try:
                        data = file.read(min(BLOCK, left)) or b""
                    except OSError as error:
                        fault = error
                    if not data and fault is None:
                        fault = OSError(errno.EIO, "became shorter")
                data = data or bytes(min(BLOCK, left))
                self._stream.write(data)
                left -= len(data)
        self._report(Transfer(os.path.abspath(path), size, 0))
        if fault is None:
            self._stream.write(b"\0")
        else:
            self._complain(path, fault)
        self._answered()


class _Sink(_End):
    """Receives."""

    def run(self) -> None:
        target = os.fsencode(os.path.expanduser(self._wanted.path))
        if self._wanted.directory and not os.path.isdir(target):
            self._stream.write(b"\x02scp: " + target + b": Not a directory\n")
            raise _Fatal
        self._stream.write(b"\0")
        self._receive(target, 0)

    def _receive(self, target: bytes, depth: int) -> None:
        """Receive what comes into `target`, up to the end of the directory that it is."""
        times: tuple[int, int] | None = None
        while line := self._stream.take_line(MAX_LINE):
            kind, rest = line[:1], line[1:].rstrip(b"\n")
            if kind == b"\x01":
                self.failed = True
            elif kind == b"E" and depth:
                self._stream.write(b"\0")
                return
            elif kind == b"T" and (found := _TIMES.fullmatch(rest)):
                times = int(found[2]), int(found[1])
                self._stream.write(b"\0")
            elif kind in (b"C", b"D") and (found := _ENTRY.fullmatch(rest)) and found[3] not in (b".", b".."):
                self._receive_entry(kind, target, int(found[1], 8) & 0o7777, int(found[2]), found[3], times, depth)
                times = None
            else:
                self.failed = True
                if kind != b"\x02":
                    self._stream.write(b"\x02scp: protocol error\n")
                raise _Fatal
        if depth:
            raise _Fatal

    def _receive_entry(
        self,
        kind: bytes,
        target: bytes,
        mode: int,
        size: int,
        name: bytes,
        times: tuple[int, int] | None,
        depth: int,
    ) -> None:
        path = os.path.join(target, name) if os.path.isdir(target) else target
        preserved = times if self._wanted.preserve else None
        if kind == b"D":
            self._receive_directory(path, mode, preserved, depth)
        else:
            self._receive_file(path, mode, size, preserved)

    def _receive_directory(self, path: bytes, mode: int, times: tuple[int, int] | None, depth: int) -> None:
        if not self._wanted.recursive or depth >= MAX_DEPTH:
            self._stream.write(b"\x02scp: a directory was not asked for\n")
            raise _Fatal
        made = False
        try:
            if not os.path.isdir(path):
                os.mkdir(path, mode | stat.S_IRWXU)
                made = True
        except OSError as error:
            self._complain(path, error)
            return
        self._stream.write(b"\0")
        self._receive(path, depth + 1)
        try:
            if self._wanted.preserve:
                os.chmod(path, mode)
            elif made:
                os.chmod(path, mode & ~_umask())
            if times is not None:
                os.utime(path, times)
        except OSError as error:
            self._complain(path, error)

    def _receive_file(self, path: bytes, mode: int, size: int, times: tuple[int, int] | None) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode | stat.S_IWUSR)
        except OSError as error:
            self._complain(path, error)
            return
        fault: OSError | None = None
        with open(fd, "wb", buffering=0) as file:
            self._stream.write(b"\0")
            left = size
            while left:
                data = self._stream.take_some(min(BLOCK, left))
                if not data:
                    self._report(Transfer(os.path.abspath(path), 0, size - left))
                    raise _Fatal
                left -= len(data)
                if fault is None:
                    fault = _write(file.fileno(), data)
            fault = fault or self._finish(file.fileno(), mode, size, times)
        self._report(Transfer(os.path.abspath(path), 0, size))
        sent_well = self._answered()
        if fault is not None:
            self._complain(path, fault)
        elif sent_well:
            self._stream.write(b"\0")

    def _finish(self, fd: int, mode: int, size: int, times: tuple[int, int] | None) -> OSError | None:
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, size)  # it may have been longer
            if self._wanted.preserve:
                os.fchmod(fd, mode)
            elif not mode & stat.S_IWUSR:
                os.fchmod(fd, mode & ~_umask())
            if times is not None:
                os.utime(fd, times)
        except OSError as error:
            return error
        return None


def _write(fd: int, data: bytes) -> OSError | None:
    with memoryview(data) as view:
        done = 0
        while done < len(data):
            try:
                done += os.write(fd, view[done:])
            except OSError as error:
                return error
    return None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
