"""One channel of a shared connection whose other ends are descriptors that a client of the master passed."""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import asyncssh
from asyncssh.channel import SSHClientChannel

from pqtun.shell.client import mux_terminal
from pqtun.shell.client.descriptors import Sink, Source
from pqtun.shell.client.escapes import Escape, EscapeFilter
from pqtun.shell.client.mux_messages import PATH_PORT, NewSession, StdioForward

WINDOW: Final = 2 << 20  # bytes; asyncssh's default
MAX_PACKET: Final = 32 << 10


class _SessionChannel(SSHClientChannel[bytes]):
    """A session channel that goes on without a terminal where the server gives none, as OpenSSH does."""

    no_terminal: Callable[[], None]

    async def _make_request(self, request: bytes, *args: bytes) -> bool | None:
        result = await super()._make_request(request, *args)
        if request == b"pty-req" and result is False:
            self.no_terminal()
            return True
        return result


class Passenger(asyncssh.SSHClientSession[bytes], asyncssh.SSHTCPSession[bytes]):
    """Pumps between the channel and the descriptors, and tells when all is over.

    ``opened`` is called when the server has opened the channel, ``ended`` once, with the exit status (None without
    one), when the channel is closed and all output written.
    """

    def __init__(self, fds: list[int], opened: Callable[[], None], ended: Callable[[int | None], None]) -> None:
        """``fds``: stdin, stdout and perhaps stderr, which become the passenger's. Raises OSError."""
        self._opened = opened
        self._ended = ended
        self._status: int | None = None
        self._channel: Any = None
        self._lost = False
        self._cancelled = False
        self._terminal = -1
        left = list(fds)
        made: list[Source | Sink] = []
        try:
            # A terminal's size is asked of a descriptor that stays when stdin has ended.
            if os.isatty(left[0]):
                self._terminal = os.dup(left[0])
            made.append(source := Source(left.pop(0), self._typed))
            sinks = []
            while left:
                made.append(sink := Sink(left.pop(0), self._drained, self._broken))
                sinks.append(sink)
        except BaseException:
            for part in made:
                part.close()
            for fd in left:
                os.close(fd)
            raise
        self._source = source
        self._out = sinks[0]
        self._error = sinks[-1]
        self._asked = self._terminal_now()  # before somebody makes it raw

    # -- from the channel --------------------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        """See asyncssh.SSHClientSession."""
        self._channel = chan
        if self._cancelled:
            chan.abort()
        else:
            self._opened()

    def session_started(self) -> None:
        """See asyncssh.SSHClientSession."""
        if not (self._lost or self._cancelled):
            self._source.resume()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """See asyncssh.SSHClientSession."""
        (self._out if datatype is None else self._error).write(data)
        if self._out.waiting or self._error.waiting:
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        """See asyncssh.SSHClientSession."""
        return True  # stdin goes on until the server closes the channel

    def exit_status_received(self, status: int) -> None:
        """See asyncssh.SSHClientSession."""
        self._status = status

    def pause_writing(self) -> None:
        """See asyncssh.SSHClientSession."""
        self._source.pause()

    def resume_writing(self) -> None:
        """See asyncssh.SSHClientSession."""
        if not (self._lost or self._cancelled):
            self._source.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncssh.SSHClientSession."""
        self._lost = True
        self._source.close()
        self._drained()

    # -- from the descriptors ----------------------------------------------------------------------

    def _typed(self, data: bytes) -> None:
        try:
            if data:
                self._channel.write(data)
            else:
                self._channel.write_eof()
        except BrokenPipeError:  # the channel is being closed
            self._source.close()

    def _drained(self) -> None:
        if self._out.waiting or self._error.waiting:
            return
        if not self._lost:
            self._channel.resume_reading()
        else:
            self._finish()

    def _broken(self) -> None:
        """Nobody reads the output any more: the command should learn it, as it would from SIGPIPE."""
        if self._lost:
            self._drained()
            return
        version = str(self._channel.get_extra_info("server_version", ""))
        if "OpenSSH" in version:
            self._channel._send_request(b"eow@openssh.com")  # PROTOCOL of OpenSSH, 2.1
        self._drained()

    # -- from the master ---------------------------------------------------------------------------

    def resized(self) -> None:
        """The terminal may have another size now."""
        if self._terminal >= 0 and self._channel is not None and not self._lost:
            self._channel.change_terminal_size(*mux_terminal.size(self._terminal))

    @property
    def was_opened(self) -> bool:
        """Whether the server has opened the channel."""
        return self._channel is not None

    def cancel(self) -> None:
        """The client went away, or the server refuses: close the channel, drop what is not written yet."""
        self._cancelled = True
        self._source.close()
        self._out.close()
        self._error.close()
        if self._channel is None or self._lost:
            self._finish()
        else:
            self._channel.abort()  # close() would wait for the server to take what was typed

    def _finish(self) -> None:
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
        self._source.close()
        self._out.close()
        self._error.close()
        ended, self._ended = self._ended, _nothing
        ended(self._status)

    def terminal_request(self) -> tuple[tuple[int, int, int, int], dict[int, int]]:
        """Return size and modes that the passed terminal had at first, for the server's to be the same."""
        return self._asked

    def _terminal_now(self) -> tuple[tuple[int, int, int, int], dict[int, int]]:
        if self._terminal < 0:
            return (0, 0, 0, 0), {}
        try:
            return mux_terminal.size(self._terminal), mux_terminal.modes(self._terminal)
        except (OSError, termios.error):
            return (0, 0, 0, 0), {}


class Rider(Passenger):
    """A passenger of another program, whose escape characters are seen here, as OpenSSH's master does."""

    def __init__(
        self, fds: list[int], opened: Callable[[], None], ended: Callable[[int | None], None], escape: bytes | None
    ) -> None:
        """As Passenger; ``escape``: the escape character, None for none."""
        super().__init__(fds, opened, ended)
        self._filter = EscapeFilter(escape)

    def _typed(self, data: bytes) -> None:
        if not data:
            super()._typed(data)
        for part in self._filter.feed(data):
            if isinstance(part, bytes):
                super()._typed(part)
            else:
                self._escaped(part)

    def _escaped(self, escape: Escape) -> None:
        """Do what was asked for; most escapes are about the connection, which is not this program's."""
        if escape is Escape.TERMINATE:
            self.cancel()
        elif escape is Escape.BREAK:
            self._channel.send_break(0)
        elif escape is Escape.HELP:
            self._error.write(self._filter.help(shared=True).replace("\n", "\r\n").encode() + b"\r\n")
        else:
            self._error.write(b"\r\nnot supported in sessions of a shared connection\r\n")


def _nothing(status: int | None) -> None:
    pass


async def open_session(
    connection: asyncssh.SSHClientConnection,
    request: NewSession,
    passenger: Passenger,
    *,
    no_terminal: Callable[[], None],
    x11: Mapping[str, Any] | None = None,
) -> None:
    """Start the session. Raises asyncssh.Error (ChannelOpenError and others).

    A channel of our own making: asyncssh's create_session would fill what is not asked for from the settings of the
    master's own session (its command, its terminal, its agent).
    """
    size, modes = passenger.terminal_request() if request.tty else ((0, 0, 0, 0), {})
    channel = _SessionChannel(connection, asyncio.get_running_loop(), "strict", None, "strict", WINDOW, MAX_PACKET)
    channel.no_terminal = no_terminal
    command = request.command.encode("utf-8", "surrogateescape")
    environment = {}
    for variable in request.environment:
        name, equals, value = variable.encode("utf-8", "surrogateescape").partition(b"=")
        if equals and name:
            environment[name] = value
    await channel.create(
        lambda: passenger,
        cast(str, b"" if request.subsystem else command),
        cast(str, command if request.subsystem else b""),
        environment,
        request.tty,
        request.terminal,
        size,
        modes,
        "ignore_failure" if x11 is not None and request.x11 else False,
        (x11 or {}).get("display"),
        (x11 or {}).get("auth_path"),
        False,
        request.agent and bool(connection._agent_forward_path),
    )


async def open_stdio_forward(
    connection: asyncssh.SSHClientConnection, request: StdioForward, passenger: Passenger
) -> None:
    """Join the descriptors to a host and port, or a path, of the server. Raises asyncssh.Error."""
    if request.port == PATH_PORT:
        await connection.create_unix_connection(cast(Any, lambda: passenger), request.host)
    else:
        await connection.create_connection(cast(Any, lambda: passenger), request.host, request.port)
