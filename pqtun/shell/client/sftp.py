"""``pqtun sftp``: its command line, and the program that reads lines and has them done."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pqtun.protocol.errors import UserError
from pqtun.shell.client import copyflags
from pqtun.shell.client.connections import Connections
from pqtun.shell.client.copier import ConnectionGone, CopySettings
from pqtun.shell.client.copyflags import CopyFlags
from pqtun.shell.client.faults import FILE_FAULTS, LOST, is_lost, reason
from pqtun.shell.client.location import Location, parse_destination
from pqtun.shell.client.loopthread import LoopThread
from pqtun.shell.client.options import UsageError
from pqtun.shell.client.pipeline import Throttle
from pqtun.shell.client.printable import printable
from pqtun.shell.client.report import TerminalReport
from pqtun.shell.client.sftpcompletion import CachedNames, local_names
from pqtun.shell.client.sftpline import Command, marked, parse
from pqtun.shell.client.sftplocal import LocalCommands
from pqtun.shell.client.sftpprompt import PROMPT, Prompt
from pqtun.shell.client.sftpsession import Session
from pqtun.shell.client.store import Kind

T = TypeVar("T")

USAGE: Final = """\
usage: pqtun sftp [-46AaCfNpqrv] [--direct] [-B buffer_size] [-b batchfile]
                  [-c cipher_spec] [-F ssh_config] [-i identity_file]
                  [-J destination] [-l limit] [-o ssh_option] [-P port]
                  [-R num_requests] [-s subsystem | sftp_server] [-X sftp_option]
                  destination [local path]

The flags are those of sftp(1). Hosts must be reached through a tunnel, except:
  --direct      go to a host without a tunnel; ~/.ssh/known_hosts tells its key"""

FAILURE: Final = 1
CONNECTION_FAILED: Final = 255
LISTING_SECONDS: Final = 5.0  # what completion waits for the server

_WITH_ARGUMENT: Final = "BbcFiJloPRsX"


@dataclass
class SftpCommand(CopyFlags):
    """A command line of sftp."""

    destination: Location = field(default_factory=lambda: Location("", b""))
    local: bytes | None = None
    batch_file: str | None = None  # "-": stdin
    resume: bool = False  # -a
    fsync: bool = False  # -f
    loud: bool = False  # -N

    @property
    def announces(self) -> bool:
        """Whether it says what it is doing, from which -q and -b keep it, but for -N."""
        return self.loud or not (self.quiet or self.batch_file)


def parse_command(arguments: Sequence[str]) -> SftpCommand:
    """Read the arguments of ``pqtun sftp``. Raises UsageError, and UserError for a destination that is none."""
    command = SftpCommand()

    def short(letter: str, value: str | None) -> bool:
        if letter == "a":
            command.resume = True
        elif letter == "f":
            command.fsync = True
        elif letter == "N":
            command.loud = True
        elif letter == "b":
            command.batch_file = value
            command.batch = True
        elif letter == "B" and value is not None:
            command.take_block_size("-B", value)
        elif letter == "R" and value is not None:
            command.take_depth("-R", value)
        elif letter == "s":
            command.server = value
        else:
            return command.take(letter, value)
        return True

    words = copyflags.read(arguments, _WITH_ARGUMENT, short, command.take_word)
    if command.help:
        return command
    if not 1 <= len(words) <= 2:
        raise UsageError("name a host: pqtun sftp [options] [user@]host[:path]")
    command.destination = parse_destination(words[0])
    if len(words) > 1:
        if not command.destination.path:
            raise UsageError("a local path needs a remote one: pqtun sftp [options] [user@]host:path [local path]")
        command.local = os.fsencode(words[1])
    return command


class Sftp:
    """Runs lines until there are none, the person quits, or a batch fails. Faults are told to `report`."""

    def __init__(
        self, command: SftpCommand, connections: Connections, report: TerminalReport, loop: LoopThread
    ) -> None:
        self._command = command
        self._connections = connections
        self._report = report
        self._loop = loop
        self._session: Session | None = None
        self._lost = False
        self._local = LocalCommands(report)
        self._remote_names = CachedNames(self._list)

    def run(self) -> int:
        """Do all of it; return the exit code."""
        try:
            self._loop.foreground(self._connect())
        except UserError as error:
            self._report.fault(b"", str(error))
            return CONNECTION_FAILED
        host = printable(self._command.destination.host or "")
        if self._command.announces:
            self._report.remark(f"Connected to {host}.")
        if self._command.destination.path:
            fetched = self._guard(
                lambda session: session.open_path(self._command.destination.path, self._command.local)
            )
            if fetched is not None or self._lost:
                return 0 if fetched else FAILURE
        if self._command.batch_file is not None:
            return self._batch(self._lines(self._command.batch_file))
        if not sys.stdin.isatty():
            return self._follow(self._lines("-"))
        return self._converse()

    # -- the connection ------------------------------------------------------------------------------

    async def _connect(self) -> None:
        store = await self._connections.store(self._command.destination)
        try:
            home = await store.home()
        except FILE_FAULTS as error:
            raise UserError(f"no SFTP on this connection: {reason(error)}") from None
        settings = CopySettings(
            recursive=self._command.recursive,
            preserve=self._command.preserve,
            resume=self._command.resume,
            fsync=self._command.fsync,
            block_size=self._command.block_size,
            depth=self._command.depth,
            throttle=None if self._command.limit is None else Throttle(self._command.limit),
        )
        session = Session(store, home, settings, self._report, quiet=not self._command.announces)
        if self._session is not None:
            session.directory = self._session.directory
        self._session = session
        self._lost = False

    def _reconnect(self) -> bool:
        self._connections.forget(self._command.destination)
        try:
            self._loop.foreground(self._connect())
        except UserError as error:
            self._report.fault(b"", str(error))
            return False
        return True

    def _guard(self, doing: Callable[[Session], Coroutine[Any, Any, T]]) -> T | None:
        """Have something done by the server; None if the connection was lost, or ^C ended it."""
        if self._session is None or self._lost:
            self._report.fault(b"", "there is no connection; reconnect makes one")
            return None
        before = self._report.faults
        try:
            return self._loop.run(doing(self._session))
        except KeyboardInterrupt:
            if self._report.faults == before:
                self._report.fault(b"", "interrupted")
            return None
        except ConnectionGone:
            self._set_lost(said=True)
        except FILE_FAULTS as error:
            if not is_lost(error):
                raise
            self._set_lost(said=False)
        return None

    def _set_lost(self, *, said: bool) -> None:
        self._lost = True
        if not said:
            self._report.fault(b"", LOST)

    # -- lines ---------------------------------------------------------------------------------------

    def _lines(self, path: str) -> Iterator[str]:
        try:
            source = sys.stdin.buffer if path == "-" else open(path, "rb")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        with source:
            for line in source:
                yield os.fsdecode(line.rstrip(b"\r\n"))

    def _batch(self, lines: Iterator[str]) -> int:
        for line in lines:
            passed, last = self._one(line, echo=True)
            if last:
                return 0
            if self._lost or not passed:
                return FAILURE
        return 0

    def _follow(self, lines: Iterator[str]) -> int:
        """Obey lines of a stdin that is no terminal: faults do not end it, but the exit code tells of the last."""
        good = True
        for line in lines:
            passed, last = self._one(line, echo=True)
            if last:
                break
            good = passed
            if self._lost:
                return FAILURE
        return 0 if good else FAILURE

    def _converse(self) -> int:
        with Prompt(self._remote_names, local_names) as prompt:
            while (line := prompt.read()) is not None:
                _, last = self._one(line, echo=False)
                if last:
                    break
        return 0

    def _one(self, line: str, *, echo: bool) -> tuple[bool, bool]:
        """Obey a line; whether it succeeded or may fail, and whether it was the last one."""
        marks, text = marked(line)
        if echo and "@" not in marks and text and not text.startswith("#"):
            self._report.say(f"{PROMPT}{printable(line)}")
        try:
            command = parse(text)
        except UserError as error:
            self._report.fault(b"", str(error))
            return "-" in marks, False
        if command is None:
            return True, False
        return self._obey(command) or "-" in marks, command.name == "quit"

    def _obey(self, command: Command) -> bool:
        if command.name == "quit":
            return True
        if command.name == "reconnect":
            return self._reconnect()
        if self._local.has(command.name):
            return self._local.run(command)
        try:
            return bool(self._guard(lambda session: session.run(command)))
        finally:
            self._remote_names.forget()

    def _list(self, path: bytes) -> list[tuple[bytes, bool]]:
        """Ask the server for a directory, for completion."""
        if self._session is None or self._lost:
            return []
        session = self._session
        try:
            found = self._loop.run(session.store.names(session.path(path)), LISTING_SECONDS)
        except (*FILE_FAULTS, UserError):
            return []
        return [(name, entry.kind is Kind.DIRECTORY) for name, entry in found]
