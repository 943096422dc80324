"""The commands of `pqtun sftp` that only concern this host: as they may take the terminal, in the foreground."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client.faults import reason
from pqtun.shell.client.printable import printable
from pqtun.shell.client.report import TerminalReport
from pqtun.shell.client.sftpline import Command, help_text

_PERMISSIONS: Final = 0o777
_NEW_DIRECTORY: Final = 0o777


class LocalCommands:
    """Commands for this host; `report` has the switch of `progress`."""

    def __init__(self, report: TerminalReport) -> None:
        self._report = report
        self._commands: dict[str, Callable[[Command], None]] = {
            "!": self._shell,
            "help": self._help,
            "lcd": self._lcd,
            "lls": self._lls,
            "lmkdir": self._lmkdir,
            "lpwd": self._lpwd,
            "lumask": self._lumask,
            "progress": self._progress,
        }

    def has(self, name: str) -> bool:
        """Whether a command is one of these."""
        return name in self._commands

    def run(self, command: Command) -> bool:
        """Run a command; whether it succeeded. What fails is reported."""
        before = self._report.faults
        try:
            self._commands[command.name](command)
        except UserError as error:
            self._report.fault(b"", str(error))
        except OSError as error:
            self._report.fault(b"", f"{command.name}: {reason(error)}")
        return self._report.faults == before

    def _help(self, command: Command) -> None:
        self._report.say(help_text())

    def _lcd(self, command: Command) -> None:
        path = command.words[0].text if command.words else os.path.expanduser(b"~")
        if path == b"~" or path.startswith(b"~/"):
            path = os.path.expanduser(path)
        try:
            os.chdir(path)
        except OSError as error:
            raise UserError(f"{printable(path)}: {reason(error)}") from None

    def _lpwd(self, command: Command) -> None:
        self._report.say(f"Local working directory: {printable(os.getcwdb())}")

    def _lmkdir(self, command: Command) -> None:
        path = command.words[0].text
        try:
            os.mkdir(path, _NEW_DIRECTORY)
        except OSError as error:
            raise UserError(f"{printable(path)}: {reason(error)}") from None

    def _lumask(self, command: Command) -> None:
        text = command.words[0].pattern
        if not text or text.strip(b"01234567") or int(text, 8) > _PERMISSIONS:
            raise UserError(f"lumask: {printable(text)} is no mask in octal digits")
        os.umask(int(text, 8))
        self._report.say(f"Local umask: {int(text, 8):03o}")

    def _progress(self, command: Command) -> None:
        self._report.progress = not self._report.progress
        self._report.say(f"Progress meter {'enabled' if self._report.progress else 'disabled'}")

    def _lls(self, command: Command) -> None:
        self._run(f"ls {command.rest}")

    def _shell(self, command: Command) -> None:
        self._run(command.rest)

    @staticmethod
    def _run(line: str) -> None:
        """Run a line in the user's shell, or the shell alone if it is empty."""
        sys.stdout.flush()
        shell = os.environ.get("SHELL") or "/bin/sh"
        process = subprocess.Popen([shell, "-c", line] if line else [shell])
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                continue  # it is the command's, which has got it too
        if status:
            raise UserError(
                f"the command ended with {status}" if status > 0 else f"the command was killed by {-status}"
            )
