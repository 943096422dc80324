"""``pqtun scp``: copy files to and from hosts."""

import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pqtun.protocol.errors import UserError
from pqtun.shell.ssh import prepare

if TYPE_CHECKING:
    import asyncssh

    from pqtun.shell.client.options import Options
    from pqtun.shell.client.scp import ScpCommand

PROGRAM = "pqtun scp"
FAILURE = 1
INTERRUPTED = 130  # as shells report SIGINT


def main(arguments: Sequence[str]) -> int:
    """Copy; return 0 if all of it arrived, 1 if not (a line on stderr for each file says why)."""
    prepare()
    from pqtun.shell.client.scp import USAGE, parse_command

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        command = parse_command(arguments)
        if command.help:
            print(USAGE)
            return 0
        return _run_to_end(command)
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED


def _run_to_end(command: "ScpCommand") -> int:
    """Copy; at ^C, SIGTERM and SIGHUP say what is not whole."""
    from pqtun.shell.client.loopthread import close_loop

    loop = asyncio.new_event_loop()
    copying = loop.create_task(_run(command))
    ended_by: list[int] = []

    def end(number: int) -> None:
        ended_by.append(number)
        copying.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    try:
        return loop.run_until_complete(copying)
    except asyncio.CancelledError:
        return 128 + ended_by[0]
    finally:
        close_loop(loop)  # after a ^C at a question, too, which leaves everything as it is


async def _run(command: "ScpCommand") -> int:
    from pqtun.shell.client.connect import connect
    from pqtun.shell.client.connections import Connections
    from pqtun.shell.client.report import TerminalReport
    from pqtun.shell.client.scp import Scp
    from pqtun.shell.client.ui import UserInterface

    level = "QUIET" if command.quiet else f"DEBUG{min(command.verbose, 3)}" if command.verbose else "INFO"
    ui = UserInterface(level=level, batch=command.batch)

    async def connector(options: "Options") -> "asyncssh.SSHClientConnection":
        return await connect(options, ui=ui)

    report = TerminalReport(PROGRAM, progress=not command.quiet, verbose=command.verbose > 0)
    connections = Connections(command, connector)
    done = False
    try:
        await Scp(command, connections, report).run()
        done = True
    finally:
        await connections.close(at_once=not done)
    return FAILURE if report.faults else 0
