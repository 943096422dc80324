"""Forwarded connections in the worker: a socket that came from the user's process, and an SSH channel."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import asyncssh

from pqtun.shell.sshd.streams import Congestion, Ends, Sink, Source

ACCEPT_PAUSE: Final = 0.5  # seconds that a listener rests when there are no descriptors left

Ended = Callable[[int, int], None]  # with the bytes that the client sent, and got


class Forward(Ends, asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """One connection. Either side may end its half first."""

    def __init__(self, sock: socket.socket, congestion: Congestion, ended: Ended) -> None:
        """The socket is ours from now on; `ended` is called once, when all is over."""
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__()
        self._socket = sock
        self._congestion = congestion
        self._ended = ended
        self._sent_all = False  # to the socket
        self._lost = False

    def connection_made(self, chan: Any) -> None:
        """The channel is open."""
        self._channel = chan

    def session_started(self) -> None:
        """Data may flow."""
        fd = self._socket.fileno()
        sink = Sink(fd, self._channel, self._finish)
        self._begin(sink, [Source(fd, self._congestion, self._channel.write, self._socket_ended)])

    def _socket_ended(self) -> None:
        self._channel.write_eof()
        self._settle()

    def _finish(self) -> None:
        self._sent_all = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # its other end has gone
        self._settle()

    def _settle(self) -> None:
        if self._lost:
            if self._sent_all:
                self._close()
        elif self._sent_all and self._sources and not self._sources[0].open:
            self._channel.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed, well or (with `exc`) because the connection broke; what it sent is still written."""
        self._lost = True
        if self._sink is None:
            self._close()
            return
        for source in self._sources:
            source.close()
        if exc is not None:
            self._sink.break_off()
            self._close()
        elif self._sent_all:
            self._close()
        else:
            self._sink.end()

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._ended(*self._totals)


class Listener(asyncssh.SSHListener):
    """Listening sockets that came from the user's process; each connection becomes a channel to the client."""

    def __init__(
        self,
        fds: Sequence[int],
        port: int,
        accepted: Callable[[socket.socket], Awaitable[None]],
        closed: Callable[[], None],
        *,
        single: bool = False,
    ) -> None:
        """The descriptors are ours from now on. With `single`, one connection is accepted. `closed` is called once."""
        super().__init__()
        self._sockets = [socket.socket(fileno=fd) for fd in fds]
        self._port = port
        self._accepted = accepted
        self._closed = closed
        self._single = single
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Future[None]] = set()
        for sock in self._sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock, self._accept, sock)

    def get_port(self) -> int:
        """The port that is listened on; 0 for a file."""
        return self._port

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._loop.remove_reader(listening)
                self._loop.call_later(ACCEPT_PAUSE, self._resume, listening)
            return
        task = asyncio.ensure_future(self._accepted(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._single:
            self.close()

    def _resume(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Listen no more; connections stay. May be called twice."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            self._loop.remove_reader(sock)
            sock.close()
        if sockets:
            self._closed()

    async def wait_closed(self) -> None:
        """Nothing is to be waited for."""
