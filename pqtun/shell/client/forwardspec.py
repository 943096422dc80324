"""What -L, -R and -D name: where to listen, and where to connect from the other end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pqtun.shell.endpoints import Endpoint

Kind = Literal["local", "remote", "dynamic"]
Permitted = tuple[Endpoint, ...] | None  # None: all

_MAX_PORT: Final = 65535
# A part of a specification: an address in brackets, or what has no colon; "\:" in it stands for a colon.
_PART: Final = re.compile(r"\[([^\]]*)\]|((?:\\.|[^:\\])*)", re.DOTALL)


@dataclass(frozen=True)
class Forward:
    """One forwarding. Of each end either the path of a Unix socket is given, or host and port.

    ``kind``: who listens; "dynamic" is -D, and a "remote" one that connects nowhere is -R with SOCKS.
    ``listen_host``: None if none was given (the loopback addresses, or all with GatewayPorts); "" or "*" for all.
    """

    kind: Kind
    listen_host: str | None = None
    listen_port: int | None = None
    listen_path: str | None = None
    connect_host: str | None = None
    connect_port: int | None = None
    connect_path: str | None = None

    @property
    def socks(self) -> bool:
        """Whether those who connect say themselves, by SOCKS, where to go."""
        return self.connect_port is None and self.connect_path is None

    @property
    def listen(self) -> str:
        """The listening end as -L writes it."""
        return _end(self.listen_host, self.listen_port, self.listen_path)

    @property
    def listen_address(self) -> str:
        """The listening host as a server is asked for it (RFC 4254 section 7.1)."""
        return {None: "localhost", "*": ""}.get(self.listen_host, self.listen_host or "")

    @property
    def connect(self) -> str:
        """The other end as -L writes it."""
        return "[dynamic]" if self.socks else _end(self.connect_host, self.connect_port, self.connect_path)


def parse_forward(kind: Kind, text: str) -> Forward:
    """Read ``[bind_address:]port[:host:hostport]`` and its forms with paths, as ssh(1) does. Raises ValueError."""
    parts = _parts(text)
    listen_path = connect_path = connect_host = listen_host = None
    listen_port = connect_port = None
    if kind == "dynamic" or (kind == "remote" and len(parts) <= 2 and not any(map(_is_path, parts))):
        if len(parts) > 2 or any(map(_is_path, parts)):
            raise ValueError(f"Bad forwarding specification '{text}'")
        connect: list[str] = []
    elif len(parts) > 1 and _is_path(parts[-1]):
        connect, parts = parts[-1:], parts[:-1]
        connect_path = connect[0]
    elif kind == "remote" and len(parts) == 1:  # SOCKS at a Unix socket of the server
        connect = []
    else:
        if len(parts) < 3:
            raise ValueError(f"Bad forwarding specification '{text}'")
        connect, parts = parts[-2:], parts[:-2]
        connect_host, connect_port = connect[0], _port(connect[1], text)
        if not connect_host or connect_port == 0:
            raise ValueError(f"Bad forwarding specification '{text}'")
    if len(parts) == 1 and _is_path(parts[0]):
        listen_path = parts[0]
    elif len(parts) == 1:
        listen_port = _port(parts[0], text)
    elif len(parts) == 2 and not any(map(_is_path, parts)):
        listen_host, listen_port = parts[0], _port(parts[1], text)
    else:
        raise ValueError(f"Bad forwarding specification '{text}'")
    if listen_port == 0 and kind != "remote":
        raise ValueError(f"Bad forwarding specification '{text}'")
    return Forward(kind, listen_host, listen_port, listen_path, connect_host, connect_port, connect_path)


def parse_listen(text: str) -> tuple[str | None, int | None, str | None]:
    """Read the listening end alone, as -KL, -KR and -KD of ``~C`` name it: host, port, path. Raises ValueError."""
    forward = parse_forward("dynamic", text) if not _is_path(text) else Forward("local", listen_path=text)
    return forward.listen_host, forward.listen_port, forward.listen_path


def parse_endpoint(text: str) -> tuple[str, int]:
    """Read ``host:port`` of -W. Raises ValueError."""
    parts = _parts(text)
    if len(parts) != 2 or not parts[0]:
        raise ValueError(f"Bad stdio forwarding specification '{text}'")
    port = _port(parts[1], text)
    if port == 0:
        raise ValueError(f"Bad stdio forwarding specification '{text}'")
    return parts[0], port


def parse_permitted(words: Sequence[str]) -> Permitted:
    """Read PermitRemoteOpen's value: any, none, or ``host:port`` with * for each. Raises ValueError."""
    if len(words) == 1 and words[0].lower() in ("any", "none"):
        return None if words[0].lower() == "any" else ()
    permitted: list[Endpoint] = []
    for word in words:
        parts = _parts(word)
        if len(parts) != 2 or not parts[0]:
            raise ValueError(f"Bad destination '{word}'")
        permitted.append((parts[0], None if parts[1] == "*" else _port(parts[1], word)))
    return tuple(permitted)


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    at = 0
    while True:
        match = _PART.match(text, at)
        assert match is not None  # the second form matches nothing too
        bracketed, plain = match.groups()
        parts.append(bracketed if bracketed is not None else re.sub(r"\\(.)", r"\1", plain, flags=re.DOTALL))
        at = match.end()
        if at == len(text):
            return parts
        if text[at] != ":":
            raise ValueError(f"Bad forwarding specification '{text}'")
        at += 1


def _is_path(part: str) -> bool:
    return "/" in part


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > _MAX_PORT:
        raise ValueError(f"Bad forwarding specification '{whole}'")
    return int(text)


def _end(host: str | None, port: int | None, path: str | None) -> str:
    if path is not None:
        return path
    if host is None:
        return str(port)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
