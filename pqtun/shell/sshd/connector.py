"""The process that makes a user's TCP connections: names are looked up and addresses tried at once, as the user."""

import asyncio
import os
import socket
from typing import Any, Final, cast

from pqtun.shell.sshd import messages
from pqtun.shell.sshd.allowed import Allowed
from pqtun.shell.sshd.messages import MessageError, Refused

ATTEMPT_SECONDS: Final = 0.25  # RFC 8305: how long the next address waits for the last one
CONNECT_SECONDS: Final = 60
MAX_ATTEMPTS: Final = 256  # at once
MAX_HOST: Final = 255  # characters of a name, RFC 1035


def run(sock: socket.socket, allowed: Allowed) -> None:
    """Answer questions of op ``connect`` (`host`, `port`) with a descriptor each, until the other side ends."""
    asyncio.run(_Connector(sock, allowed).run())


class _Connector:
    def __init__(self, sock: socket.socket, allowed: Allowed) -> None:
        self._sock = sock
        self._allowed = allowed
        self._ended = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._sock.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sock, self._readable)
        await self._ended.wait()
        for attempt in self._attempts:
            attempt.cancel()
        # A lookup in the C library cannot be cancelled, and waiting for it would keep this process.
        os._exit(0)

    def _readable(self) -> None:
        try:
            question, fds = messages.receive(self._sock)
        except BlockingIOError:
            return
        except (EOFError, MessageError, OSError):
            asyncio.get_running_loop().remove_reader(self._sock)
            self._ended.set()
            return
        messages.close_all(fds)
        attempt = asyncio.get_running_loop().create_task(self._answer(question))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)

    async def _answer(self, question: dict[str, Any]) -> None:
        answer: dict[str, object] = {"id": question.get("id")}
        fds = []
        try:
            fds = [await self._connect(question.get("host"), question.get("port"))]
        except Refused as refusal:
            answer["error"] = str(refusal)
        try:
            messages.send(self._sock, answer, fds)
        except OSError:
            self._ended.set()  # nobody reads the answers any more: the user's connection ends
        finally:
            messages.close_all(fds)

    async def _connect(self, host: object, port: object) -> int:
        if not isinstance(host, str) or len(host) > MAX_HOST or not isinstance(port, int) or not 0 < port <= 0xFFFF:
            raise Refused("no such address")
        self._allowed.connect(host, port)
        if len(self._attempts) > MAX_ATTEMPTS:
            raise Refused("too many connections are being made")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                transport, _ = await asyncio.get_running_loop().create_connection(
                    _Unread, host, port, happy_eyeballs_delay=ATTEMPT_SECONDS, interleave=1
                )
        except TimeoutError:
            raise Refused("connection timed out") from None
        except (OSError, UnicodeError, ValueError) as error:
            raise Refused(_reason(error)) from None
        # The connection outlives the transport by a descriptor of its own.
        fd = os.dup(cast(socket.socket, transport.get_extra_info("socket")).fileno())
        transport.abort()
        return fd


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"name or service not known: {error.strerror}"
    return getattr(error, "strerror", None) or str(error)


class _Unread(asyncio.Protocol):
    """Leaves what arrives in the kernel, for whoever gets the descriptor."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stop reading before it begins."""
        cast(asyncio.Transport, transport).pause_reading()
