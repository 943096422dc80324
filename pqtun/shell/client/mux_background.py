"""Becoming the master of a shared connection: beside a session of one's own, or as a process in the background."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client import mux_client

if TYPE_CHECKING:
    import asyncssh

    from pqtun.shell.client.config import Config
    from pqtun.shell.client.forward_table import ForwardTable
    from pqtun.shell.client.mux_master import Master
    from pqtun.shell.client.options import Options
    from pqtun.shell.client.ui import UserInterface
    from pqtun.shell.client.x11 import Display

_READY: Final = b"r"
_ASKPASS: Final = "/usr/bin/ssh-askpass"


def wants_master(config: Config) -> bool:
    """Whether a connection that is made now is to be shared."""
    return config.controlpath is not None and config.controlmaster != "no"


def share(
    connection: asyncssh.SSHClientConnection,
    forwards: ForwardTable,
    config: Config,
    ui: UserInterface,
    display: Display | None,
) -> Master | None:
    """Serve others over a connection of this process; None, and a word on it, if another master is there already.

    ``display``: where X11 goes that passengers ask for. Whoever calls it hands SIGWINCH on to Master.resized(), waits
    for Master.left() when its own session has ended, and calls close(). Raises UserError.
    """
    from pqtun.shell.client.control_socket import ControlSocket
    from pqtun.shell.client.mux_master import Master

    assert config.controlpath is not None
    control = ControlSocket.listen(config.controlpath)
    if control is None:
        ui.fault(f"ControlSocket {config.controlpath} already exists, disabling multiplexing")
        return None
    asks = config.controlmaster in ("ask", "autoask")
    x11 = None if display is None else {"display": display.name, "auth_path": display.auth_path}
    return Master(connection, control, forwards, ask=confirm if asks else None, x11=x11)


def ride_own_master(options: Options, config: Config, ui: UserInterface) -> int:
    """ControlPersist: have a process connect that stays as master when this one is done, and be its passenger.

    It is forked before anything of asyncio runs, which would not survive it; it still has the terminal, to ask for
    what it needs, until it is logged in. Returns the exit code. Raises UserError.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        status = mux_client.ERROR
        try:
            asyncio.run(_serve(options, config, ui, theirs))
            status = 0
        except UserError as error:
            ui.fault(f"pqtun ssh: {error}")
        except KeyboardInterrupt:
            pass
        finally:
            os._exit(status)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as pipe:
        ready = pipe.read(1) == _READY
    if not ready:
        os.waitpid(pid, 0)  # which has said why
        return mux_client.ERROR
    ridden = mux_client.attach(options, replace(config, controlmaster="no"), ui, own=True)
    if ridden is None:
        raise UserError(f"ControlPath {config.controlpath}: the new master ended")
    return ridden


async def _serve(options: Options, config: Config, ui: UserInterface, ready: int) -> None:
    from pqtun.shell.client import x11
    from pqtun.shell.client.connect import connect
    from pqtun.shell.client.forward_table import ForwardTable
    from pqtun.shell.client.program import run_local_command

    connection = await connect(options, ui=ui, config=config)
    forwards = ForwardTable.of(config, connection)
    with ExitStack() as stack:
        stack.callback(connection.close)
        stack.callback(forwards.close)
        run_local_command(config)
        display = x11.prepare(config, ui) if config.forwardx11 else None
        if display is not None:
            stack.enter_context(display)
        master = share(connection, forwards, config, ui, display)
        if master is not None:
            stack.callback(master.close)
        _detach(keep_stderr=ui.verbosity > 0)
        os.write(ready, _READY)  # without a master of ours: another one was faster, and is as good
        os.close(ready)
        if master is not None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGWINCH, master.resized)
            loop.add_signal_handler(signal.SIGTERM, connection.close)
            await master.serve(config.controlpersist or None)
    await connection.wait_closed()


def _detach(*, keep_stderr: bool) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1) if keep_stderr else (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


async def confirm(question: str) -> bool:
    """Ask the person at the screen (ssh-askpass(1)), as ControlMaster ask wants; no without a screen."""
    environment = {**os.environ, "SSH_ASKPASS_PROMPT": "confirm"}
    try:
        process = await asyncio.create_subprocess_exec(
            os.environ.get("SSH_ASKPASS") or _ASKPASS,
            question,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError:
        return False
    answer, _ = await process.communicate()
    return process.returncode == 0 and answer.strip().lower() in (b"", b"yes")
