"""Where a file is: here, or on a host; as scp(1) and sftp(1) write it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from pqtun.protocol.errors import UserError

_MAX_PORT: Final = 65535


@dataclass(frozen=True)
class Location:
    """A path, and the host that has it (None: this one). An empty path means the directory one lands in."""

    host: str | None
    path: bytes
    user: str | None = None
    port: int | None = None

    @property
    def remote(self) -> bool:
        """Whether it is on another host."""
        return self.host is not None

    def __str__(self) -> str:
        """As it is written on a command line, for messages."""
        path = os.fsdecode(self.path)
        if self.host is None:
            return path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{path}" if self.user else f"{host}:{path}"


def parse(argument: str) -> Location:
    """Read a source or target of scp: ``[user@]host:path``, ``scp://[user@]host[:port][/path]`` or a local path.

    A colon makes it remote unless a slash or nothing stands before it; an IPv6 address stands in brackets. Raises
    UserError.
    """
    if not argument:
        raise UserError("an empty name is none of a file: expected [user@]host:path or a path")
    if argument.startswith("scp://"):
        return _uri(argument, "scp://")
    colon = _colon(argument)
    if colon is None:
        return Location(None, os.fsencode(argument))
    return _remote(argument[:colon], os.fsencode(argument[colon + 1 :]), argument)


def parse_destination(argument: str) -> Location:
    """Read sftp's destination: ``[user@]host[:path]`` or ``sftp://[user@]host[:port][/path]``. Raises UserError."""
    if argument.startswith("sftp://"):
        return _uri(argument, "sftp://")
    colon = _colon(argument)
    if colon is None:
        if "/" in argument:
            raise UserError(f"{argument!r} is no destination: expected [user@]host[:path]")
        return _remote(argument, b"", argument)
    return _remote(argument[:colon], os.fsencode(argument[colon + 1 :]), argument)


def _colon(argument: str) -> int | None:
    """Return where the colon after the host is, None if there is no host."""
    if argument.startswith(":"):
        return None
    slash = argument.find("/")
    bracket = argument.find("[")
    if bracket == 0 or (bracket > 0 and argument[bracket - 1] == "@"):
        closed = argument.find("]:", bracket)
        return closed + 1 if closed > 0 and "/" not in argument[:closed] else None
    colon = argument.find(":")
    return None if colon < 0 or 0 <= slash < colon else colon


def _remote(before: str, path: bytes, argument: str) -> Location:
    user, at, host = before.rpartition("@")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or host.startswith("-") or (at and (not user or user.startswith("-"))):
        raise UserError(f"{argument!r} names no host: expected [user@]host:path")
    return Location(host, path, user or None)


def _uri(argument: str, scheme: str) -> Location:
    authority, _, path = argument[len(scheme) :].partition("/")
    user, at, host = authority.rpartition("@")
    port: str | None = None
    if host.startswith("["):
        host, closed, rest = host[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise UserError(f"{argument!r}: the address has no closing bracket")
        port = rest[1:] if rest else None
    elif ":" in host:
        host, _, port = host.partition(":")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) <= _MAX_PORT):
        raise UserError(f"{argument!r}: a port is a number from 1 to {_MAX_PORT}")
    user = os.fsdecode(unquote_to_bytes(os.fsencode(user.partition(";")[0])))
    if not host or host.startswith("-") or (at and (not user or user.startswith("-"))):
        raise UserError(f"{argument!r} names no host: expected {scheme}[user@]host[:port]/path")
    name = unquote_to_bytes(os.fsencode(path))
    if b"\0" in name or "\0" in user:
        raise UserError(f"{argument!r}: no name has a NUL character")
    return Location(host, name, user or None, int(port) if port else None)
