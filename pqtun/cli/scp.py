"""``pqtun scp``: copy files to and from hosts."""

import asyncio
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pqtun.cli import ending
from pqtun.shell.ssh import prepare

if TYPE_CHECKING:
    from pqtun.shell.client.scp import ScpCommand

PROGRAM = "pqtun scp"


def main(arguments: Sequence[str]) -> int:
    """Copy; return 0 if all of it arrived, 1 if not (a line on stderr for each file says why)."""
    prepare()
    return ending.run(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    from pqtun.shell.client.scp import USAGE, parse_command

    command = parse_command(arguments)
    if command.help:
        print(USAGE)
        return 0
    return _run_to_end(command)


def _run_to_end(command: "ScpCommand") -> int:
    """Copy; at ^C, SIGTERM and SIGHUP say what is not whole."""
    from pqtun.shell.client.loopthread import close_loop

    loop = asyncio.new_event_loop()
    copying = loop.create_task(_copy(command))
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


async def _copy(command: "ScpCommand") -> int:
    from pqtun.shell.client.connections import Connections, terminal_connector
    from pqtun.shell.client.report import TerminalReport
    from pqtun.shell.client.scp import Scp

    report = TerminalReport(PROGRAM, progress=not command.quiet, verbose=command.verbose > 0)
    connections = Connections(command, terminal_connector(command))
    done = False
    try:
        await Scp(command, connections, report).run()
        done = True
    finally:
        await connections.close(at_once=not done)
    return ending.FAILURE if report.faults else 0
