"""Messages between the server's processes: JSON in packets of a Unix socket, with descriptors beside (unix(7)).

Each side takes the other's for hostile: sizes, counts and shapes are bounded before anything is done with them.
"""

import asyncio
import base64
import binascii
import json
import os
import socket
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MAX_MESSAGE: Final = 64 << 10  # bytes of one packet; the kernel's default send buffer takes it
MAX_DESCRIPTORS: Final = 4
_INT_BYTES: Final = array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_LEN(MAX_DESCRIPTORS * _INT_BYTES)


class MessageError(Exception):
    """What came is no message of ours. Its descriptors are closed."""


class Refused(Exception):
    """The other side said no; the text is its reason."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep messages apart. Raises OSError."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def encode_bytes(data: bytes) -> str:
    """Return bytes as they stand in a message."""
    return base64.b64encode(data).decode()


def decode_bytes(text: object) -> bytes:
    """Return the bytes that ``encode_bytes`` made a text of. Raises MessageError."""
    if not isinstance(text, str):
        raise MessageError("bytes are expected as a text")
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise MessageError("not base64") from None


def send(sock: socket.socket, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
    """Send one message with copies of descriptors.

    Raises MessageError if it is too long or has too many, OSError (BlockingIOError where the socket does not wait).
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_MESSAGE or len(fds) > MAX_DESCRIPTORS:
        raise MessageError("too long a message, or too many descriptors")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the next message and its descriptors, which are the caller's to close and close on exec.

    Raises EOFError at the end, MessageError, OSError (BlockingIOError where the socket does not wait).
    """
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MessageError("too long a message, or too many descriptors")
        if not data:
            raise EOFError
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            raise MessageError("not JSON") from None
        if not isinstance(message, dict):
            raise MessageError("not a JSON object")
    except BaseException:
        close_all(fds)
        raise
    return message, fds


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that came with a message and are not wanted."""
    for fd in fds:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    fields: dict[str, Any]
    fds: list[int] = field(default_factory=list)  # the caller's to close


class Caller:
    """Asks another process and waits for its answers, on the running event loop."""

    def __init__(
        self,
        sock: socket.socket,
        on_event: Callable[[dict[str, Any], list[int]], None],
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """``on_event`` gets what is no answer and owns its descriptors; ``on_close``: the other side has ended."""
        sock.setblocking(False)
        self._sock = sock
        self._on_event = on_event
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._number = 0
        self._sending = asyncio.Lock()
        self._writer = asyncio.Event()
        self._loop.add_reader(sock, self._readable)

    @property
    def closed(self) -> bool:
        """Whether nobody answers any more."""
        return self._sock.fileno() < 0

    async def call(self, op: str, fds: Sequence[int] = (), **fields: object) -> Reply:
        """Ask, and return the answer. ``fds`` stay the caller's.

        Raises Refused, also when the other side ends, and MessageError if the question is too long.
        """
        self._number += 1
        number = self._number
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting[number] = answer
        try:
            await self._send({**fields, "id": number, "op": op}, fds)
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                close_all(answer.result().fds)  # it came, and nobody takes it any more
            raise
        finally:
            del self._waiting[number]
            answer.cancel()

    async def _send(self, message: Mapping[str, object], fds: Sequence[int]) -> None:
        async with self._sending:
            while not self.closed:
                try:
                    send(self._sock, message, fds)
                except BlockingIOError:
                    await self._writable()
                except OSError:
                    break  # the other side has ended
                else:
                    return
        raise Refused("the connection ends")

    async def _writable(self) -> None:
        self._writer.clear()
        self._loop.add_writer(self._sock, self._writer.set)
        try:
            await self._writer.wait()
        finally:
            if not self.closed:
                self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            message, fds = receive(self._sock)
        except BlockingIOError:
            return
        except (EOFError, MessageError, OSError):
            self.close()
            return
        if "id" not in message:
            self._on_event(message, fds)
            return
        number = message.pop("id")
        answer = self._waiting.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            close_all(fds)  # whoever asked waits no longer
        elif "error" in message:
            close_all(fds)
            answer.set_exception(Refused(str(message["error"])))
        else:
            answer.set_result(Reply(message, fds))

    def close(self) -> None:
        """End the connection: what is asked is refused. May be called twice."""
        if self.closed:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._writer.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Refused("the connection ends"))
        if self._on_close is not None:
            self._on_close()
