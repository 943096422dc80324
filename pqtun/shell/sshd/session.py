"""Sessions in the worker: the requests of an SSH channel (RFC 4254 section 6), and the program's descriptors."""

import asyncio
import binascii
import os
import socket
import termios
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.packet import SSHPacket

from pqtun.shell.sshd import environment, messages, pseudoterminal
from pqtun.shell.sshd.messages import MessageError, Refused, Reply
from pqtun.shell.sshd.pseudoterminal import Size
from pqtun.shell.sshd.streams import Ends, Sink, Source

if TYPE_CHECKING:
    from pqtun.shell.sshd.channels import Channels

WINDOW: Final = 4 << 20  # bytes that a client may send ahead: 40 MB/s where an answer takes 100 ms
MAX_PACKET: Final = 32 << 10  # bytes; what OpenSSH uses
MAX_VARIABLES: Final = 64

_STDERR: Final = asyncssh.EXTENDED_DATA_STDERR


class SessionChannel(asyncssh.SSHServerChannel[bytes]):
    """A session's channel, with answers that wait for the user's process, which asyncssh's own do not."""

    _session: Any  # of Session, or None when the channel is closed

    def __init__(self, connection: Any, channels: "Channels") -> None:
        """A channel of bytes, without asyncssh's line editor."""
        loop = asyncio.get_running_loop()
        super().__init__(connection, loop, True, False, False, 0, 0, None, "strict", WINDOW, MAX_PACKET)
        self._channels = channels

    def _process_env_request(self, packet: SSHPacket) -> bool:
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        return self._session.set_variable(name, value)  # type: ignore[no-any-return]

    def _process_x11_req_request(self, packet: SSHPacket) -> None:
        single, protocol, cookie = packet.get_boolean(), packet.get_string(), packet.get_string()
        screen = packet.get_uint32()
        packet.check_end()
        self._answer_later(self._session.forward_x11(single, protocol, cookie, screen))

    def _process_auth_agent_req_at_openssh_dot_com_request(self, packet: SSHPacket) -> None:
        packet.check_end()
        self._answer_later(self._session.forward_agent())

    def _process_shell_request(self, packet: SSHPacket) -> Any:
        packet.check_end()
        return self._start("shell", None)

    def _process_exec_request(self, packet: SSHPacket) -> Any:
        command = packet.get_string()
        packet.check_end()
        return self._start("exec", command)

    def _process_subsystem_request(self, packet: SSHPacket) -> Any:
        name = packet.get_string()
        packet.check_end()
        return self._start("subsystem", name)

    def _start(self, kind: str, command: bytes | None) -> Any:
        if self._session_started:
            return False
        self._session_started = True
        self._answer_later(self._session.start(kind, command))
        return None

    def _answer_later(self, request: Any) -> None:
        async def answer() -> None:
            done = await request
            if self._session is not None:
                self._report_response(done)

        assert self._conn is not None
        self._conn.create_task(answer(), self.logger)

    def _flush_send_buf(self) -> None:
        super()._flush_send_buf()
        if self._send_state == "eof" and self._session is not None:
            self._session.drained()


class Session(Ends, asyncssh.SSHServerSession[bytes]):
    """One session: what was asked for it, then the program that runs in it."""

    def __init__(self, channels: "Channels") -> None:
        """Nothing is asked for yet."""
        super().__init__()
        self._channels = channels
        self._variables: dict[str, str] = {}
        self._pty: pseudoterminal.Request | None = None
        self._agent: str | None = None
        self._display: dict[str, object] | None = None
        self._kind = ""
        self._number: int | None = None  # what the user's process calls it
        self._tty: str | None = None
        self._fds: list[int] = []
        self._refusal: str | None = None
        self._outcome: dict[str, Any] | None = None
        self._eof_sent = False
        self._input_ended = False
        self._exited = False
        self._lost = False

    # -- before the program ----------------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        """The channel is open."""
        self._channel = chan

    def set_variable(self, name: bytes, value: bytes) -> bool:
        """Take a variable for the environment; whether it is one that clients may set."""
        try:
            key, text = name.decode("ascii"), value.decode()
        except UnicodeDecodeError:
            return False
        if len(self._variables) >= MAX_VARIABLES or not environment.accepted(key, text):
            return False
        self._variables[key] = text
        return True

    def pty_requested(self, term_type: str, term_size: Any, term_modes: Any) -> bool:
        """Whether there will be a terminal."""
        if self._kind or not self._channels.permission.pty:
            return False
        modes = tuple(term_modes.items())
        self._pty = pseudoterminal.Request(term_type, Size(*term_size), modes)
        return True

    async def forward_agent(self) -> bool:
        """Give the program the client's agent."""
        self._agent = await self._channels.agent()
        return self._agent is not None

    async def forward_x11(self, single: bool, protocol: bytes, cookie: bytes, screen: int) -> bool:
        """Give the program the client's X display."""
        try:
            binascii.unhexlify(cookie)
            credentials = {"protocol": protocol.decode("ascii"), "cookie": cookie.decode("ascii")}
        except (ValueError, UnicodeDecodeError):
            return False
        if self._display is not None or self._kind:
            return False
        number = await self._channels.x11(self, single=single)
        if number is None:
            return False
        self._display = {"number": number, "screen": screen, **credentials}
        return True

    async def start(self, kind: str, command: bytes | None) -> bool:
        """Start the program; whether the client is told so. What a person should read comes by standard error."""
        self._kind = kind
        question: dict[str, Any] = {"kind": kind, "environment": self._variables, "agent": self._agent}
        question["client"] = str(self._channel.get_extra_info("client_version", ""))
        question["display"] = self._display
        if command is not None:
            question["command"] = messages.encode_bytes(command)
        if self._pty is not None:
            question["pty"] = self._pty.to_json()
        try:
            reply = await self._channels.host.call("start", **question)
        except (Refused, MessageError) as refusal:
            self._refusal = str(refusal)
            self._channels.session_refused(kind, command, self._refusal)
            return kind != "subsystem"
        if self._lost:
            messages.close_all(reply.fds)
            return False
        self._take(reply)
        built_in = self._tty is None and len(self._fds) == 1
        self._channels.session_started(self, kind, command, self._number, self._tty, built_in)
        return True

    def _take(self, reply: Reply) -> None:
        self._fds = reply.fds
        for fd in self._fds:
            os.set_blocking(fd, False)
        self._number = reply.fields.get("session")
        self._tty = reply.fields.get("tty")
        if self._tty is None:
            self._pty = None  # a server of our own has no terminal

    # -- while it runs ---------------------------------------------------------------------------

    def session_started(self) -> None:
        """The client knows that the program runs."""
        if self._refusal is not None:
            self._channel.write_stderr(f"pqtun sshd: {self._refusal}\n".encode())
            self._outcome = {"status": 1}
            self._output_ended()
            return
        congestion = self._channels.congestion
        if len(self._fds) == 1:
            sink = Sink(self._fds[0], self._channel, self._finish_socket if self._tty is None else _nothing)
            outputs = [(self._fds[0], self._channel.write)]
        else:
            sink = Sink(self._fds[0], self._channel, self._finish_pipe)
            outputs = [(self._fds[1], self._channel.write), (self._fds[2], self._channel.write_stderr)]
        self._begin(sink, [Source(fd, congestion, write, self._output_ended) for fd, write in outputs])
        if self._outcome is not None:
            self.exited(self._outcome)  # before we came to this

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """The client's window has another size."""
        size = Size(width, height, pixwidth, pixheight)
        if self._tty is not None and self._fds:
            try:
                pseudoterminal.resize(self._fds[0], size)
            except OSError:
                pass  # it hangs up just now
        elif self._pty is not None and self._number is None:
            self._pty = pseudoterminal.Request(self._pty.term, size, self._pty.modes)

    def signal_received(self, signal: str) -> None:
        """Send a signal to the program, if it is one that clients may send."""
        if self._number is not None:
            self._channels.signal(self._number, signal)

    def break_received(self, msec: int) -> bool:
        """A break of a serial line; whether there is a terminal that could take one."""
        if self._tty is None or not self._fds:
            return False
        try:
            termios.tcsendbreak(self._fds[0], 0)
        except termios.error:
            return False
        return True

    def _finish_pipe(self) -> None:
        self._input_ended = True
        os.close(self._fds[0])
        self._fds[0] = -1

    def _finish_socket(self) -> None:
        self._input_ended = True
        try:
            with socket.socket(fileno=os.dup(self._fds[0])) as sock:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has ended
        if self._lost:
            self._close()

    # -- its end ---------------------------------------------------------------------------------

    def exited(self, outcome: dict[str, Any]) -> None:
        """The program has ended, maybe with output that is still to be sent.

        As with sshd, a terminal's session ends with it; on pipes it goes on until all who hold them have ended.
        """
        self._outcome = outcome
        if self._tty is not None:
            for source in self._sources:
                source.finish()
        self._report()

    def _output_ended(self) -> None:
        if not self._eof_sent and not any(source.open for source in self._sources):
            self._eof_sent = True
            self._channel.write_eof()

    def drained(self) -> None:
        """The last byte of output and the end-of-file are on their way."""
        self._exited = True
        self._report()

    def _report(self) -> None:
        if self._lost or not self._exited or self._outcome is None:
            return
        if "signal" in self._outcome:
            self._channel.exit_with_signal(str(self._outcome["signal"]), bool(self._outcome.get("core")))
        else:
            self._channel.exit(int(self._outcome["status"]))

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed. A terminal hangs up now; a program on pipes still gets what the client sent."""
        self._lost = True
        for source in self._sources:
            source.close()
        self._channels.session_ended(self, self._number, self._kind, self._tty, self._outcome, self._totals)
        if self._sink is not None and exc is None and self._tty is None and not self._input_ended:
            self._sink.end()
            self._close_outputs()
        else:
            if self._sink is not None:
                self._sink.break_off()
            self._close()

    def _close_outputs(self) -> None:
        for index in range(1, len(self._fds)):
            os.close(self._fds[index])
        del self._fds[1:]

    def _close(self) -> None:
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds = []


def _nothing() -> None:
    """A terminal is not closed for its input, as it is one with its output."""
