"""``pqtun ssh``: a login shell, a command or forwards at the other end of a tunnel, with the options of ssh(1)."""

import sys
from collections.abc import Sequence

from pqtun.protocol.errors import UserError
from pqtun.shell.client.options import USAGE, UsageError
from pqtun.shell.client.program import ERROR
from pqtun.shell.client.program import main as run


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code: the remote command's, 255 for errors of ssh's own."""
    try:
        return run(arguments)
    except UsageError as error:
        print(f"pqtun ssh: {error}\n{USAGE}", file=sys.stderr)
    except UserError as error:
        print(f"pqtun ssh: {error}", file=sys.stderr)
    return ERROR
