"""A socket that waits, in the shape of the readers and writers that asyncssh's SFTP server wants.

The server has a process of its own and answers one request after the other, so nothing is gained by an event loop, and
much of its time is saved: whoever does not read the answers stops being read, without a buffer in between.
"""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from asyncssh.logging import SSHLogger, logger

READ_BYTES: Final = 256 << 10

T = TypeVar("T")


class Stream:
    """Reader, writer and channel in one. Methods raise OSError."""

    def __init__(self, sock: socket.socket, client_version: str = "") -> None:
        """`client_version`: what the client called itself, as the order of SFTP's SYMLINK depends on it."""
        self._sock = sock
        self._client_version = client_version
        self._buffer = bytearray()
        self._closed = False

    @property
    def logger(self) -> SSHLogger:
        """Where asyncssh writes its debug lines to, which nobody reads here."""
        return logger

    @property
    def channel(self) -> "Stream":
        """The channel that a writer writes to."""
        return self

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Tell the client's version; nothing else is known here."""
        return self._client_version if name == "client_version" else default

    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _fill(self, wanted: int) -> bool:
        data = self._sock.recv(max(wanted, READ_BYTES))
        self._buffer += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        with memoryview(self._buffer) as view:
            data = bytes(view[:count])
        del self._buffer[:count]
        return data

    def take_exactly(self, count: int) -> bytes:
        """Return `count` bytes. Raises asyncio.IncompleteReadError, an EOFError, if the other side ends before."""
        while len(self._buffer) < count:
            if not self._fill(count - len(self._buffer)):
                raise asyncio.IncompleteReadError(bytes(self._buffer), count)
        return self._take(count)

    def take_some(self, limit: int) -> bytes:
        """Return at most `limit` bytes, and none only at the end."""
        if not self._buffer:
            self._fill(0)
        return self._take(limit)

    def take_line(self, limit: int) -> bytes:
        """Return bytes up to a newline, and with it; without where the other side ends. Raises EOFError if too long."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limit:
                raise EOFError
            if not self._fill(0):
                return self._take(len(self._buffer))
        return self._take(end + 1)

    async def readexactly(self, count: int) -> bytes:
        """`take_exactly`, as SFTP's handler calls it."""
        return self.take_exactly(count)

    def write(self, data: bytes) -> None:
        """Send all of it."""
        self._sock.sendall(data)

    def close(self) -> None:
        """Send nothing any more. May be called twice."""
        if not self._closed:
            self._closed = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the other side has gone already


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never has to wait, as all it reads and writes is a `Stream` and files."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
