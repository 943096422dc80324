"""The control socket: one JSON line asks, one JSON line answers (``pqtun status`` and ``pqtun check`` use it)."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

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


class ControlSocket:
    """Serves requests in the worker."""

    def __init__(self, sock: socket.socket, handlers: Mapping[str, Handler]) -> None:
        self._sock = sock
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to serve."""
        # Not start_unix_server: Python 3.13's wants to remove the socket's file, which is the parent's to do.
        self._server = await asyncio.start_server(self._serve, sock=self._sock, limit=MAX_REQUEST)

    async def close(self) -> None:
        """Stop serving and end all connections."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            while line := await asyncio.wait_for(reader.readline(), IDLE_SECONDS):
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), IDLE_SECONDS)
        except (TimeoutError, OSError, ValueError):
            pass  # a client that sends nothing, too much, or goes away
        finally:
            writer.close()

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
