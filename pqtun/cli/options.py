"""What several commands' argument parsers share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pqtun.daemon import settings

T = TypeVar("T")


def checked(parse: Callable[[object], T]) -> Callable[[str], T]:
    """Return an argparse type that reports what ``parse`` has against a value in its own words."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return convert


PORT = checked(settings.port)
PATH = checked(settings.path)


def add_command(
    commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a subcommand and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run_command=run)
    return parser


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add ``--keys``."""
    parser.add_argument(
        "--keys",
        metavar="DIR",
        type=PATH,
        default=settings.KEYS_DIRECTORY,
        help="key directory (%(default)s)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_run(parser: argparse.ArgumentParser, default: Path | None = settings.RUN_DIRECTORY) -> None:
    """Add ``--run``."""
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=PATH,
        default=default,
        help=f"directory of pid file and control socket ({settings.RUN_DIRECTORY})",
    )
