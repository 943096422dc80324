"""`pqtun ssh`: from the command line to the exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client import ahead, mux_background, mux_client
from pqtun.shell.client.background import Leave, run_leavable
from pqtun.shell.client.config import Config, resolve
from pqtun.shell.client.options import USAGE, Options, parse
from pqtun.shell.client.printable import printable
from pqtun.shell.client.ui import UserInterface, print_text

if TYPE_CHECKING:
    import asyncssh

    from pqtun.shell.client.forward_table import ForwardTable
    from pqtun.shell.client.mux_master import Master
    from pqtun.shell.client.x11 import Display

ERROR: Final = 255  # ssh's exit code for whatever is not the command's
CLOSE_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.05
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(arguments: Sequence[str]) -> int:
    """Run `pqtun ssh` with these arguments; return the exit code. Raises UserError before there is a configuration."""
    options = parse(arguments)
    if options.help or options.version:
        print_text(USAGE if options.help else _version())
        return 0
    config = resolve(options)
    if options.print_config:
        print_text(_shown(config))
        return 0
    ui = UserInterface(level=config.loglevel, batch=config.batchmode, log_file=options.log_file)
    try:
        return _run(options, config, ui)
    except UserError as error:
        ui.fault(f"pqtun ssh: {error}")
        return ERROR


def _version() -> str:
    from pqtun import __version__

    return f"pqtun {__version__}"


def _shown(config: Config) -> str:
    """What -G prints: the settings, in ssh's way."""
    lines = [f"host {config.original}"]
    for name in sorted(Config.__dataclass_fields__):
        value = getattr(config, name)
        if name in ("original", "tokens", "local_user", "direct") or value is None or value == ():
            continue
        if name == "forwards":
            lines += [
                f"{forward.kind}forward {forward.listen}" + ("" if forward.socks else f" {forward.connect}")
                for forward in value
            ]
        elif name in ("identityfile", "certificatefile", "sendenv"):
            lines += [f"{name} {one}" for one in value]
        elif name == "setenv":
            lines += [f"setenv {one}={other}" for one, other in value]
        elif isinstance(value, tuple):
            lines.append(f"{name} {' '.join(value)}")
        elif isinstance(value, bytes):
            lines.append(f"{name} {value.decode('latin-1')}")
        else:
            lines.append(f"{name} {('no', 'yes')[value] if isinstance(value, bool) else value}")
    return "\n".join(lines)


def _run(options: Options, config: Config, ui: UserInterface) -> int:
    try:
        return _ways(options, config, ui)
    except KeyboardInterrupt:
        # Die of it, so that a shell's loop ends too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return ERROR


def _ways(options: Options, config: Config, ui: UserInterface) -> int:
    """Go over another program's connection, or make one: in the background to stay, or here."""
    if options.command and config.remotecommand and options.control_command is None:
        raise UserError("Cannot execute command-line and remote command.")
    if not options.persistent or options.control_command is not None:
        done = mux_client.attach(options, config, ui)
        if done is not None:
            return done
    command = options.command or config.remotecommand
    if config.forkafterauthentication and config.sessiontype == "default" and not command:
        raise UserError("Cannot fork into background without a command to execute.")
    if mux_background.wants_master(config) and config.controlpersist is not None and not options.persistent:
        return mux_background.ride_own_master(options, config, ui)

    def work(leave: Leave | None) -> int:
        if options.persistent:
            from pqtun.shell import ssh

            ssh.prepare()
            from pqtun.shell.client.persistent import PersistentProgram

            return asyncio.run(PersistentProgram(options, config, ui, leave).run())
        return asyncio.run(Program(options, config, ui, leave).run())

    if config.forkafterauthentication:
        return run_leavable(work, keep_stderr=ui.verbosity > 0)
    return work(None)


class Program:
    """One run, with a connection of its own."""

    def __init__(self, options: Options, config: Config, ui: UserInterface, leave: Leave | None) -> None:
        """``leave``: what goes to the background; None if this never will."""
        self._options = options
        self._config = config
        self._ui = ui
        self._leave = leave
        self._stack = ExitStack()
        self._master: Master | None = None

    async def run(self) -> int:
        """Connect, do what was asked for, and close. Raises UserError."""
        begun = ahead.start(self._options, self._config)
        from pqtun.shell.client.connect import connect
        from pqtun.shell.client.forward_table import ForwardTable

        connection = await connect(self._options, ui=self._ui, config=self._config, begun=begun)
        table = ForwardTable.of(self._config, connection)
        with self._stack:
            self._stack.callback(table.close)
            try:
                return await self._until_killed(self._use(connection, table))
            finally:
                await _close(connection)

    async def _until_killed(self, work: Coroutine[Any, Any, int]) -> int:
        """Do the work until it is done or a signal comes that ends programs."""
        loop = asyncio.get_running_loop()
        killed: asyncio.Future[int] = loop.create_future()

        def end(number: int) -> None:
            if not killed.done():
                killed.set_result(number)

        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, end, number)
        task = asyncio.ensure_future(work)
        await asyncio.wait([task, killed], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._ui.debug(f"Killed by signal {killed.result()}.")
            return ERROR
        return task.result()

    async def _use(self, connection: asyncssh.SSHClientConnection, table: ForwardTable) -> int:
        from pqtun.shell.client import forwards

        config, ui = self._config, self._ui
        ui.debug(f'Authenticated to {config.hostname} using "publickey".')
        run_local_command(config)
        await forwards.open_all(table, config.forwards, config, ui)
        display = self._display()
        if not mux_background.wants_master(config):
            return await self._main_part(connection, table, display)
        master = mux_background.share(connection, table, config, ui, display)
        if master is None:
            return await self._main_part(connection, table, display)
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, master.resized)
        self._master = master
        try:
            code = await self._main_part(connection, table, display)
            await master.left()
        finally:
            master.close()
        return code

    async def _main_part(
        self, connection: asyncssh.SSHClientConnection, table: ForwardTable, display: Display | None
    ) -> int:
        options, config = self._options, self._config
        if options.stdio_forward is not None:
            self._go_to_background()
            return await self._stdio_forward(connection, options.stdio_forward)
        if config.sessiontype == "none":
            self._go_to_background()
            if self._master is not None:
                await self._master.serve(None)
                if not connection.is_closed():  # -O stop, and nothing is left
                    return 0
            await connection.wait_closed()
            return self._lost(connection)
        return await self._session(connection, table, display)

    async def _session(
        self, connection: asyncssh.SSHClientConnection, table: ForwardTable, display: Display | None
    ) -> int:
        import asyncssh

        from pqtun.shell.client.interaction import Interaction
        from pqtun.shell.client.session import request, wants_terminal

        terminal = wants_terminal(self._options, self._config, self._ui)
        asked = request(self._options, self._config, terminal=terminal)
        interaction = Interaction(connection, self._config, self._ui, table, asked, self._master)
        try:
            await interaction.start(display)
        except asyncssh.Error as error:
            if connection.is_closed():
                return self._lost(connection)
            what = f"subsystem request failed on channel 0: {asked.command}" if asked.subsystem else error.reason
            raise UserError(printable(what)) from None
        self._go_to_background()
        try:
            status = await interaction.end()
        finally:
            interaction.close()
        if status is None and interaction.killed_by is None and not interaction.terminated:
            return self._lost(connection)
        if not interaction.terminated:
            await self._channels_closed(connection)
        if terminal:
            self._ui.say(f"Connection to {self._config.hostname} closed.")
        if interaction.killed_by is not None:
            self._ui.debug(f"The command was ended by SIG{interaction.killed_by}.")
        return ERROR if status is None else status

    async def _stdio_forward(self, connection: asyncssh.SSHClientConnection, destination: tuple[str, int]) -> int:
        import asyncssh

        from pqtun.shell.client.mux_messages import StdioForward
        from pqtun.shell.client.mux_session import Passenger, open_stdio_forward
        from pqtun.shell.client.session import standard_descriptors

        ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        fds = standard_descriptors(null_input=self._config.stdinnull)
        passenger = Passenger(fds, lambda: None, ended.set_result)
        try:
            await open_stdio_forward(connection, StdioForward(0, "", *destination), passenger)
        except asyncssh.Error as error:
            raise UserError(f"stdio forwarding failed: {printable(error.reason)}") from None
        await ended
        return self._lost(connection) if connection.is_closed() else 0

    def _lost(self, connection: asyncssh.SSHClientConnection) -> int:
        """The connection ended by itself: say how."""
        reason = str(connection.get_extra_info("lost") or "")
        if "keepalive" in reason.lower() or "timeout" in reason.lower():
            self._ui.fault(f"Timeout, server {self._config.hostname} not responding.")
        else:
            self._ui.fault(f"Connection to {self._config.hostname} closed by remote host.")
        return ERROR

    async def _channels_closed(self, connection: asyncssh.SSHClientConnection) -> None:
        """Wait, as ssh does, for what still runs over forwards; nothing tells when it ends."""
        while connection._channels and not connection.is_closed():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(LOOK_SECONDS)

    def _go_to_background(self) -> None:
        if self._config.forkafterauthentication and self._leave is not None:
            self._leave(0)
            self._leave = None

    def _display(self) -> Display | None:
        if not self._config.forwardx11:
            return None
        from pqtun.shell.client import x11

        display = x11.prepare(self._config, self._ui)
        return None if display is None else self._stack.enter_context(display)


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.wait_closed()


def run_local_command(config: Config) -> None:
    """Run LocalCommand, if PermitLocalCommand has it, to its end."""
    if config.permitlocalcommand and config.localcommand is not None:
        shell = os.environ.get("SHELL") or "/bin/sh"
        subprocess.run([shell, "-c", config.expand(config.localcommand)], check=False)
