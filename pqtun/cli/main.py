"""Entry point of the ``pqtun`` command."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from pqtun import __version__
from pqtun.cli import announce, check, keygen, services, status
from pqtun.protocol.errors import UserError

USAGE_ERROR = 2  # argparse's own exit code
FAILURE = 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="pqtun", description="Post-quantum encryption around the traffic of programs that know nothing of it."
    )
    top.add_argument("--version", action="version", version=f"pqtun {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (keygen, announce, services, check, status):
        command.add_parsers(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed (one line on stderr says why), 2 wrong usage."""
    options = parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="pqtun: %(message)s")
    logging.getLogger("pqtun").setLevel(logging.DEBUG if getattr(options, "verbose", False) else logging.INFO)
    try:
        code: int = options.run_command(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"pqtun {options.command}: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130  # as shells report SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
