"""``pqtun audit``: check the audit log of the shell."""

import argparse
import json
import string
from pathlib import Path
from typing import Any

from pqtun.cli import options
from pqtun.shell.auditcheck import Report, verify
from pqtun.shell.client.printable import printable

FAILURE = 1
_SUMMARY = "Check the audit log of the shell."
_HASH_DIGITS = 64


def add_parsers(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("audit", help=_SUMMARY, description=_SUMMARY)
    actions = parser.add_subparsers(dest="audit_action", required=True, metavar="ACTION")
    check = options.add_command(
        actions, "verify", "Find any line of an audit log that was changed, removed, added or moved.", run
    )
    check.add_argument("file", metavar="FILE", type=Path, help="the log; files that it put aside are found beside it")
    check.add_argument("--contains", metavar="HASH", type=_hash, help="hash noted earlier of a line that must be there")
    options.add_json(check)


def _hash(text: str) -> str:
    if len(text) != _HASH_DIGITS or not set(text) <= set(string.hexdigits):
        raise argparse.ArgumentTypeError(f"{text!r}: a hash has {_HASH_DIGITS} hexadecimal digits")
    return text.lower()


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; return 0 if nothing is wrong."""
    report = verify(arguments.file, arguments.contains)
    if arguments.json:
        print(json.dumps(_document(report), indent=2))
    else:
        print("\n".join(map(printable, _text(report))))  # a log may be made up to do things to a terminal
    return FAILURE if report.problem else 0


def _text(report: Report) -> list[str]:
    lines = [f"note: {note}" for note in report.notes]
    if report.problem:
        return [*lines, f"BAD: {report.problem}", f"{report.lines} lines before that are good."]
    return [
        *lines,
        f"good: {report.lines} lines, number {report.first} to {report.last}, in {len(report.files)} file(s)",
        f"hash of the last line: {report.hash}",
        "Keep the hash elsewhere: whoever is root here can write a new log, but none that contains this hash.",
    ]


def _document(report: Report) -> dict[str, object]:
    problem = report.problem
    return {
        "good": problem is None,
        "files": [str(file) for file in report.files],
        "lines": report.lines,
        "first": report.first,
        "last": report.last,
        "hash": report.hash,
        "notes": report.notes,
        "problem": None if problem is None else {"file": str(problem.file), "line": problem.line, "text": problem.text},
    }
