"""Entry point of the ``pqtun`` command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

_FIRST_OWN_DESCRIPTOR: Final = 3
_GARBAGE_THRESHOLD: Final = 100_000  # objects more than freed, until it is looked for; Python's own is 700
# Commands that read their own arguments, as others of their name do, and must start fast: nothing else is imported.
PROGRAMS: Final = {
    "ssh": ("ssh", "Log in to a host through a tunnel, or run a command there."),
    "scp": ("scp", "Copy files through a tunnel."),
    "sftp": ("sftp", "Copy files through a tunnel, interactively."),
    "ssh-keygen": ("ssh_keygen", "Make, show and change SSH keys."),
    "ssh-keyconvert": ("ssh_keyconvert", "Convert SSH keys to and from TinySSH's key directory."),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    import argparse

    from pqtun import __version__
    from pqtun.cli import announce, audit, check, keygen, services, sshd, status

    top = argparse.ArgumentParser(
        prog="pqtun", description="Post-quantum encryption around the traffic of programs that know nothing of it."
    )
    top.add_argument("--version", action="version", version=f"pqtun {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (keygen, announce, services, sshd, audit, check, status):
        command.add_parsers(commands)
    for name, (_, summary) in PROGRAMS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed (one line on stderr says why), 2 wrong usage.

    ``pqtun ssh`` and its like have the exit codes of the programs that they are named after.
    """
    _open_standard_descriptors()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in PROGRAMS:
        _hurry()
        run: Callable[[Sequence[str]], int] = import_module(f"pqtun.cli.{PROGRAMS[words[0]][0]}").main
        return run(words[1:])
    import logging

    from pqtun.cli import ending

    def action() -> int:
        options = parser().parse_args(words)
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="pqtun: %(message)s")
        logging.getLogger("pqtun").setLevel(logging.DEBUG if getattr(options, "verbose", False) else logging.INFO)
        code: int = options.run_command(options)
        return code

    command = [word for word in words[:1] if not word.startswith("-")]
    return ending.run(" ".join(["pqtun", *command]), action)


def _hurry() -> None:
    """Spare a program that must start fast what takes time and is of no use to it."""
    # While modules are loaded nearly everything made is kept, so looking for garbage finds none.
    gc.set_threshold(_GARBAGE_THRESHOLD)
    # SSH needs no TLS, and asyncio does without it where Python has none.
    if "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]
        import asyncio  # noqa: F401

        del sys.modules["ssl"]


def _open_standard_descriptors() -> None:
    """Have /dev/null in the place of what was closed at start, or the next files would get the numbers 0 to 2.

    What is printed, by libraries too, would go into them.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) < _FIRST_OWN_DESCRIPTOR:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


if __name__ == "__main__":
    sys.exit(main())
