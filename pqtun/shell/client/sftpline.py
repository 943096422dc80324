"""The lines that `pqtun sftp` obeys: quoting as sftp(1) has it, and which command takes what."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client.globbing import unescape

_GLOB: Final = "*?[\\"


@dataclass(frozen=True)
class Syntax:
    """What a command takes; ``paths``: per argument ``r`` for a path there, ``l`` for one here, ``-`` for others."""

    usage: str
    help: str
    flags: str = ""
    least: int = 0
    most: int = 0
    paths: str = ""


COMMANDS: Final[dict[str, Syntax]] = {
    "bye": Syntax("bye", "Quit"),
    "cd": Syntax("cd [path]", "Change the directory there, or to the one you landed in", "", 0, 1, "r"),
    "chgrp": Syntax("chgrp [-h] group path", "Change the group (a number) of files", "h", 2, 2, "-r"),
    "chmod": Syntax("chmod [-h] mode path", "Change the permissions (octal) of files", "h", 2, 2, "-r"),
    "chown": Syntax("chown [-h] owner path", "Change the owner (a number) of files", "h", 2, 2, "-r"),
    "cp": Syntax("cp oldpath newpath", "Copy a file there, on the server where it can", "", 2, 2, "rr"),
    "df": Syntax("df [-hi] [path]", "Show the space of a file system there", "hi", 0, 1, "r"),
    "exit": Syntax("exit", "Quit"),
    "get": Syntax("get [-afpR] remote [local]", "Fetch files", "afpPrR", 1, 2, "rl"),
    "help": Syntax("help", "Show this text"),
    "lcd": Syntax("lcd [path]", "Change the directory here", "", 0, 1, "l"),
    "lls": Syntax("lls [ls-options [path]]", "List a directory here", "", 0, 99, "l"),
    "lmkdir": Syntax("lmkdir path", "Make a directory here", "", 1, 1, "l"),
    "ln": Syntax("ln [-s] oldpath newpath", "Make a link there (-s: a symbolic one)", "s", 2, 2, "rr"),
    "lpwd": Syntax("lpwd", "Show the directory here"),
    "ls": Syntax("ls [-1afhlnrSt] [path]", "List a directory there", "1afhlnrSt", 0, 1, "r"),
    "lumask": Syntax("lumask umask", "Set the mask of permissions here (octal)", "", 1, 1, "-"),
    "mkdir": Syntax("mkdir path", "Make a directory there", "", 1, 1, "r"),
    "progress": Syntax("progress", "Show progress, or do not"),
    "put": Syntax("put [-afpR] local [remote]", "Send files", "afpPrR", 1, 2, "lr"),
    "pwd": Syntax("pwd", "Show the directory there"),
    "quit": Syntax("quit", "Quit"),
    "reconnect": Syntax("reconnect", "Connect again; reget and reput go on where a transfer broke"),
    "reget": Syntax("reget [-fpR] remote [local]", "Go on fetching files", "afpPrR", 1, 2, "rl"),
    "rename": Syntax("rename oldpath newpath", "Rename a file there", "l", 2, 2, "rr"),
    "reput": Syntax("reput [-fpR] local [remote]", "Go on sending files", "afpPrR", 1, 2, "lr"),
    "rm": Syntax("rm path", "Remove files there", "", 1, 1, "r"),
    "rmdir": Syntax("rmdir path", "Remove a directory there", "", 1, 1, "r"),
    "symlink": Syntax("symlink oldpath newpath", "Make a symbolic link there", "", 2, 2, "rr"),
    "version": Syntax("version", "Show the version of the protocol"),
    "!": Syntax("!command", "Run a command here; ! alone: a shell", "", 0, 1),
    "?": Syntax("?", "Show this text"),
}
ALIASES: Final = {
    "bye": "quit",
    "copy": "cp",
    "delete": "rm",
    "dir": "ls",
    "exit": "quit",
    "mget": "get",
    "mput": "put",
    "?": "help",
}


@dataclass(frozen=True)
class Word:
    """One word of a line: ``pattern`` with a backslash before what is not special; ``begin`` is its offset."""

    pattern: bytes
    begin: int

    @property
    def text(self) -> bytes:
        """What it means where no pattern is expected."""
        return unescape(self.pattern)


@dataclass(frozen=True)
class Command:
    """A line understood. ``rest``: what stands after the name, as it was typed (for ! and lls)."""

    name: str
    flags: frozenset[str] = frozenset()
    words: tuple[Word, ...] = ()
    rest: str = ""


@dataclass(frozen=True)
class Split:
    """The words of a line so far. ``quote``: the quote that is still open, or nothing."""

    words: tuple[Word, ...]
    quote: str
    open_word: bool  # whether the line ends within the last word
    open_escape: bool  # or with a backslash


def split(line: str) -> Split:
    """Part a line into words: single and double quotes, backslashes, and # before a comment."""
    words: list[Word] = []
    current: list[str] | None = None
    begin = 0
    quote = ""
    escaped = False
    for index, letter in enumerate(line):
        if current is None:
            if letter in " \t\r\n":
                continue
            if letter == "#":
                break
            current, begin = [], index
        if escaped:
            current.append(_literal(letter))
            escaped = False
        elif letter == "\\":
            escaped = True
        elif quote:
            if letter == quote:
                quote = ""
            else:
                current.append(_literal(letter))
        elif letter in "\"'":
            quote = letter
        elif letter in " \t\r\n":
            words.append(Word(os.fsencode("".join(current)), begin))
            current = None
        else:
            current.append(letter)
    if current is not None:
        words.append(Word(os.fsencode("".join(current)), begin))
    return Split(tuple(words), quote, current is not None, escaped)


def _literal(letter: str) -> str:
    return "\\" + letter if letter in _GLOB else letter


def quoted(name: bytes, quote: str = "") -> str:
    """Return a name as it is typed so that it means itself, within the quote that is open, if one is."""
    text = os.fsdecode(name)
    special = f"\\{quote}" if quote else " \t\r\n\\\"'*?[#"
    return "".join("\\" + letter if letter in special else letter for letter in text)


def marked(line: str) -> tuple[str, str]:
    """Return what stands before the command of a line, and the rest.

    After ``-`` a batch goes on if the line fails, after ``@`` it is not shown.
    """
    text = line.strip()
    rest = text.lstrip("-@ \t")
    return text[: len(text) - len(rest)], rest


def parse(line: str) -> Command | None:
    """Read a line without marks; None if it is empty or a comment. Raises UserError."""
    text = line.strip()
    if "\0" in text:
        raise UserError("no command and no name has a NUL character")
    if text.startswith("!"):
        return Command("!", rest=text[1:].strip())
    found = split(text)
    if found.quote:
        raise UserError("a quote is not closed")
    if not found.words:
        return None
    typed = os.fsdecode(found.words[0].text)
    name = ALIASES.get(typed.lower(), typed.lower())
    syntax = COMMANDS.get(name)
    if syntax is None:
        raise UserError("there is no such command; help lists them")
    first_end = found.words[1].begin if len(found.words) > 1 else len(text)
    rest = text[first_end:].strip()
    if name == "lls":
        return Command(name, rest=rest)
    flags, words = _flags(name, syntax, found.words[1:])
    if not syntax.least <= len(words) <= syntax.most:
        raise UserError(f"usage: {syntax.usage}")
    if not all(word.pattern for word in words):
        raise UserError(f"{name}: an empty name is none of a file")
    return Command(name, flags, words, rest)


def _flags(name: str, syntax: Syntax, words: tuple[Word, ...]) -> tuple[frozenset[str], tuple[Word, ...]]:
    flags: set[str] = set()
    left = list(words)
    while left and left[0].pattern.startswith(b"-") and left[0].pattern != b"-" and syntax.flags:
        letters = os.fsdecode(left.pop(0).pattern[1:])
        if letters == "-":
            break
        for letter in letters:
            if letter not in syntax.flags:
                raise UserError(f"{name} has no option -{letter}; usage: {syntax.usage}")
            flags.add(letter)
    return frozenset(flags), tuple(left)


def help_text() -> str:
    """Return what help prints."""
    return "\n".join(f"{syntax.usage:<32} {syntax.help}" for syntax in COMMANDS.values())
