"""How commands end: with an exit code and, if something went wrong, one line that says what."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Final

from pqtun.protocol.errors import UserError

FAILURE: Final = 1
INTERRUPTED: Final = 130  # as shells report SIGINT

_CANNOT_PRINT: Final = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Who was to read has gone, the disk is full, or so is what a user may have, or the terminal has gone."""


def run(program: str, action: Callable[[], int]) -> int:
    """Do what a command does and return its exit code: 1 after a UserError, or if nothing can be printed; 130 at ^C.

    `program` stands before the line on stderr. Names of files that are no text are printed with backslashes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = action()
        except SystemExit:  # from argparse, which has printed help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except UserError as error:
        complain(program, error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _CANNOT_PRINT:
            raise
        if not isinstance(error, BrokenPipeError):  # of which nobody is told, as with other programs
            print(f"{program}: {error.strerror}", file=sys.stderr)
        # What is still to be printed is dropped, or Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILURE


def complain(program: str, error: UserError) -> None:
    """Say on stderr what went wrong: one line, whatever it quotes."""
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
