"""A session with a person at it: the raw terminal, its size, escape characters, and signals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import asyncssh

from pqtun.protocol.errors import UserError
from pqtun.shell.client import forwards
from pqtun.shell.client.config import Config
from pqtun.shell.client.escapes import Escape, EscapeFilter
from pqtun.shell.client.forward_table import ForwardTable
from pqtun.shell.client.mux_master import Master
from pqtun.shell.client.mux_messages import NewSession
from pqtun.shell.client.mux_session import open_session
from pqtun.shell.client.session import OwnSession, standard_descriptors
from pqtun.shell.client.terminal import RawTerminal
from pqtun.shell.client.ui import UserInterface
from pqtun.shell.client.x11 import Display

_LEVELS: Final = ("QUIET", "FATAL", "ERROR", "INFO", "VERBOSE", "DEBUG1", "DEBUG2", "DEBUG3")
_END_OF_INPUT: Final = b"\x04"


class Interaction:
    """One session of a connection, from its request to its end."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        config: Config,
        ui: UserInterface,
        table: ForwardTable,
        request: NewSession,
        master: Master | None = None,
    ) -> None:
        """Nothing is opened yet. ``master``: serves others over the connection, and wants to know of new sizes."""
        self._master = master
        self._connection = connection
        self._config = config
        self._ui = ui
        self._table = table
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._filter = EscapeFilter(config.escapechar if request.tty else None)
        self._terminal = RawTerminal(0) if request.tty and os.isatty(0) else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: OwnSession | None = None
        self.terminated = False  # the person typed ~.

    async def start(self, display: Display | None) -> None:
        """Open the session. Raises asyncssh.Error, OSError."""
        descriptors = standard_descriptors(null_input=self._config.stdinnull)
        self._session = OwnSession(descriptors, self._finish, escapes=self._filter, escaped=self._escaped)
        x11 = None if display is None else {"display": display.name, "auth_path": display.auth_path}
        if self._terminal is not None:
            self._terminal.enter()
            self._loop.add_signal_handler(signal.SIGWINCH, self._resized)
            self._loop.add_signal_handler(signal.SIGCONT, self._continued)
        try:
            await open_session(self._connection, self._request, self._session, no_terminal=self._no_terminal, x11=x11)
        except BaseException:
            self.close()
            raise

    async def end(self) -> int | None:
        """Wait for the end; return the exit status, None without one: killed by a signal, or the connection is lost."""
        try:
            return await self._ended
        finally:
            self.close()

    @property
    def killed_by(self) -> str | None:
        """The signal that ended the command, if one did."""
        return None if self._session is None else self._session.killed_by

    def close(self) -> None:
        """Put the terminal right and let the descriptors go."""
        if self._terminal is not None:
            self._terminal.restore()
            if self._master is None:
                self._loop.remove_signal_handler(signal.SIGWINCH)
            else:
                self._loop.add_signal_handler(signal.SIGWINCH, self._master.resized)
            self._loop.remove_signal_handler(signal.SIGCONT)
            self._terminal = None
        if self._session is not None and not self._ended.done():
            self._session.cancel()

    def _finish(self, status: int | None) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _no_terminal(self) -> None:
        self._ui.say("PTY allocation request failed on channel 0")
        if self._terminal is not None:
            self._terminal.restore()

    def _resized(self) -> None:
        if self._session is not None:
            self._session.resized()
        if self._master is not None:
            self._master.resized()

    def _continued(self) -> None:
        """This process was stopped and goes on: a shell has had the terminal meanwhile."""
        if self._terminal is not None and os.tcgetpgrp(0) == os.getpgrp():
            self._terminal.enter()
        self._resized()

    # -- escapes -----------------------------------------------------------------------------------

    def _escaped(self, escape: Escape) -> None:
        assert self._session is not None
        assert self._config.escapechar is not None
        shown = (self._config.escapechar + escape.value).decode("ascii", errors="replace")
        match escape:
            case Escape.TERMINATE:
                self._ui.say(shown)
                self.terminated = True
                self._finish(None)
            case Escape.SUSPEND:
                self._ui.say(f"{self._config.escapechar.decode('ascii', errors='replace')}^Z [suspend ssh]")
                if self._terminal is not None:
                    self._terminal.suspend()
                self._session.resized()
            case Escape.BACKGROUND:
                self._background(shown)
            case Escape.LIST:
                self._list(shown)
            case Escape.HELP:
                self._ui.say(f"{shown}\n{self._filter.help()}")
            case Escape.BREAK:
                self._ui.say(shown)
                self._session.send_break()
            case Escape.COMMAND:
                self._command_line()
            case Escape.REKEY:
                self._rekey()
            case Escape.LOUDER | Escape.QUIETER:
                self._change_level(shown, 1 if escape is Escape.LOUDER else -1)

    def _list(self, shown: str) -> None:
        lines = [f"{shown}", "The following connections are open:"]
        for number, channel in self._connection._channels.items():
            peer = channel.get_extra_info("remote_peername") or ""
            lines.append(f"  #{number} {type(channel).__name__} {peer}".rstrip())
        lines += [f"  {forward.kind} {forward.listen} -> {forward.connect}" for forward in self._table.forwards]
        self._ui.say("\n".join(lines))

    def _change_level(self, shown: str, step: int) -> None:
        level = "DEBUG1" if self._ui.level == "DEBUG" else self._ui.level
        place = _LEVELS.index(level) + step
        self._ui.level = _LEVELS[max(0, min(place, len(_LEVELS) - 1))]
        os.write(2, f"{shown} [LogLevel {self._ui.level}]\r\n".encode())

    def _rekey(self) -> None:
        # asyncssh makes new keys with the next packet after this time; a debug message is such a packet.
        self._connection._rekey_time = 0.0
        self._connection.send_debug("new keys")

    def _command_line(self) -> None:
        if not self._config.enableescapecommandline:
            self._ui.say("commandline disabled")
            return
        if self._terminal is not None:
            self._terminal.restore()
        try:
            line = self._ui.read_line("\r\nssh> ", echo=True)
        except KeyboardInterrupt:
            line = None
        finally:
            if self._terminal is not None:
                self._terminal.enter()
        if line and line.lstrip().startswith("!"):
            self._ui.say("local commands are not run from here: use ~^Z")
        elif line:
            self._spawn(self._command(line))

    async def _command(self, line: str) -> None:
        try:
            await forwards.command(line, self._table, self._ui)
        except UserError as error:
            self._ui.fault(str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _background(self, shown: str) -> None:
        """Go on without the terminal until what runs over the connection has ended; nothing new is listened for."""
        assert self._session is not None
        if self._terminal is not None:
            self._terminal.restore()
        self._table.close()
        self._ui.say(f"{shown} [backgrounded]")
        reading, writing = os.pipe()
        if os.fork():
            os.close(writing)
            os.read(reading, 1)  # until the child has left the terminal, which may hang up when this process ends
            os._exit(0)
        os.setsid()
        os.close(reading)
        os.close(writing)
        # The threads that looked up names are not in the child.
        self._loop.set_default_executor(ThreadPoolExecutor())
        self._session.end_input(_END_OF_INPUT)
