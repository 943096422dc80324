"""`pqtun ssh --persistent`: connects again whenever the connection is lost, and restores its forwards."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pqtun.daemon.backoff import Backoff
from pqtun.daemon.netwatch import NetworkWatch
from pqtun.protocol.errors import UserError
from pqtun.shell.client import forwards
from pqtun.shell.client.connect import connect
from pqtun.shell.client.forward_table import ForwardTable
from pqtun.shell.client.forwardspec import Forward
from pqtun.shell.client.loginfaults import Mistrust, Refusal, Unreachable
from pqtun.shell.client.program import CLOSE_SECONDS, Program, run_local_command

if TYPE_CHECKING:
    import asyncssh

    from pqtun.shell.client.background import Leave
    from pqtun.shell.client.config import Config
    from pqtun.shell.client.options import Options
    from pqtun.shell.client.ui import UserInterface
    from pqtun.shell.client.x11 import Display

STABLE_SECONDS: Final = 60.0  # a connection that lasted so long makes up for the failures before it
# A dead peer is noticed 15 s after its last packet: two probes, and the one that is due after them.
PROBE_SECONDS: Final = 5
UNANSWERED_PROBES: Final = 2
# A server that boots refuses everybody for a while (nologin(5)), so where a login went well once it may again.
REFUSED_SECONDS: Final = 60.0
LEAST_PAUSE: Final = 1.0
LOGIN_SECONDS: Final = 15  # for one attempt, unless ConnectTimeout says otherwise


class Schedule:
    """When to connect again. Pure: times are seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._backoff = Backoff(0.0, math.inf)
        self._since: float | None = None  # when the connection came up
        self._known = False  # a login went well once
        self._refused: float | None = None  # since when logins are refused

    def connected(self, now: float) -> None:
        """A connection came up."""
        self._since = now
        self._known = True
        self._refused = None

    def refused(self, now: float) -> bool:
        """The server refused the login: return whether there is a point in another attempt."""
        if self._refused is None:
            self._refused = now
        return self._known and now - self._refused < REFUSED_SECONDS

    def pause(self, now: float) -> float:
        """The connection was lost, or could not be made: return how long to wait before the next attempt."""
        if self._since is not None and now - self._since >= STABLE_SECONDS:
            self._backoff = Backoff(now, math.inf)
        self._since = None
        pause = self._backoff.pause(now)
        assert pause is not None  # its patience has no end
        return pause


def settings(config: Config) -> Config:
    """Return the configuration with what staying connected needs, where it says nothing itself."""
    if config.serveraliveinterval is None:
        config = replace(config, serveraliveinterval=PROBE_SECONDS, serveralivecountmax=UNANSWERED_PROBES)
    if config.connecttimeout is None:
        config = replace(config, connecttimeout=LOGIN_SECONDS)
    # A shared connection would take its other users along each time; they are better off with their own.
    return replace(config, controlmaster="no", controlpath=None)


class PersistentProgram(Program):
    """One run that survives its connections."""

    def __init__(
        self,
        options: Options,
        config: Config,
        ui: UserInterface,
        leave: Leave | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As Program; ``clock`` gives seconds."""
        super().__init__(options, settings(config), ui, leave)
        self._clock = clock
        self._schedule = Schedule()
        self._network_changed = asyncio.Event()
        command = options.command or config.remotecommand
        # A command might do twice what must be done once, and half of stdin is gone: these end with their connection.
        self._once = options.stdio_forward is not None or (config.sessiontype != "none" and bool(command))
        self._begun = False  # the forwards are open, and the display is known
        self._x11: Display | None = None
        self._shown = ""

    async def run(self) -> int:
        """Connect, and again; return the exit code once there is an end to it. Raises UserError."""
        table = ForwardTable.of(self._config)
        with self._stack:
            self._stack.callback(table.close)
            with suppress(OSError):  # it only makes things quicker
                watch = NetworkWatch(self._network_changed.set)
                self._stack.callback(watch.close)
                watch.start()
            return await self._until_killed(self._keep(table))

    async def _keep(self, table: ForwardTable) -> int:
        while True:
            connection = await self._connected()
            try:
                code = await self._use(connection, table)
                if self._once or not connection.is_closed():
                    return code
            except UserError:
                if not connection.is_closed():
                    raise
            finally:
                table.lost()
                await self._hang_up(connection)
            await self._wait()

    async def _use(self, connection: asyncssh.SSHClientConnection, table: ForwardTable) -> int:
        refused = await table.carry(connection)
        if not self._begun:
            run_local_command(self._config)
            await forwards.open_all(table, self._config.forwards, self._config, self._ui)
            self._x11 = self._display()
            self._begun = True
        else:
            self._say_again()
        restoring = asyncio.get_running_loop().create_task(self._restore(table, [forward for forward, _ in refused]))
        try:
            return await self._main_part(connection, table, self._x11)
        finally:
            restoring.cancel()
            await asyncio.gather(restoring, return_exceptions=True)

    async def _connected(self) -> asyncssh.SSHClientConnection:
        while True:
            try:
                connection = await connect(self._options, ui=self._ui, config=self._config)
            except UserError as error:
                if not self._may_pass(error):
                    raise
                self._say_once(f"pqtun ssh: {str(error).rstrip('.')}; trying again")
                await self._wait()
            else:
                self._schedule.connected(self._clock())
                self._shown = ""
                return connection

    def _may_pass(self, error: UserError) -> bool:
        """Whether another attempt may go better."""
        if isinstance(error, Mistrust):
            return False
        if isinstance(error, Refusal):
            return self._schedule.refused(self._clock())
        # At first, what is no matter of the network is a mistake of who typed it.
        return self._begun or isinstance(error, Unreachable)

    async def _wait(self) -> None:
        """Wait for the next attempt's time, or for the network to change."""
        pause = self._schedule.pause(self._clock())
        self._ui.debug(f"The next attempt comes in {pause:.1f} s.")
        self._network_changed.clear()
        at_least = min(pause, LEAST_PAUSE)  # a network may change and change again
        await asyncio.sleep(at_least)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause - at_least):
                await self._network_changed.wait()
                self._ui.debug("The network changed.")

    async def _restore(self, table: ForwardTable, refused: list[Forward]) -> None:
        """Ask on for remote forwards: the server may hold their ports for the connection that was lost."""
        schedule = Schedule()
        while refused:
            self._say_once(f"pqtun ssh: the server refuses {', '.join(f'-R {one.listen}' for one in refused)} as yet")
            await asyncio.sleep(schedule.pause(self._clock()))
            refused = [forward for forward, _ in await table.request_again(refused)]

    def _say_again(self) -> None:
        what = (
            "" if self._config.sessiontype == "none" else "; this is a new session, what ran in the old one has ended"
        )
        self._ui.say(f"pqtun ssh: connected to {self._config.hostname} again{what}")

    def _say_once(self, text: str) -> None:
        """Say it unless it was the last thing said: a network may be gone for days."""
        if text != self._shown:
            self._ui.say(text)
            self._shown = text

    async def _hang_up(self, connection: asyncssh.SSHClientConnection) -> None:
        connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await connection.wait_closed()
