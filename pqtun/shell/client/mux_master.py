"""Serves one SSH connection to other programs of the same user, over its control socket (OpenSSH's PROTOCOL.mux)."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from struct import Struct
from typing import Any, Final

import asyncssh

from pqtun.daemon.peeruser import peer_user
from pqtun.protocol.errors import MessageError
from pqtun.shell.client.control_socket import ControlSocket
from pqtun.shell.client.forward_table import ForwardTable
from pqtun.shell.client.forwardspec import Forward
from pqtun.shell.client.mux_messages import (
    DYNAMIC,
    LOCAL,
    MAX_DESCRIPTORS,
    MAX_PACKET,
    PATH_PORT,
    VERSION,
    Alive,
    AliveCheck,
    CloseForward,
    Decoder,
    ExitMessage,
    Failure,
    Hello,
    Message,
    NewSession,
    Ok,
    OpenForward,
    PermissionDenied,
    RemotePort,
    SessionOpened,
    StdioForward,
    StopListening,
    Terminate,
    TtyAllocFail,
    Unknown,
    encode,
)
from pqtun.shell.client.mux_messages import Forward as WireForward
from pqtun.shell.client.mux_session import Passenger, Rider, open_session, open_stdio_forward

MAX_CLIENTS: Final = 128  # at once; more wait in the socket's backlog
RECEIVE_BYTES: Final = 64 << 10
MAX_QUEUED: Final = 2 * MAX_PACKET  # bytes that a client has not read; who leaves more is dropped
_LOOK_SECONDS: Final = 1.0
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FD: Final = Struct("=i")

Ask = Callable[[str], Awaitable[bool]]


def to_forward(wire: WireForward) -> Forward:
    """Return what -L, -R or -D would have been. Raises MessageError if it leads nowhere."""
    paths = wire.listen_port == PATH_PORT, wire.connect_port == PATH_PORT
    kind = {LOCAL: "local", DYNAMIC: "dynamic"}.get(wire.kind, "remote")
    connect_host: str | None = wire.connect_host
    connect_port: int | None = wire.connect_port
    if kind == "dynamic" or not (wire.connect_host or wire.connect_port):
        connect_host = connect_port = None
    elif not wire.connect_host or not wire.connect_port:
        raise MessageError("no_destination")
    if (connect_port is None and kind == "local") or (paths[0] and not wire.listen_host):
        raise MessageError("no_destination")
    return Forward(
        kind,  # type: ignore[arg-type]
        listen_host=None if paths[0] or not wire.listen_host else wire.listen_host,
        listen_port=None if paths[0] else wire.listen_port,
        listen_path=wire.listen_host if paths[0] else None,
        connect_host=None if paths[1] else connect_host,
        connect_port=None if paths[1] else connect_port,
        connect_path=connect_host if paths[1] else None,
    )


class Master:
    """Accepts clients and serves them until closed."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        control: ControlSocket,
        forwards: ForwardTable,
        *,
        ask: Ask | None = None,
        x11: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins to accept at once.

        ``ask``: for ControlMaster ask; ``x11``: display and auth_path of asyncssh, None to forward none.
        """
        self.connection = connection
        self.forwards = forwards
        self.ask = ask
        self.x11 = x11
        self.stopped = False  # a client asked to accept no more (-O stop)
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._clients: set[_Client] = set()
        self._changed = asyncio.Event()
        self._accepting = False
        self._sessions = itertools.count(1)
        self._accept_more()

    @property
    def idle(self) -> bool:
        """Whether no client is connected and nothing runs over the connection."""
        return not self._clients and not self.connection._channels

    async def left(self) -> None:
        """Wait until no client is connected."""
        while self._clients:
            await self._changed.wait()

    async def serve(self, persist: float | None) -> None:
        """Wait for the end: of the connection (-O exit closes it), or when idle for ``persist`` seconds.

        ``persist``: None for no limit; after -O stop it ends when nothing is left.
        """
        ends = [
            asyncio.ensure_future(self.connection.wait_closed()),
            asyncio.ensure_future(self._unused(persist)),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _unused(self, persist: float | None) -> None:
        while True:
            idle = self.idle
            patience = 0 if self.stopped else persist
            if patience is not None and not idle and not self._clients:
                patience = _LOOK_SECONDS  # nobody tells when a forwarded connection ends
            try:
                async with asyncio.timeout(None if self._clients else patience):
                    await self._changed.wait()
            except TimeoutError:
                if idle and self.idle:
                    return

    def resized(self) -> None:
        """SIGWINCH came; a client sends it to us when its terminal has another size."""
        for client in self._clients:
            client.resized()

    def stop_listening(self) -> None:
        """Remove the control socket; clients that are connected stay."""
        self._pause_accepting()
        self._control.close()
        self.stopped = True
        self._notify()

    def close(self) -> None:
        """End all."""
        self.stop_listening()
        for client in list(self._clients):
            client.close()

    def gone(self, client: _Client) -> None:
        """A client's connection has ended."""
        self._clients.discard(client)
        self._accept_more()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _accept_more(self) -> None:
        if not (self._accepting or self.stopped) and len(self._clients) < MAX_CLIENTS:
            self._loop.add_reader(self._control.sock.fileno(), self._accept)
            self._accepting = True

    def _accept(self) -> None:
        try:
            sock, _ = self._control.sock.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:  # who waits stays in the backlog until somebody leaves, or for a while
                self._pause_accepting()
                self._loop.call_later(_LOOK_SECONDS, self._accept_more)
            return
        if peer_user(sock) not in (0, os.geteuid()):
            sock.close()
            return
        sock.setblocking(False)
        self._clients.add(_Client(self, sock, next(self._sessions)))
        self._notify()
        if len(self._clients) >= MAX_CLIENTS:
            self._pause_accepting()

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._loop.remove_reader(self._control.sock.fileno())
            self._accepting = False


class _Client:
    """One program that shares the connection: its requests, one after the other, and at most one session."""

    def __init__(self, master: Master, sock: socket.socket, session: int) -> None:
        """``session``: the number that its session will have."""
        self._master = master
        self._session = session
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._greeted = False
        self._passenger: Passenger | None = None
        self._task: asyncio.Task[None] | None = None
        self._queue: list[tuple[Message | Unknown, list[int]]] = []
        self._outgoing = bytearray()
        self._closing = False  # when all is written
        self._loop.add_reader(sock.fileno(), self._readable)
        self._send(Hello(VERSION))

    # -- the socket --------------------------------------------------------------------------------

    def _readable(self) -> None:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * _FD.size)
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(RECEIVE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, ancillary, flags = b"", [], 0
        fds = [fd for level, kind, block in ancillary if (level, kind) == _RIGHTS for (fd,) in _unpack(block)]
        if not data:
            self.close()
            return
        try:
            found = self._decoder.feed(data, fds)
            if flags & socket.MSG_CTRUNC:
                raise MessageError("descriptors")
        except MessageError:
            self.close()
            return
        self._queue += found
        if len(self._queue) > MAX_DESCRIPTORS + 13:  # nobody asks so much without waiting for an answer
            self.close()
            return
        self._next()

    def _send(self, message: Message) -> None:
        if self._sock.fileno() < 0:
            return
        waits = bool(self._outgoing)
        self._outgoing += encode(message)
        if len(self._outgoing) > MAX_QUEUED:
            self.close()
        elif not waits:
            self._writable()
            if self._outgoing:
                self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._outgoing, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._outgoing.clear()
            self._loop.call_soon(self.close)
            return
        del self._outgoing[:sent]
        if not self._outgoing and self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock.fileno())
            if self._closing:
                self.close()

    def close(self) -> None:
        """End it, and its session with it; may be called twice."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for fds in (self._decoder.unclaimed, *(fds for _, fds in self._queue)):
            for fd in fds:
                os.close(fd)
        self._decoder.unclaimed.clear()
        self._queue.clear()
        if self._passenger is not None:
            self._passenger.cancel()
        self._master.gone(self)

    def resized(self) -> None:
        """See Master.resized."""
        if self._passenger is not None:
            self._passenger.resized()

    # -- requests ----------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._task is None and self._queue and self._sock.fileno() >= 0:
            message, fds = self._queue.pop(0)
            self._task = self._loop.create_task(self._handle(message, fds))
            self._task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            self.close()
        self._next()

    async def _handle(self, message: Message | Unknown, fds: list[int]) -> None:
        if isinstance(message, Hello):
            if self._greeted or message.version != VERSION:
                raise MessageError("version")
            self._greeted = True
            return
        if not self._greeted:
            for fd in fds:
                os.close(fd)
            raise MessageError("no_hello")
        match message:
            case AliveCheck(request):
                self._send(Alive(request, os.getpid()))
            case NewSession() | StdioForward():
                await self._open(message, fds)
            case OpenForward(request, forward):
                await self._open_forward(request, forward)
            case CloseForward(request, forward):
                await self._close_forward(request, forward)
            case Terminate(request):
                if await self._allowed(request, "Terminate shared connection"):
                    self._send(Ok(request))
                    self._master.connection.close()
            case StopListening(request):
                if await self._allowed(request, "Disable further multiplexing on shared connection"):
                    self._send(Ok(request))
                    self._master.stop_listening()
            case Unknown(_, request):
                self._send(Failure(request, "unsupported request"))
            case _:
                raise MessageError("not_for_a_master")

    async def _allowed(self, request: int, question: str) -> bool:
        if self._master.ask is None or await self._master.ask(f"{question}?"):
            return True
        self._send(PermissionDenied(request, "Permission denied"))
        return False

    async def _open(self, message: NewSession | StdioForward, fds: list[int]) -> None:
        request, session = message.request, self._session
        try:
            if self._passenger is not None:
                self._send(Failure(request, "Multiple sessions not supported"))
                return
            if not await self._allowed(request, "Allow shared connection") or self._sock.fileno() < 0:
                return
            mine, fds = fds, []
            escape = None
            if isinstance(message, NewSession) and message.tty and 0 < message.escape < 256:
                escape = bytes([message.escape])
            self._passenger = passenger = Rider(
                mine,
                lambda: self._send(SessionOpened(request, session)),
                lambda status: self._ended(session, status),
                escape,
            )
        finally:
            for fd in fds:
                os.close(fd)
        try:
            if isinstance(message, NewSession):
                await open_session(
                    self._master.connection,
                    message,
                    passenger,
                    no_terminal=lambda: self._send(TtyAllocFail(session)),
                    x11=self._master.x11,
                )
            else:
                await open_stdio_forward(self._master.connection, message, passenger)
        except (asyncssh.Error, OSError) as error:
            if self._sock.fileno() >= 0 and not passenger.was_opened:
                self._send(Failure(request, f"Session open refused by peer: {error}"))
            passenger.cancel()

    def _ended(self, session: int, status: int | None) -> None:
        self._passenger = None
        if self._sock.fileno() < 0:
            return
        if status is not None:
            self._send(ExitMessage(session, status))
        self._closing = True
        if not self._outgoing:
            self.close()

    async def _open_forward(self, request: int, wire: WireForward) -> None:
        try:
            forward = to_forward(wire)
        except MessageError:
            self._send(Failure(request, "invalid forwarding request"))
            return
        if not await self._allowed(request, f"Open forward of {forward.listen} to {forward.connect}"):
            return
        try:
            port = await self._master.forwards.open(forward)
        except (OSError, asyncssh.Error, asyncssh.ChannelListenError) as error:
            # asyncio's own text is about a call.
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            self._send(Failure(request, f"Port forwarding failed: {reason}"))
            return
        self._send(RemotePort(request, port) if port is not None and wire.listen_port == 0 else Ok(request))

    async def _close_forward(self, request: int, wire: WireForward) -> None:
        try:
            known = await self._master.forwards.cancel(to_forward(wire))
        except MessageError:
            known = False
        self._send(Ok(request) if known else Failure(request, "port not forwarded"))


_RIGHTS: Final = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


def _unpack(block: bytes) -> list[tuple[int]]:
    return [_FD.unpack_from(block, at) for at in range(0, len(block) - len(block) % _FD.size, _FD.size)]
