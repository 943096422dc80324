"""The whois socket: any user of this host may ask which server a private address leads to.

One JSON line asks: {"op": "whois", "address": "10.43.0.7"}; one answers: {"name": ..., "keyhash": ...}, or {"error":
...} for an address that is no peer's. It answers for every known peer, whether or not its tunnel is up.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pqtun.protocol.base32 import encode
from pqtun.protocol.errors import UserError
from pqtun.protocol.private6 import address4

if TYPE_CHECKING:
    from pqtun.daemon.peers import PeerBook

ROLE: Final = "whois"  # the socket's name in the run directory
OP: Final = "whois"
MAX_REQUEST: Final = 256  # bytes of one line
MAX_ANSWER: Final = 4096
CONNECTIONS: Final = 64  # at once
CONNECTIONS_PER_USER: Final = 16
ANSWER_SECONDS: Final = 5.0
_UNKNOWN: Final = "no peer has this address"


class NotRunningError(UserError):
    """No client runs with this run directory."""


class UnknownAddressError(UserError):
    """The address leads into no tunnel."""


@dataclass(frozen=True)
class Known:
    """A peer. ``keyhash``: as its pq1 name writes it."""

    name: str
    keyhash: str


def answer(book: PeerBook, network6: IPv6Network | None, request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer one request; ``network6``: the private IPv6 addresses, if there are any."""
    try:
        address: IPv4Address | IPv6Address | None = ip_address(str(request.get("address")))
    except ValueError:
        return {"error": _UNKNOWN}
    if isinstance(address, IPv6Address):
        address = None if network6 is None else address4(network6, address)
    peer = None if address is None else book.by_inner(address)
    return {"error": _UNKNOWN} if peer is None else {"name": peer.name, "keyhash": encode(peer.keyhash)}


def ask(run: Path, address: str) -> Known:
    """Ask the client that runs with this directory, for at most 5 s.

    Raises NotRunningError, UnknownAddressError, and UserError if it does not answer, or anybody could in its place.
    """
    path = run / f"{ROLE}.sock"
    try:
        found_at = os.stat(run)
        if found_at.st_uid not in (0, os.geteuid()) or found_at.st_mode & 0o022:
            raise UserError(f"others may write to {run}, so what answers there is not believed; see --run")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(str(path))
            sock.sendall(json.dumps({"op": OP, "address": address}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                found = json.loads(lines.readline(MAX_ANSWER) or b"null")
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunningError(f"no pqtun client runs with {run}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the pqtun client at {path} does not answer ({error})") from None
    match found:
        case {"name": str(name), "keyhash": str(keyhash)} if name.isprintable() and keyhash.isalnum():
            return Known(name, keyhash)
        case {"error": str()}:
            raise UnknownAddressError(f"{address} leads into no tunnel")
        case _:
            raise UserError(f"the pqtun client at {path} is too busy to answer, or another version; try again")
