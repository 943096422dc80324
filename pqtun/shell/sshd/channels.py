"""All channels of one connection, in the worker: what asyncssh's SSHServer asks after authentication.

Nothing here opens a path or a port: whatever a channel needs is asked of the user's process and comes as a descriptor.
"""

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import asyncssh

from pqtun.daemon.settings import SshdSettings
from pqtun.shell.sshd import messages
from pqtun.shell.sshd.forwards import Forward, Listener
from pqtun.shell.sshd.messages import Caller, MessageError, Refused
from pqtun.shell.sshd.permission import Permission
from pqtun.shell.sshd.session import MAX_PACKET, WINDOW, Session, SessionChannel
from pqtun.shell.sshd.streams import Congestion

MAX_TEXT: Final = 1024  # characters of a command or path in the audit file
LAST_SECONDS: Final = 5.0  # that a connection's end takes at most
CONNECTION_BUFFER: Final = 1 << 20  # bytes that wait for TCP, from which on nothing more is read for it


class Channels:
    """Opens and counts channels. `close` comes last."""

    def __init__(
        self, connection: Any, host: Caller, monitor: Caller, permission: Permission, settings: SshdSettings
    ) -> None:
        """`connection` is asyncssh's SSHServerConnection. What `host` tells by itself goes to `event`."""
        self._connection = connection
        self.host = host
        self._monitor = monitor
        self.permission = permission
        self._most_ends = settings.max_channels
        self.congestion = Congestion()
        self._sessions: dict[int, Session] = {}
        self._ends: dict[int, dict[str, Any]] = {}  # of sessions that we do not know yet
        self._connector: Caller | None = None
        self._connecting = asyncio.Lock()
        self._agent: tuple[str, Listener] | None = None
        self._asking_for_agent = asyncio.Lock()
        self._displays: dict[Session, Listener] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: set[int] = set()  # sessions with servers of our own
        self._served = asyncio.Event()
        self._watch_connection()

    def _watch_connection(self) -> None:
        """asyncssh takes no notice of TCP's being slower than the channels' windows; we do."""
        self._connection.pause_writing = self.congestion.begin
        self._connection.resume_writing = self.congestion.end
        if (transport := self._connection._transport) is not None:
            transport.set_write_buffer_limits(high=CONNECTION_BUFFER)

    async def close(self) -> None:
        """The connection has ended: listen no more, have written down what is to be, and let the user's process end."""
        if self._agent is not None:
            self._agent[1].close()
        for listener in list(self._displays.values()):
            listener.close()
        if self._connector is not None:
            self._connector.close()
        try:
            async with asyncio.timeout(LAST_SECONDS):
                while self._serving and not self.host.closed:
                    self._served.clear()
                    await self._served.wait()  # our own servers end at once, and then tell what they copied
                while self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            pass  # what they tell is lost, which is better than a connection that does not end
        self.host.close()

    # -- what the client asks for ----------------------------------------------------------------

    def session_requested(self) -> tuple[SessionChannel, Session]:
        """A session. Raises asyncssh.ChannelOpenError, as all of these do."""
        return SessionChannel(self._connection, self), Session(self)

    def connection_requested(self, host: str, port: int, _source: str, _source_port: int) -> Any:
        """A TCP connection of the server's (ssh -L, -D, -W, -J)."""
        channel = self._connection.create_tcp_channel(window=WINDOW, max_pktsize=MAX_PACKET)
        return channel, self._open(_address(host, port), functools.partial(self._connect, host, port))

    def unix_connection_requested(self, path: str) -> Any:
        """A connection to a Unix-domain socket of the server's (ssh -L)."""
        channel = self._connection.create_unix_channel(window=WINDOW, max_pktsize=MAX_PACKET)
        return channel, self._open(path, functools.partial(self.host.call, "connect_unix", path=path))

    async def server_requested(self, host: str, port: int) -> Listener | bool:
        """A port to listen on (ssh -R)."""
        what = _address(host, port)
        try:
            reply = await self.host.call("listen", host=host, port=port)
        except (Refused, MessageError) as refusal:
            self._note_refusal(f"listen on {what}", str(refusal))
            return False
        actual = cast(int, reply.fields.get("port"))

        def open_channel(sock: socket.socket) -> Awaitable[Any]:
            channel = self._connection.create_tcp_channel(window=WINDOW, max_pktsize=MAX_PACKET)
            source, source_port = sock.getpeername()[:2]
            forward = self._forward(sock, f"{what} from {source}")
            return channel.accept(lambda: forward, host, actual, source, source_port)  # type: ignore[no-any-return]

        return self._listener(reply.fds, actual, what, open_channel)

    async def unix_server_requested(self, path: str) -> Listener | bool:
        """A Unix-domain socket to listen on (ssh -R)."""
        try:
            reply = await self.host.call("listen_unix", path=path)
        except (Refused, MessageError) as refusal:
            self._note_refusal(f"listen on {path}", str(refusal))
            return False

        def open_channel(sock: socket.socket) -> Awaitable[Any]:
            channel = self._connection.create_unix_channel(window=WINDOW, max_pktsize=MAX_PACKET)
            forward = self._forward(sock, path)
            return channel.accept(lambda: forward, path)  # type: ignore[no-any-return]

        def closed() -> None:
            self._start(self._tell_host("forget_unix", path=path))

        return self._listener(reply.fds, 0, path, open_channel, closed)

    # -- what sessions ask for -------------------------------------------------------------------

    async def agent(self) -> str | None:
        """Return the path of a socket that leads to the client's agent, the same for all sessions; None if refused."""
        async with self._asking_for_agent:
            if self._agent is None:
                try:
                    reply = await self.host.call("agent")
                except Refused as refusal:
                    self._note_refusal("agent", str(refusal))
                    return None
                listener = self._listener(reply.fds, 0, "agent", self._open_agent)
                self._agent = str(reply.fields.get("path")), listener
            return self._agent[0]

    def _open_agent(self, sock: socket.socket) -> Awaitable[Any]:
        forward = self._forward(sock, "agent")
        return self._connection.create_agent_channel().open(lambda: forward)  # type: ignore[no-any-return]

    async def x11(self, session: Session, *, single: bool) -> int | None:
        """Return the number of a display that leads to the client's, until the session ends; None if refused."""
        try:
            reply = await self.host.call("x11")
        except Refused as refusal:
            self._note_refusal("x11", str(refusal))
            return None
        number = cast(int, reply.fields.get("display"))

        def open_channel(sock: socket.socket) -> Awaitable[Any]:
            forward = self._forward(sock, f"x11 display {number}")
            source, source_port = sock.getpeername()[:2]
            channel = self._connection.create_x11_channel()
            return channel.open(lambda: forward, source, source_port)  # type: ignore[no-any-return]

        self._displays[session] = self._listener(reply.fds, 0, f"x11 display {number}", open_channel, single=single)
        return number

    def signal(self, number: int, name: str) -> None:
        """Send a signal to a session's program."""
        self._start(self._tell_host("signal", session=number, name=name))

    def session_started(
        self, session: Session, kind: str, command: bytes | None, number: int | None, tty: str | None, built_in: bool
    ) -> None:
        """A program runs, or a server of our own (`built_in`)."""
        assert number is not None
        if built_in and number not in self._ends:
            self._serving.add(number)
        self._sessions[number] = session
        self.audit(_EVENTS[kind], session=number, text=_text(command), tty=tty, state="start")
        if tty is not None:
            self._start(self._tell_monitor("record", tty=tty))
        if (end := self._ends.pop(number, None)) is not None:
            session.exited(end)

    def session_refused(self, kind: str, command: bytes | None, why: str) -> None:
        """A program may not run."""
        self.audit("refused", what=_EVENTS[kind], text=_text(command), why=why[:MAX_TEXT])

    def session_ended(
        self,
        session: Session,
        number: int | None,
        kind: str,
        tty: str | None,
        outcome: dict[str, Any] | None,
        totals: tuple[int, int],
    ) -> None:
        """A session's channel is closed."""
        if (listener := self._displays.pop(session, None)) is not None:
            listener.close()
        if number is None:
            return
        self._sessions.pop(number, None)
        end = {name: (outcome or {}).get(name) for name in ("status", "signal")}
        known = {name: value for name, value in end.items() if value is not None}
        self.audit(_EVENTS[kind], session=number, state="end", bytes_in=totals[0], bytes_out=totals[1], **known)
        if tty is not None:
            self._start(self._tell_monitor("record", tty=tty, end=True))

    # -- what the user's process tells -----------------------------------------------------------

    def event(self, event: dict[str, Any], fds: list[int]) -> None:
        """Take an event of the user's process."""
        messages.close_all(fds)
        number = event.get("session")
        if not isinstance(number, int):
            return
        if event.get("event") == "transfer":
            path = str(event.get("path"))[:MAX_TEXT]
            self.audit("transfer", session=number, path=path, read=event.get("read"), written=event.get("written"))
        elif event.get("event") == "exit":
            self._serving.discard(number)
            self._served.set()
            if (session := self._sessions.get(number)) is not None:
                session.exited(event)
            elif len(self._ends) < self._most_ends:
                self._ends[number] = event

    # -- helpers ---------------------------------------------------------------------------------

    async def _connect(self, host: str, port: int) -> messages.Reply:
        async with self._connecting:
            if self._connector is None or self._connector.closed:
                reply = await self.host.call("connector")
                self._connector = Caller(socket.socket(fileno=reply.fds[0]), lambda _, fds: messages.close_all(fds))
        return await self._connector.call("connect", host=host, port=port)

    async def _open(self, what: str, connect: Callable[[], Awaitable[messages.Reply]]) -> Forward:
        try:
            reply = await connect()
        except (Refused, MessageError) as refusal:
            self._note_refusal(f"connect to {what}", str(refusal))
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(refusal)) from None
        return self._forward(socket.socket(fileno=reply.fds[0]), what)

    def _forward(self, sock: socket.socket, what: str) -> Forward:
        def ended(sent: int, got: int) -> None:
            self.audit("forward", what=what[:MAX_TEXT], state="end", bytes_in=sent, bytes_out=got)

        self.audit("forward", what=what[:MAX_TEXT], state="start")
        return Forward(sock, self.congestion, ended)

    def _listener(
        self,
        fds: list[int],
        port: int,
        what: str,
        open_channel: Callable[[socket.socket], Awaitable[Any]],
        closed: Callable[[], None] | None = None,
        *,
        single: bool = False,
    ) -> Listener:
        async def accepted(sock: socket.socket) -> None:
            try:
                await open_channel(sock)
            except (asyncssh.Error, OSError, AssertionError):
                sock.close()  # the client does not want it, or has gone

        def ended() -> None:
            self.audit("forward", what=f"listen on {what}"[:MAX_TEXT], state="end")
            if closed is not None:
                closed()

        self.audit("forward", what=f"listen on {what}"[:MAX_TEXT], state="start")
        return Listener(fds, port, accepted, ended, single=single)

    def _note_refusal(self, what: str, why: str) -> None:
        self.audit("refused", what=what[:MAX_TEXT], why=why[:MAX_TEXT])

    def audit(self, event: str, **fields: Any) -> None:
        """Have something written into the audit file, in the order of the calls."""
        self._start(self._tell_monitor("audit", event=event, **fields))

    async def _tell_monitor(self, op: str, **fields: Any) -> None:
        await _tell(self._monitor, op, fields)

    async def _tell_host(self, op: str, **fields: Any) -> None:
        await _tell(self.host, op, fields)

    def _start(self, telling: Any) -> None:
        task = asyncio.get_running_loop().create_task(telling)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_EVENTS: Final = {"shell": "shell", "exec": "command", "subsystem": "subsystem"}


async def _tell(whom: Caller, op: str, fields: dict[str, Any]) -> None:
    try:
        messages.close_all((await whom.call(op, **fields)).fds)
    except (Refused, MessageError):
        pass  # it ends just now, or the program that was meant has


def _text(command: bytes | None) -> str | None:
    return None if command is None else command[:MAX_TEXT].decode(errors="backslashreplace")[:MAX_TEXT]


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
