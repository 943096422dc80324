"""``pqtun check``: try each step on the way to a server."""

import argparse
import asyncio
import json
import sys
from typing import Any

from pqtun.cli import options
from pqtun.daemon.checkup import Checkup, Step
from pqtun.protocol.base32 import encode

BAR_WIDTH = 30

_TITLES = {
    "dns": "DNS announcement",
    "key": "key download",
    "hash": "key hash",
    "handshake": "handshake",
    "ping": "ping through the tunnel",
}


def add_parsers(commands: Any) -> None:
    """Add the subcommand."""
    parser = options.add_command(commands, "check", "Try each step on the way to a server and say what is wrong.", run)
    parser.add_argument("host", metavar="HOST", help="name that clients use, such as www.example.net")
    parser.add_argument("--dns-only", action="store_true", help="stop after the DNS announcement")
    options.add_run(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print each step; return 0 if all are good, else 1."""
    show_bar = sys.stderr.isatty() and not arguments.json
    checkup = Checkup(arguments.host, arguments.run, _bar if show_bar else None)
    asyncio.run(_steps(checkup, arguments, show_bar))
    if arguments.json:
        print(json.dumps(_document(checkup), indent=2))
    return 0 if checkup.ok else 1


async def _steps(checkup: Checkup, arguments: argparse.Namespace, show_bar: bool) -> None:
    async for step in checkup.run(dns_only=arguments.dns_only):
        if show_bar and step.name == "key":
            print(file=sys.stderr)
        if not arguments.json:
            _print(step)


def _print(step: Step) -> None:
    mark, text = ("ok  ", step.detail) if step.error is None else ("FAIL", step.error)
    print(f"{mark} {_TITLES[step.name]:<24} {1000 * step.seconds:8.1f} ms  {text}", flush=True)


def _bar(verified: int, total: int) -> None:
    done = BAR_WIDTH * verified // total
    print(
        f"\r     [{'#' * done}{'.' * (BAR_WIDTH - done)}] {100 * verified // total:3d} %",
        end="",
        file=sys.stderr,
        flush=True,
    )


def _document(checkup: Checkup) -> dict[str, Any]:
    announced = checkup.announcement
    return {
        "host": checkup.host,
        "ok": checkup.ok,
        "name": checkup.name or None,
        "keyhash": encode(announced.keyhash) if announced else None,
        "addresses": [str(address) for address in checkup.addresses],
        "answering": [str(address) for address in checkup.answering],
        "steps": [
            {
                "step": step.name,
                "ok": step.error is None,
                "seconds": round(step.seconds, 6),
                "detail": step.detail or None,
                "error": step.error,
            }
            for step in checkup.steps
        ],
    }
