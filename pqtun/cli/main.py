"""Entry point of the ``pqtun`` command."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from pqtun import __version__
from pqtun.cli import announce, check, keygen, services, status
from pqtun.protocol.errors import UserError

FAILURE = 1
_FIRST_OWN_DESCRIPTOR = 3


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
    _open_standard_descriptors()
    options = parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="pqtun: %(message)s")
    logging.getLogger("pqtun").setLevel(logging.DEBUG if getattr(options, "verbose", False) else logging.INFO)
    try:
        code: int = options.run_command(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        text = " ".join(str(error).split())  # one line, whatever it quotes
        print(f"pqtun {options.command}: {text}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130  # as shells report SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return FAILURE


def _open_standard_descriptors() -> None:
    """Have /dev/null in the place of what was closed at start, or the next files would get the numbers 0 to 2.

    What is printed, by libraries too, would go into them.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) < _FIRST_OWN_DESCRIPTOR:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


if __name__ == "__main__":
    sys.exit(main())
