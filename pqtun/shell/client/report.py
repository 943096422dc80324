"""What a person sees while files are copied: progress on a terminal, faults on stderr."""

from __future__ import annotations

import os
import sys

from pqtun.protocol.errors import UserError
from pqtun.shell.client.printable import printable
from pqtun.shell.client.progress import ProgressBar


class TerminalReport:
    """Faults and notes go to stderr, a line each; progress to the terminal that stdout is, if it is one."""

    def __init__(self, program: str, *, progress: bool, verbose: bool = False) -> None:
        """``program`` stands before each fault; ``progress``: whether bars are wanted, where there is a terminal."""
        self._program = program
        self._verbose = verbose
        self.progress = progress
        self.faults = 0

    def fault(self, path: bytes, text: str) -> None:
        """Say that a file was not copied, or not whole."""
        self.faults += 1
        self._line(f"{self._program}: {printable(path)}: {text}" if path else f"{self._program}: {text}")

    def note(self, text: str) -> None:
        """Say something with -v."""
        if self._verbose:
            self._line(text)

    def remark(self, text: str) -> None:
        """Say something on stderr."""
        self._line(text)

    def begin(self, name: bytes, total: int, start: int) -> ProgressBar | None:
        """Show the progress of a file, if it is to be seen."""
        if not self.progress or not os.isatty(1):
            return None
        sys.stdout.flush()
        return ProgressBar(1, name, total, start)

    @staticmethod
    def say(text: str) -> None:
        """Print a line on stdout. Raises UserError if it cannot be written; that nobody reads on is no fault."""
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError as error:  # not to be taken for one of a file or of the connection
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                raise UserError(f"standard output: {error.strerror}") from None

    @staticmethod
    def _line(text: str) -> None:
        sys.stderr.write(" ".join(text.splitlines()) + "\n")
        sys.stderr.flush()
