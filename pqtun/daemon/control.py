"""The control socket: one JSON line asks, one JSON line answers (``pqtun status`` and ``pqtun check`` use it)."""

import asyncio
import json
import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pqtun.daemon.peeruser import peer_user
from pqtun.daemon.rundir import socket_path
from pqtun.protocol.errors import UserError

log = logging.getLogger(__name__)

MAX_REQUEST: Final = 64 << 10  # bytes of one line
IDLE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 5.0
MAX_ANSWER: Final = 64 << 20  # the status of 1000 peers has 0.4 MB; root need not believe the worker any size

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class NotRunningError(UserError):
    """No service of this kind runs with this run directory."""


@dataclass(frozen=True)
class Bounds:
    """What those who ask may take up.

    ``connections`` and ``per_user`` at once: beyond the first the oldest makes room, as a user may have many ids
    (subuid(5)); beyond the second one is closed unheard. ``request``: bytes of one line.
    """

    connections: int = 1 << 16
    per_user: int = 1 << 16
    request: int = MAX_REQUEST


class ControlSocket:
    """Serves requests in the worker."""

    def __init__(self, sock: socket.socket, handlers: Mapping[str, Handler], bounds: Bounds | None = None) -> None:
        """``bounds``: None is as good as none."""
        self._sock = sock
        self._handlers = handlers
        self._bounds = bounds or Bounds()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._users: Counter[int] = Counter()

    async def start(self) -> None:
        """Begin to serve."""
        # Not start_unix_server: Python 3.13's wants to remove the socket's file, which is the parent's to do.
        self._server = await asyncio.start_server(self._serve, sock=self._sock, limit=self._bounds.request)

    async def close(self) -> None:
        """Stop serving and end all connections."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = peer_user(writer.get_extra_info("socket"))
        if self._users[user] >= self._bounds.per_user:
            writer.close()
            return
        if len(self._connections) >= self._bounds.connections:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = None
        task.add_done_callback(lambda ended: self._connections.pop(ended, None))
        self._users[user] += 1
        try:
            while line := await asyncio.wait_for(reader.readline(), IDLE_SECONDS):
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), IDLE_SECONDS)
        except (TimeoutError, OSError, ValueError):
            pass  # a client that sends nothing, too much, or goes away
        finally:
            writer.close()
            self._users[user] -= 1
            self._users += Counter()  # forgets who has none

    def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
            handler = self._handlers[request["op"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"error": f"unknown request; known: {', '.join(self._handlers)}"}
        return handler(request)


def ask(run: Path, role: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a running service; for the command line, blocking for at most 5 s.

    Raises NotRunningError if none runs there, UserError if it may not be asked or does not answer.
    """
    path = socket_path(run, role)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(str(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer = json.loads(lines.readline(MAX_ANSWER) or b"null")
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunningError(f"no pqtun {role} runs with {run}; start one, or name its directory with --run") from None
    except PermissionError:
        raise UserError(f"{path} is for root and its group only; run this as root") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the pqtun {role} at {path} does not answer ({error})") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise UserError(f"the pqtun {role} at {path} does not understand the request; is it another version?")
    return answer
