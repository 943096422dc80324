"""``pqtun ssh``: a login shell, a command or forwards at the other end of a tunnel, with the options of ssh(1)."""

import os
import sys
from collections.abc import Sequence
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
        print(f"pqtun ssh: {error}\n{USAGE}", file=sys.stderr)
    except UserError as error:
        print(f"pqtun ssh: {error}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End at once: all is closed by now, and Python would take 30 ms to free what the kernel frees anyway."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
