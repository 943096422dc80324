"""The protocol of scp before SFTP took its place, inherited from rcp: both ends, as seen from the client.

A line each announces a file (``C<mode> <size> <name>``), a directory (``D…``), its end (``E``) or the times of what
comes next (``T<mtime> 0 <atime> 0``); each is answered by a zero byte, or by 1 (fault) or 2 (the end) and a line of
text. There is no standard: what OpenSSH's scp.c does is one.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

import asyncssh

from pqtun.protocol.errors import MessageError
from pqtun.shell.client.faults import FILE_FAULTS, LOST, CopyFault, reason
from pqtun.shell.client.printable import printable

MAX_LINE: Final = 8192  # bytes; paths have 4096 at most
MAX_TIME: Final = 1 << 53  # seconds since 1970; no file system has later ones
BLOCK_SIZE: Final = 256 << 10
WRITE_AHEAD: Final = 2 << 20  # bytes that wait here for the connection

_OK, _FAULT, _FATAL = b"\0", b"\1", b"\2"
_ANNOUNCED: Final = re.compile(rb"([0-7]{4,6}) ([0-9]{1,19}) (.+)", re.DOTALL)
_TIMES: Final = re.compile(rb"([0-9]{1,19}) [0-9]{1,6} ([0-9]{1,19}) [0-9]{1,6}")


class StreamEnded(CopyFault):
    """The other end has gone, or does not speak this protocol."""


@dataclass(frozen=True)
class FileComes:
    """A file of `size` bytes; ``permissions`` are its bits."""

    permissions: int
    size: int
    name: bytes


@dataclass(frozen=True)
class DirectoryComes:
    """A directory; what follows is in it, until DirectoryEnds."""

    permissions: int
    name: bytes


@dataclass(frozen=True)
class DirectoryEnds:
    """The directory that was announced last is complete."""


@dataclass(frozen=True)
class TimesCome:
    """Access and modification time of what is announced next, in seconds since 1970."""

    atime: int
    mtime: int


@dataclass(frozen=True)
class Complaint:
    """The other end could not do something; ``fatal``: nor go on."""

    text: str
    fatal: bool


Announcement = FileComes | DirectoryComes | DirectoryEnds | TimesCome | Complaint


def parse(line: bytes) -> Announcement:
    """Read a line without its end. Raises MessageError.

    Names are one component of a path: a server that sends others wants to write somewhere else.
    """
    kind, rest = line[:1], line[1:]
    if kind in (_FAULT, _FATAL):
        return Complaint(printable(rest).removeprefix("scp: ").strip() or "the other end failed", kind == _FATAL)
    if kind == b"E" and not rest:
        return DirectoryEnds()
    if kind == b"T" and (times := _TIMES.fullmatch(rest)):
        atime, mtime = int(times[2]), int(times[1])
        if max(atime, mtime) > MAX_TIME:
            raise MessageError("time")
        return TimesCome(atime, mtime)
    if kind in (b"C", b"D") and (fields := _ANNOUNCED.fullmatch(rest)):
        permissions, size, name = int(fields[1], 8) & 0o7777, int(fields[2]), fields[3]
        if b"/" in name or b"\0" in name or name in (b".", b".."):
            raise MessageError("unexpected_name")
        if size >= 1 << 63:
            raise MessageError("size")
        return FileComes(permissions, size, name) if kind == b"C" else DirectoryComes(permissions, name)
    raise MessageError("line")


class Stream:
    """The bytes to and from the scp of the other end, and what it says on stderr."""

    def __init__(
        self,
        writer: asyncssh.SSHWriter[bytes],
        reader: asyncssh.SSHReader[bytes],
        errors: asyncssh.SSHReader[bytes],
    ) -> None:
        """The three come from a session with ``encoding=None``."""
        self._writer = writer
        self._reader = reader
        self._buffer = bytearray()
        self._said = b""
        self._listening = asyncio.ensure_future(self._listen(errors))

    async def line(self) -> bytes | None:
        """Return the next line without its end, None at the end of the stream. Raises StreamEnded if it is cut off."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise StreamEnded("the server does not speak scp's old protocol")
            part = await self._read(BLOCK_SIZE)
            if not part:
                if self._buffer:
                    raise await self._ended()
                return None
            self._buffer += part
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def data(self, size: int) -> bytes:
        """Return at least one and at most `size` bytes. Raises StreamEnded."""
        if self._buffer:
            part = bytes(self._buffer[:size])
            del self._buffer[:size]
            return part
        part = await self._read(size)
        if not part:
            raise await self._ended()
        return part

    async def send(self, data: bytes) -> None:
        """Send bytes; wait while too many are under way. Raises StreamEnded."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except FILE_FAULTS:
            raise await self._ended() from None

    async def accept(self) -> None:
        """Answer that all is well."""
        await self.send(_OK)

    async def refuse(self, text: str) -> None:
        """Answer that the last announcement was in vain."""
        await self.send(_FAULT + b"scp: " + text.encode(errors="replace").replace(b"\n", b" ") + b"\n")

    async def answer(self) -> Complaint | None:
        """Wait for the answer of the other end: None is well. Raises StreamEnded."""
        kind = await self.data(1)
        if kind == _OK:
            return None
        if kind not in (_FAULT, _FATAL):
            raise StreamEnded("the server does not speak scp's old protocol")
        line = await self.line()
        if line is None:
            raise await self._ended()
        complaint = parse(kind + line)
        assert isinstance(complaint, Complaint)
        return complaint

    async def close(self) -> None:
        """End it. Whatever the other end still has to say is passed over."""
        self._listening.cancel()
        self._writer.channel.abort()

    async def finish(self) -> int:
        """Say that nothing more comes, wait until the other end has gone, and return its exit status (1 unknown)."""
        try:
            if self._writer.can_write_eof() and not self._writer.is_closing():
                self._writer.write_eof()
            while await self._read(BLOCK_SIZE):
                pass
            await self._writer.channel.wait_closed()
        except FILE_FAULTS:
            return 1
        channel = self._writer.channel
        assert isinstance(channel, asyncssh.SSHClientChannel)
        status = channel.get_exit_status()
        return 1 if status is None else status

    def said(self) -> str:
        """Return the last line that the other end wrote on stderr."""
        lines = self._said.strip().splitlines()
        return printable(lines[-1]) if lines else ""

    async def _read(self, size: int) -> bytes:
        try:
            return await self._reader.read(size)
        except (*FILE_FAULTS, asyncssh.SignalReceived) as error:
            raise StreamEnded(reason(error)) from None

    async def _listen(self, errors: asyncssh.SSHReader[bytes]) -> None:
        try:
            while part := await errors.read(MAX_LINE):
                self._said = (self._said + part)[-MAX_LINE:]
        except FILE_FAULTS:
            pass  # the reader of stdout tells it

    async def _ended(self) -> StreamEnded:
        await asyncio.wait([self._listening], timeout=1.0)
        return StreamEnded(self.said() or LOST)


async def start(connection: asyncssh.SSHClientConnection, arguments: bytes, path: bytes) -> Stream:
    """Run scp on the other end; `arguments` such as ``-r -f``. The remote shell reads the path, and its patterns.

    Raises StreamEnded.
    """
    command = b"scp " + arguments + b" " + (b"-- " if path.startswith(b"-") else b"") + (path or b".")
    try:
        opened = await connection.open_session(command, encoding=None, request_pty=False)
    except FILE_FAULTS as error:
        raise StreamEnded(reason(error)) from None
    writer, reader, errors = opened
    writer.channel.set_write_buffer_limits(WRITE_AHEAD)
    return Stream(writer, reader, errors)
