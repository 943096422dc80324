"""``pqtun sftp``: move files interactively, or as a file of commands says."""

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pqtun.protocol.errors import UserError
from pqtun.shell.ssh import prepare

if TYPE_CHECKING:
    import asyncssh

    from pqtun.shell.client.options import Options
    from pqtun.shell.client.sftp import SftpCommand

PROGRAM = "pqtun sftp"
FAILURE = 1
INTERRUPTED = 130  # as shells report SIGINT


def main(arguments: Sequence[str]) -> int:
    """Run; return 0, 1 if a batch or the transfer of the command line failed, 255 if there is no connection."""
    prepare()
    from pqtun.shell.client.sftp import USAGE, parse_command

    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # names need not be UTF-8
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        command = parse_command(arguments)
        if command.help:
            print(USAGE)
            return 0
        return _run(command)
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED


def _end(number: int, frame: object) -> None:
    # An exception lets the line editor put the terminal right; a second one would keep us from ending in order.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _run(command: "SftpCommand") -> int:
    from pqtun.shell.client.connect import connect
    from pqtun.shell.client.connections import Connections
    from pqtun.shell.client.loopthread import LoopThread
    from pqtun.shell.client.report import TerminalReport
    from pqtun.shell.client.sftp import Sftp
    from pqtun.shell.client.ui import UserInterface

    level = "QUIET" if command.quiet else f"DEBUG{min(command.verbose, 3)}" if command.verbose else "INFO"
    ui = UserInterface(level=level, batch=command.batch)

    async def connector(options: "Options") -> "asyncssh.SSHClientConnection":
        return await connect(options, ui=ui)

    report = TerminalReport(PROGRAM, progress=not command.quiet, verbose=command.verbose > 0)
    connections = Connections(command, connector)
    loop = LoopThread()
    done = False
    try:
        code = Sftp(command, connections, report, loop).run()
        done = True
        return code
    finally:
        loop.foreground(connections.close(at_once=not done))
        loop.close()
