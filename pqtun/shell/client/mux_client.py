"""Uses the connection of another program by its control socket: sessions, forwards and -O (OpenSSH's PROTOCOL.mux).

Nothing here is asynchronous, and asyncssh is not loaded: a passenger of a shared connection starts at once.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeVar

from pqtun.protocol.errors import MessageError, UserError
from pqtun.shell.client import control_socket
from pqtun.shell.client.forwardspec import Forward
from pqtun.shell.client.mux_messages import (
    DYNAMIC,
    LOCAL,
    MAX_VARIABLES,
    NO_ESCAPE,
    PATH_PORT,
    REMOTE,
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
from pqtun.shell.client.printable import printable
from pqtun.shell.client.terminal import RawTerminal
from pqtun.shell.client.ui import print_text

if TYPE_CHECKING:
    from pqtun.shell.client.config import Config
    from pqtun.shell.client.options import Options
    from pqtun.shell.client.ui import UserInterface

ERROR: Final = 255  # ssh's exit code for whatever is not the command's
HELLO_SECONDS: Final = 10.0  # a master that is stopped must not stop others
_RECEIVE_BYTES: Final = 64 << 10
_LANGUAGE: Final = ("LANG", "LC_*")  # as Debian's ssh_config has it
_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

M = TypeVar("M")


class Refused(Exception):
    """The master answered that it cannot or may not; the text is its reason."""


class _Ended(Exception):
    """The master closed the socket."""


class _Signalled(BaseException):
    """A signal asks this program to end."""


def attach(options: Options, config: Config, ui: UserInterface, *, own: bool = False) -> int | None:
    """Do what the command line asks for over an existing master; return the exit code, None if there is no master.

    None means: connect yourself, and become the master if config.controlmaster says so. ``own``: the master was started
    for this; with -N it keeps the forwards, and nobody waits. Raises UserError for -O without a master, and for a
    master that cannot be trusted or understood.
    """
    if options.control_command is None and (
        config.controlpath is None or config.controlmaster not in ("no", "auto", "autoask")
    ):
        return None
    if config.controlpath is None:
        raise UserError('No ControlPath specified for "-O" command')
    sock = control_socket.connect(config.controlpath)
    if sock is None:
        if options.control_command is not None:
            raise UserError(f"Control socket connect({config.controlpath}): no master listens there")
        return None
    with sock:
        passage = Passage(sock)
        try:
            if options.control_command is not None:
                return _command(passage, options.control_command, config, ui)
            return _ride(passage, options, config, ui, own=own)
        except (_Ended, ConnectionError):
            raise UserError(f"the master at {config.controlpath} closed the connection") from None
        except MessageError as error:
            raise UserError(f"the master at {config.controlpath} is not understood ({error.reason})") from None
        except TimeoutError:
            raise UserError(f"the master at {config.controlpath} does not answer") from None


class Passage:
    """The socket to a master, one request at a time."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected socket; hello() comes first."""
        self._sock = sock
        self._decoder = Decoder()
        self._received: list[Message | Unknown] = []
        self._request = 0

    def hello(self) -> None:
        """Exchange versions. Raises MessageError, _Ended, TimeoutError."""
        self._sock.settimeout(HELLO_SECONDS)
        self._sock.sendall(encode(Hello(VERSION)))
        message = self.receive()
        self._sock.settimeout(None)
        if not isinstance(message, Hello) or message.version != VERSION:
            raise MessageError("version")

    def number(self) -> int:
        """Return the number of the next request."""
        self._request += 1
        return self._request

    def call(self, message: Message, *kinds: type[M], fds: tuple[int, ...] = ()) -> M:
        """Send a request and return its answer. Raises Refused, MessageError, _Ended."""
        self._sock.sendall(encode(message))
        for fd in fds:
            socket.send_fds(self._sock, [b"\0"], [fd])
        answer = self.receive()
        if isinstance(answer, Failure | PermissionDenied) and answer.request == self._request:
            raise Refused(printable(answer.reason))
        if isinstance(answer, kinds) and getattr(answer, "request", None) == self._request:
            return answer
        raise MessageError("unexpected_answer")

    def receive(self) -> Message | Unknown:
        """Return the next message. Raises MessageError, _Ended."""
        while not self._received:
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                raise _Ended
            self._received += [message for message, _ in self._decoder.feed(data)]
        return self._received.pop(0)

    def until_end(self) -> None:
        """Wait until the master closes the socket, whatever it says before."""
        with suppress(_Ended):
            while True:
                self.receive()

    def alive(self) -> int:
        """Return the process id of the master."""
        return self.call(AliveCheck(self.number()), Alive).pid


# -- -O ----------------------------------------------------------------------------------------------


def _command(passage: Passage, command: str, config: Config, ui: UserInterface) -> int:
    passage.hello()
    try:
        if command == "check":
            ui.say(f"Master running (pid={passage.alive()})")
        elif command == "exit":
            passage.call(Terminate(passage.number()), Ok)
            ui.say("Exit request sent.")
        elif command == "stop":
            passage.call(StopListening(passage.number()), Ok)
            ui.say("Stop listening request sent.")
        elif command in ("forward", "cancel"):
            return 0 if _forwards(passage, config, ui, cancel=command == "cancel") else ERROR
        else:
            raise UserError(f"-O {command} is not supported")
    except Refused as error:
        ui.fault(f"Master refused: {error}")
        return ERROR
    return 0


def _forwards(passage: Passage, config: Config, ui: UserInterface, *, cancel: bool = False, show: bool = True) -> bool:
    """Open or cancel all that the command line and the configuration name; return whether all went well."""
    well = True
    for forward in config.forwards:
        wire = to_wire(forward, gateway_ports=config.gatewayports)
        try:
            if cancel:
                passage.call(CloseForward(passage.number(), wire), Ok)
                continue
            answer = passage.call(OpenForward(passage.number(), wire), Ok, RemotePort)
        except Refused as error:
            ui.fault(f"{'cancelling' if cancel else 'opening'} {forward.listen} -> {forward.connect}: {error}")
            well = False
        else:
            if isinstance(answer, RemotePort):
                ui.say(f"Allocated port {answer.port} for remote forward to {forward.connect}")
                if show:
                    print_text(str(answer.port))
    return well


def to_wire(forward: Forward, *, gateway_ports: bool = False) -> WireForward:
    """Return a forward as the protocol writes it: no address is "", all addresses are "*"."""
    kind = {"local": LOCAL, "remote": REMOTE, "dynamic": DYNAMIC}[forward.kind]
    host = forward.listen_host
    if host is None:
        host = "*" if gateway_ports and forward.kind != "remote" else ""
    elif host == "":
        host = "*"
    listen = (host, forward.listen_port or 0) if forward.listen_path is None else (forward.listen_path, PATH_PORT)
    if forward.connect_path is not None:
        return WireForward(kind, *listen, forward.connect_path, PATH_PORT)
    return WireForward(kind, *listen, forward.connect_host or "", forward.connect_port or 0)


# -- sessions ----------------------------------------------------------------------------------------


def _ride(passage: Passage, options: Options, config: Config, ui: UserInterface, *, own: bool) -> int:
    passage.hello()
    pid = passage.alive()
    if not _forwards(passage, config, ui, show=False) and config.exitonforwardfailure:
        return ERROR
    if own and config.sessiontype == "none" and options.stdio_forward is None:
        return 0
    if config.stdinnull:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    with _own_flags(), _signals(pid):
        try:
            if options.stdio_forward is not None:
                return _ride_stdio(passage, options.stdio_forward, ui)
            if config.sessiontype == "none":
                return _ride_without_session(passage, config, ui)
            return _ride_session(passage, options, config, ui)
        except _Signalled:
            return ERROR


def _ride_session(passage: Passage, options: Options, config: Config, ui: UserInterface) -> int:
    subsystem = config.sessiontype == "subsystem"
    command = " ".join(options.command) or config.remotecommand or ""
    terminal = wants_terminal(config, command)
    environment = variables(config)
    name = dict(variable.split("=", 1) for variable in environment).get("TERM") or os.environ.get("TERM", "")
    session = NewSession(
        passage.number(),
        "",
        tty=terminal,
        x11=config.forwardx11,
        agent=config.forwardagent != "no",
        subsystem=subsystem,
        escape=NO_ESCAPE if config.escapechar is None else config.escapechar[0],
        terminal=name,
        command=command,
        environment=environment,
    )
    raw = RawTerminal(0) if terminal and not config.forkafterauthentication else None
    try:
        opened = passage.call(session, SessionOpened, fds=(0, 1, 2)).session
        if raw is not None:
            raw.enter()
        if config.forkafterauthentication and _left_behind():
            return 0
        status = _until_exit(passage, opened, raw)
    except Refused as error:
        ui.fault(f"Master refused session request: {error}")
        return ERROR
    finally:
        if raw is not None:
            raw.restore()
    if terminal:
        ui.say(f"Shared connection to {config.hostname} closed.")
    return ERROR if status is None else status


def _until_exit(passage: Passage, session: int, raw: RawTerminal | None) -> int | None:
    status = None
    with suppress(_Ended, ConnectionError):
        while True:
            match passage.receive():
                case ExitMessage(number, value) if number == session and status is None:
                    status = value
                case TtyAllocFail(number) if number == session:
                    if raw is not None:
                        raw.restore()
                case _:
                    raise MessageError("unexpected_answer")
    return status


def _ride_stdio(passage: Passage, destination: tuple[str, int], ui: UserInterface) -> int:
    try:
        passage.call(StdioForward(passage.number(), "", *destination), SessionOpened, fds=(0, 1))
    except Refused as error:
        ui.fault(f"Stdio forwarding request failed: {error}")
        return ERROR
    with suppress(ConnectionError):
        passage.until_end()
    return 0


def _ride_without_session(passage: Passage, config: Config, ui: UserInterface) -> int:
    """-N: the forwards are what was wanted; they go when this program does."""
    if config.forkafterauthentication and _left_behind():
        return 0
    try:
        with suppress(ConnectionError):
            passage.until_end()
        return ERROR  # the master went away, and the forwards with it
    except _Signalled:
        with suppress(_Ended, ConnectionError, MessageError):
            _forwards(passage, config, ui, cancel=True)
        return ERROR


def _left_behind() -> bool:
    """-f: go on in a process of its own in the background; return True in the one that was started."""
    if os.fork() != 0:
        return True
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    return False


def wants_terminal(config: Config, command: str) -> bool:
    """Whether the server is asked for a terminal (ssh_config(5), RequestTTY)."""
    if config.requesttty == "force":
        return True
    wanted = config.requesttty == "yes" or (
        config.requesttty == "auto" and not command and config.sessiontype == "default"
    )
    return wanted and not config.stdinnull and os.isatty(0)


def variables(config: Config) -> tuple[str, ...]:
    """Return NAME=value of what SendEnv and SetEnv name; without SendEnv the language is sent."""
    found: dict[str, str] = {}
    for pattern in config.sendenv or _LANGUAGE:
        if pattern.startswith("-"):
            found = {name: value for name, value in found.items() if not fnmatchcase(name, pattern[1:])}
        else:
            found |= {name: value for name, value in os.environ.items() if fnmatchcase(name, pattern)}
    found |= dict(config.setenv)
    return tuple(f"{name}={value}" for name, value in found.items())[:MAX_VARIABLES]


@contextmanager
def _own_flags() -> Iterator[None]:
    """Leave stdin, stdout and stderr blocking if they were: OpenSSH's master makes them otherwise."""
    before = {}
    for fd in range(3):
        with suppress(OSError):
            before[fd] = os.get_blocking(fd)
    try:
        yield
    finally:
        for fd, blocking in before.items():
            with suppress(OSError):
                os.set_blocking(fd, blocking)


@contextmanager
def _signals(master: int) -> Iterator[None]:
    """Tell the master of a new window size as OpenSSH does, by the same signal; others end the session."""

    def relay(number: int, frame: FrameType | None) -> None:
        if master > 1:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(master, signal.SIGWINCH)

    def end(number: int, frame: FrameType | None) -> None:
        raise _Signalled

    before = {number: signal.signal(number, end) for number in _ENDING}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, relay)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
