"""The flags that `pqtun scp` and `pqtun sftp` share, read as getopt(3) does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pqtun.shell.client.location import Location
from pqtun.shell.client.options import Options, UsageError, split_setting
from pqtun.shell.client.pipeline import DEPTH

MAX_DEPTH: Final = 1024  # requests at once
MAX_BLOCK: Final = 1 << 20  # bytes
_LEAST_BLOCK: Final = 512
_MAX_LIMIT: Final = 100_000_000  # Kbit/s

# What the connection is for needs no session, and must not start what a host's configuration has for sessions.
_ALWAYS: Final = (
    ("forwardx11", "no"),
    ("clearallforwardings", "yes"),
    ("permitlocalcommand", "no"),
    ("remotecommand", "none"),
    ("requesttty", "no"),
    ("forkafterauthentication", "no"),
)
_SWITCHES: Final = {
    "4": ("addressfamily", "inet"),
    "6": ("addressfamily", "inet6"),
    "A": ("forwardagent", "yes"),
    "C": ("compression", "yes"),
}
_ARGUMENTS: Final = {"c": "ciphers", "i": "identityfile", "J": "proxyjump", "P": "port"}


@dataclass
class CopyFlags:
    """What both command lines say of the connection and of how files are copied."""

    ssh: Options = field(default_factory=Options)
    preserve: bool = False
    recursive: bool = False
    quiet: bool = False
    verbose: int = 0
    batch: bool = False  # no questions
    limit: int | None = None  # bytes a second
    block_size: int | None = None  # bytes
    depth: int = DEPTH  # requests at once
    server: str | None = None  # subsystem, or path of a program on the host
    help: bool = False

    @property
    def level(self) -> str:
        """How much is said of the connection, as ssh_config(5) has it (LogLevel)."""
        return "QUIET" if self.quiet else f"DEBUG{min(self.verbose, 3)}" if self.verbose else "INFO"

    def for_host(self, location: Location) -> Options:
        """Return the options of the connection to a remote location."""
        assert location.host is not None
        named = [("user", location.user)] if location.user is not None else []
        if location.port is not None:
            named.append(("port", str(location.port)))
        level = [("loglevel", self.level)] if self.quiet or self.verbose else []
        own = [*_ALWAYS, *level, *([("batchmode", "yes")] if self.batch else [])]
        settings = [*named, *own, *self.ssh.settings]
        if not any(name == "forwardagent" for name, _ in self.ssh.settings):
            settings.append(("forwardagent", "no"))
        return dataclasses.replace(self.ssh, host=location.host, settings=settings)

    def take(self, letter: str, value: str | None) -> bool:
        """Take a flag, with its argument if it has one; False if it is none that both have. Raises UsageError."""
        if letter in _SWITCHES:
            self.ssh.settings.append(_SWITCHES[letter])
        elif letter in _ARGUMENTS and value is not None:
            self.ssh.settings.append((_ARGUMENTS[letter], value))
        elif letter == "F":
            self.ssh.config_file = value
        elif letter == "o" and value is not None:
            self.ssh.settings.append(split_setting(value))
        elif letter == "l" and value is not None:
            self.limit = _number("-l", value, 1, _MAX_LIMIT) * 1024 // 8
        elif letter == "p":
            self.preserve = True
        elif letter == "r":
            self.recursive = True
        elif letter == "q":
            self.quiet = True
        elif letter == "v":
            self.verbose += 1
        elif letter == "h":
            self.help = True
        elif letter == "X" and value is not None:
            self._take_sftp_option(value)
        else:
            return False
        return True

    def take_word(self, word: str) -> bool:
        """Take a word such as --direct; False if it is none that both have."""
        if word == "--direct":
            self.ssh.direct = True
        elif word == "--help":
            self.help = True
        else:
            return False
        return True

    def take_block_size(self, flag: str, value: str) -> None:
        """Take a size in bytes of reads and writes. Raises UsageError."""
        self.block_size = _number(flag, value, _LEAST_BLOCK, MAX_BLOCK)

    def take_depth(self, flag: str, value: str) -> None:
        """Take a number of requests. Raises UsageError."""
        self.depth = _number(flag, value, 1, MAX_DEPTH)

    def _take_sftp_option(self, text: str) -> None:
        name, _, value = text.partition("=")
        if name == "nrequests":
            self.take_depth("-X nrequests", value)
        elif name == "buffer":
            self.take_block_size("-X buffer", value)
        else:
            raise UsageError(f"-X {text}: expected nrequests=NUMBER or buffer=BYTES")


def _number(flag: str, value: str, least: int, most: int) -> int:
    if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
        raise UsageError(f"{flag} {value}: expected a number from {least} to {most}")
    return int(value)


def read(
    arguments: Sequence[str],
    with_argument: str,
    short: Callable[[str, str | None], bool],
    long: Callable[[str], bool],
) -> list[str]:
    """Read flags up to the first word that is none, or ``--``; return the words that follow.

    ``with_argument``: the letters that have one. ``short`` is given letters, ``long`` words such as ``--direct``; each
    answers whether there is such an option. Raises UsageError.
    """
    words = list(arguments)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            if not long(word):
                raise UsageError(f"unknown option {word}")
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            value = None
            if letter in with_argument:
                if not letters and not words:
                    raise UsageError(f"option requires an argument -- {letter}")
                value, letters = letters or words.pop(0), ""
            if not short(letter, value):
                raise UsageError(f"unknown option -- {letter}")
    return words
