"""Reads ssh_config(5): lines into keywords and words, and which Host and Match blocks hold."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client.keywords import ALIASES, KEYWORDS, WITHOUT_EFFECT
from pqtun.shell.client.options import UsageError, split_setting

MAX_DEPTH: Final = 16  # of Include in Include
MAX_FILE: Final = 1 << 20  # bytes of one file
SYSTEM_DIRECTORY: Final = Path("/etc/ssh")
_VERSION: Final = "OpenSSH_10.0"  # what configurations may count on is what that one knows


class ConfigError(UserError):
    """A line of a configuration file that cannot be used; the text names file and line."""


def split_words(text: str) -> list[str]:
    """Split a line as OpenSSH does: quotes of both kinds, backslash before quotes, backslash and space; # ends it.

    Raises ValueError if a quote is not closed.
    """
    words: list[str] = []
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        if text[at] == "#":
            break
        word, quote = "", ""
        while at < len(text):
            letter = text[at]
            if letter == "\\" and at + 1 < len(text) and _escapes(text[at + 1], quote):
                word += text[at + 1]
                at += 1
            elif letter == quote:
                quote = ""
            elif not quote and letter in "\"'":
                quote = letter
            elif not quote and letter in " \t":
                break
            else:
                word += letter
            at += 1
        if quote:
            raise ValueError("invalid quotes")
        words.append(word)
    return words


def _escapes(letter: str, quote: str) -> bool:
    return letter in "\"'\\" or (not quote and letter == " ")


def matches(patterns: str | list[str], value: str, *, lower: bool = False) -> bool:
    """Whether a list of patterns with * and ? names a value; a pattern with ! that does rules it out."""
    found = False
    for pattern in patterns.split(",") if isinstance(patterns, str) else patterns:
        negated, bare = pattern.startswith("!"), pattern.removeprefix("!")
        if _fits(bare.lower() if lower else bare, value):
            if negated:
                return False
            found = True
    return found


def _fits(pattern: str, value: str) -> bool:
    if "*" not in pattern and "?" not in pattern:  # most are names, and making an expression takes long
        return pattern == value
    return pattern == "*" or fnmatchcase(value, pattern.replace("[", "[[]"))  # fnmatch knows [...], which ssh does not


class Reader:
    """Collects what files and command lines say of one host."""

    def __init__(
        self,
        original: str,
        local_user: str,
        expand: Callable[[Reader, str], str],
        *,
        command: str = "",
        final: str | None = None,
    ) -> None:
        """``original``: the host as typed; ``expand``: puts values for tokens (%h) in a command of ``Match exec``.

        ``command``: what shall run at the server, or the subsystem, "" for a shell. ``final``: in the second pass, what
        the first one made of the host.
        """
        self.original = original
        self.host = original if final is None else final
        self.local_user = local_user
        self.command = command
        self.values: dict[str, Any] = {}
        self.wants_final = False
        self._expand = expand
        self._final = final is not None
        self._active = True
        self._where = "command-line: line 0"

    @property
    def hostname(self) -> str:
        """The host to match: what HostName says so far, else what was typed."""
        name: str | None = self.values.get("hostname")
        return self.host if name is None else name.replace("%h", self.original).replace("%%", "%")

    def setting(self, keyword: str, value: str) -> None:
        """Take a setting of the command line. Raises ConfigError."""
        self._where, self._active = "command-line: line 0", True
        self._line(keyword, value)

    def file(self, path: Path, *, user: bool, check: bool = False, depth: int = 0, missing: bool = True) -> None:
        """Take a file.

        ``user``: it is the user's, who has ~ and relative names; ``check``: refuse it if others may write it;
        ``missing``: it need not be there. Raises ConfigError.
        """
        try:
            with path.open("rb") as source:
                found = os.fstat(source.fileno())
                unsafe = found.st_uid not in (0, os.getuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if check and unsafe:
                    raise ConfigError(f"Bad owner or permissions on {path}")
                text = source.read(MAX_FILE + 1)
        except OSError as error:
            if missing:
                return
            raise ConfigError(f"Can't open user config file {path}: {error.strerror}") from None
        if len(text) > MAX_FILE:
            raise ConfigError(f"{path} is too long")
        before = self._active, self._where
        for number, line in enumerate(text.decode(errors="surrogateescape").split("\n"), 1):
            stripped = line.strip(" \t\r\f")
            if not stripped or stripped.startswith("#"):
                continue
            self._where = f"{path} line {number}" if depth or not check else f"{path}: line {number}"
            try:
                keyword, value = split_setting(stripped)
            except UsageError:
                raise ConfigError(f"{self._where}: Missing argument.") from None
            if keyword == "include":
                self._include(value, user=user, check=check, depth=depth)
            else:
                self._line(keyword, value, never=not before[0])
        self._active, self._where = before

    def _include(self, value: str, *, user: bool, check: bool, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise ConfigError(f"{self._where}: Too many recursive configuration includes")
        where = self._where
        for pattern in self._words(value):
            if pattern.startswith("~"):
                pattern = os.path.expanduser(pattern)
            elif not pattern.startswith("/"):
                pattern = str((Path.home() / ".ssh" if user else SYSTEM_DIRECTORY) / pattern)
            for path in sorted(_glob(pattern)):
                self.file(path, user=user, check=check, depth=depth + 1)
                self._where = where

    def _words(self, value: str) -> list[str]:
        try:
            words = split_words(value)
        except ValueError as error:
            raise ConfigError(f"{self._where}: {error}") from None
        if not words:
            raise ConfigError(f"{self._where}: Missing argument.")
        return words

    def _line(self, keyword: str, value: str, *, never: bool = False) -> None:
        keyword = ALIASES.get(keyword, keyword)
        if keyword in ("host", "match"):
            if self._where.startswith("command-line"):
                raise ConfigError(f"{self._where}: {keyword} is not for the command line")
            words = self._words(value)
            holds = matches(words, self.host) if keyword == "host" else self._match(words)
            self._active = holds and not never
            return
        known = KEYWORDS.get(keyword)
        if known is None:
            ignored = str(self.values.get("ignoreunknown", ""))
            if keyword not in WITHOUT_EFFECT and not matches(ignored, keyword, lower=True):
                raise ConfigError(f"{self._where}: Bad configuration option: {keyword}")
            return
        words = [value] if known.raw else self._words(value)
        try:
            converted = known.convert(words)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{self._where}: {keyword}: {str(error).rstrip('.')}.") from None
        if not self._active:
            return
        if known.adds:
            self.values.setdefault(keyword, []).append(converted)
        else:
            self.values.setdefault(keyword, converted)

    def _match(self, words: list[str]) -> bool:
        result = True
        rest = iter(words)
        for word in rest:
            negated, name = word.startswith("!"), word.removeprefix("!").lower()
            name, equals, argument = name.partition("=")
            if name in ("all", "canonical", "final"):
                if name == "final":
                    self.wants_final = True
                holds = name == "all" or self._final
            else:
                holds = self._criterion(name, argument if equals else next(rest, None), rest, wanted=result)
            if holds == negated:
                result = False
        return result

    def _criterion(self, name: str, argument: str | None, rest: Iterator[str], *, wanted: bool) -> bool:
        values: Mapping[str, Callable[[], str]] = {
            "host": lambda: self.hostname,
            "originalhost": lambda: self.original,
            "user": lambda: str(self.values.get("user", self.local_user)),
            "localuser": lambda: self.local_user,
            "tagged": lambda: str(self.values.get("tag", "")),
            "command": lambda: self.command,
            "sessiontype": self._session_type,
            "version": lambda: _VERSION,
        }
        if name not in values and name not in ("exec", "localnetwork"):
            raise ConfigError(f"{self._where}: Unsupported Match attribute {name}")
        if argument is None:
            raise ConfigError(f"{self._where}: Missing Match criteria for {name}")
        if name == "exec":
            return wanted and self._succeeds(argument)
        if name == "localnetwork":
            return False
        return matches(argument, values[name](), lower=name in ("host", "originalhost"))

    def _session_type(self) -> str:
        asked = str(self.values.get("sessiontype", "default"))
        return asked if asked != "default" else "exec" if self.command else "shell"

    def _succeeds(self, command: str) -> bool:
        shell = os.environ.get("SHELL") or "/bin/sh"
        argv = [shell, "-c", self._expand(self, command)]
        try:
            return (
                subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode == 0
            )
        except OSError as error:
            raise ConfigError(f"{self._where}: Match exec: {shell}: {error.strerror}") from None


def _glob(pattern: str) -> Iterator[Path]:
    import glob  # only who includes files needs it

    return (Path(found) for found in glob.glob(pattern) if os.path.isfile(found))
