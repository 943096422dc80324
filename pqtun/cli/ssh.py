"""``pqtun ssh``: a login shell, a command or forwards at the other end of a tunnel, with the options of ssh(1)."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from pqtun.protocol.errors import UserError
from pqtun.shell.client.options import USAGE, UsageError
from pqtun.shell.client.program import ERROR
from pqtun.shell.client.program import main as run


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the command and exit with its code: the remote command's, 255 for errors of ssh's own."""
    code = ERROR
    try:
        code = run(arguments)
    except UsageError as error:
        _complain(f"{error}\n{USAGE}")
    except UserError as error:
        _complain(str(error))
    _leave(code)


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody is there to read it
        print(f"pqtun ssh: {text}", file=sys.stderr, flush=True)


def _leave(code: int) -> NoReturn:
    """End at once: all is closed by now, and Python would take 30 ms to free what the kernel frees anyway."""
    os._exit(code)
