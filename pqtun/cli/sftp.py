"""``pqtun sftp``: move files interactively, or as a file of commands says."""

import io
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pqtun.cli import ending
from pqtun.shell.ssh import prepare

if TYPE_CHECKING:
    from pqtun.shell.client.sftp import SftpCommand

PROGRAM = "pqtun sftp"


def main(arguments: Sequence[str]) -> int:
    """Run; return 0, 1 if a batch or the transfer of the command line failed, 255 if there is no connection."""
    prepare()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names need not be UTF-8
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    return ending.run(PROGRAM, lambda: _run(arguments))


def _end(number: int, frame: object) -> None:
    # An exception lets the line editor put the terminal right; a second one would keep us from ending in order.
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _run(arguments: Sequence[str]) -> int:
    from pqtun.shell.client.sftp import USAGE, parse_command

    command = parse_command(arguments)
    if command.help:
        print(USAGE)
        return 0
    return _obey(command)


def _obey(command: "SftpCommand") -> int:
    from pqtun.shell.client.connections import Connections, terminal_connector
    from pqtun.shell.client.loopthread import LoopThread
    from pqtun.shell.client.report import TerminalReport
    from pqtun.shell.client.sftp import Sftp

    report = TerminalReport(PROGRAM, progress=command.announces, verbose=command.verbose > 0)
    connections = Connections(command, terminal_connector(command))
    loop = LoopThread()
    done = False
    try:
        code = Sftp(command, connections, report, loop).run()
        done = True
        return code
    finally:
        loop.foreground(connections.close(at_once=not done))
        loop.close()
