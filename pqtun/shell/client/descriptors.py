"""Reading and writing descriptors that are somebody else's: terminals, pipes, sockets and files, on the event loop."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

READ_BYTES: Final = 32 << 10  # one SSH packet's worth
WRITE_BYTES: Final = 64 << 10
_FLAGS: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Descriptor:
    """A descriptor whose owner notices nothing of our using it.

    O_NONBLOCK belongs to the open file, which a terminal's or a pipe's other users (a shell) share. So these are
    opened anew, and only where that fails is the flag set, and taken back by close().
    """

    def __init__(self, fd: int, mode: int) -> None:
        """``mode`` is os.O_RDONLY or os.O_WRONLY. Takes ``fd`` over."""
        self.fd = fd
        self._restore = False
        self._socket: socket.socket | None = None
        kind = os.fstat(fd).st_mode
        if stat.S_ISSOCK(kind):
            self._socket = socket.socket(fileno=fd)
        elif stat.S_ISFIFO(kind) or os.isatty(fd):
            try:
                self.fd = os.open(f"/proc/self/fd/{fd}", mode | _FLAGS)
            except OSError:  # another user's terminal (su), or a pipe whose other end is gone
                self._restore = os.get_blocking(fd)
                os.set_blocking(fd, False)
            else:
                os.close(fd)

    def read(self) -> bytes:
        """Return what is there, b"" at the end. Raises BlockingIOError, OSError."""
        if self._socket is not None:
            return self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        return os.read(self.fd, READ_BYTES)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write what goes. Raises BlockingIOError, OSError."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self.fd, data)

    def close(self) -> None:
        """Close it; may be called twice."""
        if self.fd < 0:
            return
        if self._restore:
            os.set_blocking(self.fd, True)
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)
        self.fd = -1


class Source:
    """Gives what a descriptor says to ``received``, and b"" once at its end; an error counts as the end."""

    def __init__(self, fd: int, received: Callable[[bytes], None]) -> None:
        """Begins paused. Takes ``fd`` over."""
        self._descriptor = Descriptor(fd, os.O_RDONLY)
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._handle: asyncio.Handle | None = None
        self._ended = False

    def resume(self) -> None:
        """Read on."""
        if self._ended or self._watched or self._handle is not None:
            return
        try:
            self._loop.add_reader(self._descriptor.fd, self._readable)
            self._watched = True
        except PermissionError:  # epoll does not take files and /dev/null: they are always ready
            self._handle = self._loop.call_soon(self._turn)

    def pause(self) -> None:
        """Leave what comes where it is."""
        if self._watched:
            self._loop.remove_reader(self._descriptor.fd)
            self._watched = False
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        """Stop for good; ``received`` is not called any more."""
        self.pause()
        self._ended = True
        self._descriptor.close()

    def _turn(self) -> None:
        self._handle = self._loop.call_soon(self._turn)
        self._readable()

    def _readable(self) -> None:
        try:
            data = self._descriptor.read()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # a terminal that hung up says EIO
            data = b""
        if not data:
            self.close()
        self._received(data)


class Sink:
    """Writes to a descriptor as it takes it.

    ``drained`` is called when all is written that had to wait, ``broken`` once when nobody reads any more; what is
    written afterwards is dropped.
    """

    def __init__(self, fd: int, drained: Callable[[], None], broken: Callable[[], None]) -> None:
        """Takes ``fd`` over."""
        self._descriptor = Descriptor(fd, os.O_WRONLY)
        self._drained = drained
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._closed = False

    @property
    def waiting(self) -> bool:
        """Whether something is not written yet; then no more should be given."""
        return bool(self._buffer)

    def write(self, data: bytes) -> None:
        """Write, or keep what does not go yet."""
        if self._closed:
            return
        if self._buffer:
            self._buffer += data
            return
        rest = self._push(data)
        if rest:
            self._buffer += rest
            self._loop.add_writer(self._descriptor.fd, self._writable)

    def close(self) -> None:
        """Close at once; what still waits is dropped."""
        if self._closed:
            return
        self._closed = True
        if self._buffer:
            self._loop.remove_writer(self._descriptor.fd)
            self._buffer.clear()
        self._descriptor.close()

    def _push(self, data: bytes | bytearray) -> memoryview:
        view = memoryview(data)
        while view:
            try:
                view = view[self._descriptor.write(view[:WRITE_BYTES]) :]
            except BlockingIOError:
                return view
            except OSError:  # EPIPE, a terminal that hung up, a full disk
                self.close()
                self._broken()
                return view[:0]
        return view

    def _writable(self) -> None:
        data = bytes(self._buffer)
        rest = self._push(data)
        if self._closed:
            return
        del self._buffer[: len(data) - len(rest)]
        if not self._buffer:
            self._loop.remove_writer(self._descriptor.fd)
            self._drained()
