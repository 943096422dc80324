"""The user's own process on the server: runs programs and opens sockets as the user, for the worker that asks.

It waits for one question at a time and forks for whatever takes long. Everything that a key or the settings forbid is
refused here: the worker reads what comes from the network and is not trusted with it.

Questions (messages.py), with what answers them:

- ``start`` (kind, command, pty, environment, client, agent, display): `session`, `tty` and descriptors: a
  pseudo-terminal's master; or a program's standard input, output and error; or a socket of our own SFTP or scp server
- ``signal`` (session, name)
- ``connector``: a socket that answers connector.py's questions
- ``connect_unix`` (path); ``listen`` (host, port): `port`; ``listen_unix`` and ``forget_unix`` (path)
- ``agent``: `path`; ``x11``: `display`

Events: ``exit`` (session, and status or signal and core), ``transfer`` (session, path, read, written).
"""

import fcntl
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from pqtun.shell.sshd import (
    connector,
    environment,
    greeting,
    listening,
    loginrecords,
    messages,
    program,
    pseudoterminal,
    scp,
    sftp,
)
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.allowed import Allowed
from pqtun.shell.sshd.login import Login
from pqtun.shell.sshd.messages import MessageError, Refused
from pqtun.shell.sshd.permission import Permission
from pqtun.shell.sshd.sftp import Transfer

MAX_VARIABLES: Final = 64  # LANG and LC_* of a client
MAX_PATH: Final = 4096  # bytes, PATH_MAX
PIPE_BYTES: Final = 256 << 10  # what pipe(7) holds for a program, so that fewer turns carry more

# RFC 4254 section 6.9: what a client may send; sshd leaves out those that are for faults of a program itself.
SIGNALS: Final = {
    name: signal.Signals[f"SIG{name}"]
    for name in ("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2")
}
_SENT: Final = frozenset({"HUP", "INT", "KILL", "QUIT", "TERM", "USR1", "USR2"})


@dataclass(frozen=True, slots=True)
class _Child:
    pidfd: int
    session: int | None  # None: the connector
    signals: bool = True  # a forced command takes none, as it may count on not being interrupted
    reports: socket.socket | None = None  # of files that our own SFTP or scp server has copied


def run(sock: socket.socket, account: Account, permission: Permission, login: Login) -> None:
    """Serve the worker at the other end of `sock` until it ends. The process is the user's already, and of one thread.

    `sock` and 0, 1, 2 are the only descriptors that are open.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    host = _Host(sock, account, permission, login)
    try:
        host.serve()
    finally:
        host.clean_up()


def _end(_number: int, _frame: object) -> NoReturn:
    sys.exit(0)


class _Host:
    def __init__(self, sock: socket.socket, account: Account, permission: Permission, login: Login) -> None:
        self._sock = sock
        self._account = account
        self._permission = permission
        self._login = login
        self._allowed = Allowed(permission, login.settings)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, self._asked)
        self._children: dict[int, _Child] = {}  # by process
        self._sessions = 0
        self._files = listening.SocketFiles()
        self._ended = False
        self._answers: dict[str, Callable[[dict[str, Any]], tuple[dict[str, object], list[int]]]] = {
            "start": self._start,
            "signal": self._signal,
            "connector": self._connector,
            "connect_unix": self._connect_unix,
            "listen": self._listen,
            "listen_unix": self._listen_unix,
            "forget_unix": self._forget_unix,
            "agent": self._agent,
            "x11": self._x11,
        }

    def serve(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                key.data()

    def clean_up(self) -> None:
        self._files.remove_all()

    # -- questions -------------------------------------------------------------------------------

    def _asked(self) -> None:
        try:
            question, fds = messages.receive(self._sock)
        except (EOFError, MessageError, OSError):
            self._ended = True
            return
        messages.close_all(fds)
        answer: dict[str, object] = {}
        try:
            op = self._answers.get(str(question.get("op")))
            if op is None:
                raise Refused("no such question")
            answer, fds = op(question)
        except OSError as error:
            answer, fds = {"error": error.strerror or str(error)}, []
        except (Refused, MessageError) as refusal:
            answer, fds = {"error": str(refusal)}, []
        self._send({**answer, "id": question.get("id")}, fds)
        messages.close_all(fds)

    def _send(self, message: dict[str, object], fds: Sequence[int] = ()) -> None:
        try:
            messages.send(self._sock, message, fds)
        except OSError:
            self._ended = True

    def _connect_unix(self, question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        self._allowed.connect_unix()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # a full backlog is a refusal, nothing to wait for
            sock.connect(_path(question))
        except BaseException:
            sock.close()
            raise
        return {}, [sock.detach()]

    def _listen(self, question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        host, port = question.get("host"), question.get("port")
        if not isinstance(host, str) or not isinstance(port, int) or not 0 <= port <= 0xFFFF:
            raise Refused("no such address")
        self._allowed.listen(host, port)
        port, sockets = listening.on_port(self._allowed.address(host), port)
        return {"port": port}, [sock.detach() for sock in sockets]

    def _listen_unix(self, question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        self._allowed.listen_unix()
        return {}, [self._files.listen(_path(question)).detach()]

    def _forget_unix(self, question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        self._files.remove(_path(question))
        return {}, []

    def _agent(self, _question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        self._allowed.agent()
        path, sock = self._files.listen_privately()
        return {"path": path}, [sock.detach()]

    def _x11(self, _question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        self._allowed.x11()
        display, sockets = listening.on_display()
        return {"display": display}, [sock.detach() for sock in sockets]

    def _connector(self, _question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        theirs, ours = messages.pair()
        with ours:
            self._fork(None, lambda: connector.run(ours, self._allowed), keep=[ours])
        return {}, [theirs.detach()]

    def _signal(self, question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        name = question.get("name")
        for pid, child in self._children.items():
            if child.session is not None and child.session == question.get("session"):
                if name not in _SENT or not child.signals:
                    raise Refused("this signal is not sent")
                try:
                    os.killpg(pid, SIGNALS[name])
                except ProcessLookupError:
                    os.kill(pid, SIGNALS[name])  # it has just been forked
                return {}, []
        raise Refused("no such session")

    # -- sessions --------------------------------------------------------------------------------

    def _start(self, question: dict[str, Any]) -> tuple[dict[str, object], list[int]]:
        running = sum(child.session is not None for child in self._children.values())
        if running >= self._login.settings.max_channels:
            raise Refused("too many sessions")
        kind, command = _asked_for(question)
        pty = None if question.get("pty") is None else pseudoterminal.Request.from_json(question["pty"])
        if pty is not None:
            self._allowed.pty()
        forced = self._permission.command
        what = program.plan(kind, command, forced, path=self._environment({}, None, None, None)["PATH"])
        if not isinstance(what, program.Shell):
            if forced is None and not program.is_login_shell(self._account.shell):
                raise Refused("the login shell is none of /etc/shells")
            return self._start_server(what, str(question.get("client", "")))
        original = command if forced is not None else None
        sent = _variables(question.get("environment"))
        self._sessions += 1
        if pty is not None:
            return self._start_in_terminal(what, pty, question, sent, original)
        return self._start_on_pipes(what, question, sent, original)

    def _environment(
        self, sent: dict[str, str], term: str | None, tty: str | None, original: bytes | None
    ) -> dict[str, str]:
        return environment.of_login(
            self._account,
            self._permission,
            self._login,
            sent=sent,
            term=term,
            tty=tty,
            pam=self._login.pam_environment,
            original_command=None if original is None else os.fsdecode(original),
        )

    def _start_in_terminal(
        self,
        shell: program.Shell,
        pty: pseudoterminal.Request,
        question: dict[str, Any],
        sent: dict[str, str],
        original: bytes | None,
    ) -> tuple[dict[str, object], list[int]]:
        master, slave = pseudoterminal.open_pair(pty)
        try:
            tty = os.ttyname(slave)
            variables = self._environment(sent, pty.term, tty, original)
            self._run(shell, variables, [slave, slave, slave], question, terminal=True)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        return {"session": self._sessions, "tty": tty}, [master]

    def _start_on_pipes(
        self, shell: program.Shell, question: dict[str, Any], sent: dict[str, str], original: bytes | None
    ) -> tuple[dict[str, object], list[int]]:
        # Pipes, not sshd's sockets: /dev/stdin, /dev/stdout and /dev/stderr can be opened only if they are pipes.
        theirs: list[int] = []
        ours: list[int] = []
        try:
            for is_input in (True, False, False):
                reading, writing = os.pipe()
                theirs.append(reading if is_input else writing)
                ours.append(writing if is_input else reading)
            for pipe in ours[:2]:
                _enlarge(pipe)
            variables = self._environment(sent, None, None, original)
            self._run(shell, variables, theirs, question, terminal=False)
        except BaseException:
            messages.close_all(ours)
            raise
        finally:
            messages.close_all(theirs)
        return {"session": self._sessions, "tty": None}, ours

    def _run(
        self,
        shell: program.Shell,
        variables: dict[str, str],
        stdio: list[int],
        question: dict[str, Any],
        *,
        terminal: bool,
    ) -> None:
        if (agent := question.get("agent")) is not None:
            variables["SSH_AUTH_SOCK"] = str(agent)
        cookie = None
        if (display := question.get("display")) is not None:
            variables["DISPLAY"], cookie = _display(display)
        self._fork(
            self._sessions,
            lambda: program.run(
                self._account.shell,
                shell.command,
                environment=variables,
                stdio=stdio,
                terminal=terminal,
                cookie=cookie,
                greeting=self._greeting() if terminal and shell.command is None else b"",
            ),
            signals=self._permission.command is None,
        )

    def _greeting(self) -> bytes:
        said = None if self._login.pam_environment is None else self._login.texts
        return greeting.text(self._account, said, loginrecords.last(self._account))

    def _start_server(
        self, what: program.Sftp | program.Scp, client_version: str
    ) -> tuple[dict[str, object], list[int]]:
        self._sessions += 1
        session = self._sessions
        variables = self._environment({}, None, None, None)
        theirs, ours = socket.socketpair()
        reports, reporter = messages.pair()

        def report(transfer: Transfer) -> None:
            messages.send(
                reporter,
                {
                    "event": "transfer",
                    "path": transfer.path[:MAX_PATH].decode(errors="backslashreplace"),
                    "read": transfer.read,
                    "written": transfer.written,
                },
            )

        def serve() -> int:
            os.environ.clear()
            os.environ.update(variables)
            if isinstance(what, program.Sftp):
                sftp.serve(ours, what, report, client_version=client_version)
                return 0
            return scp.serve(ours, what.arguments, report)

        with ours, reporter:
            try:
                self._fork(session, serve, keep=[ours, reporter], reports=reports)
            except BaseException:
                theirs.close()
                reports.close()
                raise
        return {"session": session, "tty": None}, [theirs.detach()]

    def _reported(self, session: int | None, reports: socket.socket) -> bool:
        try:
            event, fds = messages.receive(reports)
        except (EOFError, MessageError, OSError):
            self._selector.unregister(reports)
            reports.close()
            return False
        messages.close_all(fds)
        self._send({**event, "session": session})
        return True

    # -- processes -------------------------------------------------------------------------------

    def _fork(
        self,
        session: int | None,
        run: Callable[[], int | None],
        *,
        keep: Sequence[socket.socket] | None = None,
        signals: bool = True,
        reports: socket.socket | None = None,
    ) -> None:
        """Run something in a child; with `keep`, all descriptors but those and 0, 1, 2 are closed in it before."""
        pid = os.fork()
        if pid == 0:
            _be_child(run, keep)
        pidfd = os.pidfd_open(pid)
        self._children[pid] = _Child(pidfd, session, signals, reports)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._reap(pid))
        if reports is not None:
            self._selector.register(reports, selectors.EVENT_READ, lambda: self._reported(session, reports))

    def _reap(self, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        child = self._children.pop(pid)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        # What it reported last must come before its end.
        while (
            child.reports is not None and child.reports.fileno() >= 0 and self._reported(child.session, child.reports)
        ):
            pass
        if child.session is not None:
            self._send({"event": "exit", "session": child.session, **_outcome(status)})


def _be_child(run: Callable[[], int | None], keep: Sequence[socket.socket] | None) -> NoReturn:
    status = 255
    try:
        if keep is not None:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            low = 3
            for fd in sorted(sock.fileno() for sock in keep):
                os.closerange(low, fd)
                low = fd + 1
            os.closerange(low, os.sysconf("SC_OPEN_MAX"))
        status = run() or 0
    except BaseException as error:  # noqa: BLE001  # nothing may get back into the parent's loop
        os.write(2, f"pqtun sshd: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def _outcome(status: int) -> dict[str, object]:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name.removeprefix("SIG")
        # RFC 4254 section 6.10 has these names; OpenSSH calls all others so.
        return {"signal": name if name in SIGNALS else "SIG@openssh.com", "core": os.WCOREDUMP(status)}
    return {"status": os.WEXITSTATUS(status)}


def _asked_for(question: dict[str, Any]) -> tuple[program.Kind, bytes | None]:
    kind = question.get("kind")
    if kind not in ("shell", "exec", "subsystem"):
        raise Refused("no such kind of session")
    command = None if kind == "shell" else messages.decode_bytes(question.get("command"))
    if command is not None and b"\0" in command:
        raise Refused("a command without NUL bytes is needed")
    return cast(program.Kind, kind), command


def _variables(sent: object) -> dict[str, str]:
    if not isinstance(sent, dict) or len(sent) > MAX_VARIABLES:
        raise Refused("no environment")
    return {str(name): str(value) for name, value in sent.items()}


def _display(display: object) -> tuple[str, program.Cookie]:
    if not isinstance(display, dict):
        raise MessageError("no display")
    number, screen = display.get("number"), display.get("screen")
    protocol, cookie = str(display.get("protocol")), str(display.get("cookie"))
    if not isinstance(number, int) or not isinstance(screen, int) or not program.is_safe_for_xauth(protocol, cookie):
        raise Refused("no display")
    return f"localhost:{number}.{screen}", program.Cookie(f"unix:{number}.{screen}", protocol, cookie)


def _path(question: dict[str, Any]) -> str:
    path = question.get("path")
    if not isinstance(path, str) or not path or "\0" in path:  # NUL would be the abstract namespace, unix(7)
        raise Refused("no path")
    return path


def _enlarge(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # the user has many of them, pipe(7)
