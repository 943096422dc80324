"""The user's process, asked as the worker asks it: what it does, and what it refuses to a worker taken over."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pqtun.daemon.settings import SshdSettings
from pqtun.shell.sshd import accounts, host, identity, messages
from pqtun.shell.sshd.permission import Permission
from tests.net.process import wait_until
from tests.shell.sshd.driver import fork, login, permission, run
from tests.shell.sshd.world import World

pytestmark = pytest.mark.root


@dataclass
class Host:
    """A user's process, and questions to it."""

    sock: socket.socket
    events: list[dict[str, Any]] = field(default_factory=list)
    number: int = 0

    def ask(self, op: str, **fields: object) -> tuple[dict[str, Any], list[int]]:
        self.number += 1
        messages.send(self.sock, {**fields, "id": self.number, "op": op})
        while True:
            answer, fds = messages.receive(self.sock)
            if answer.pop("id", None) == self.number:
                return answer, fds
            self.events.append(answer)

    def refusal(self, op: str, **fields: object) -> str:
        answer, fds = self.ask(op, **fields)
        assert not fds
        return str(answer["error"])

    def start(self, command: bytes, **fields: object) -> tuple[int, list[int]]:
        answer, fds = self.ask("start", kind="exec", command=encoded(command), environment={}, **fields)
        return answer["session"], fds

    def event(self) -> dict[str, Any]:
        return self.events.pop(0) if self.events else messages.receive(self.sock)[0]


def encoded(data: bytes) -> str:
    return messages.encode_bytes(data)


@contextmanager
def process(allowed: Permission | None = None, settings: SshdSettings | None = None) -> Generator[Host, None, None]:
    ours, theirs = messages.pair()
    account = accounts.find("alice")
    assert account is not None

    def be_user() -> None:
        identity.become(account, keep=[theirs.fileno(), 2])
        host.run(theirs, account, allowed or permission(), login(settings or SshdSettings()))

    pid = fork(be_user)
    theirs.close()
    ours.settimeout(10)
    try:
        yield Host(ours)
    finally:
        ours.close()
        os.waitpid(pid, 0)  # it ends by itself


def read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def test_programs_and_their_ends(world: World) -> None:
    def body() -> None:
        with process() as user:
            for command, outcome in (
                (b"exit 3", {"status": 3}),
                (b"kill -SEGV $$", {"signal": "SEGV"}),
                (b"kill -WINCH $$; kill -SYS $$", {"signal": "SIG@openssh.com"}),
            ):
                session, fds = user.start(command)
                messages.close_all(fds)
                event = user.event()
                event.pop("core", None)
                assert event == {"event": "exit", "session": session, **outcome}
            _, (stdin, stdout, stderr) = user.start(b"cat >&2; printf 'a\\0\\377'")
            os.write(stdin, b"bytes \xff\0")
            os.close(stdin)
            assert (read(stdout), read(stderr)) == (b"a\0\xff", b"bytes \xff\0")

    run(world, body)


def test_bytes_of_a_command_arrive_as_they_are(world: World) -> None:
    def body() -> None:
        with process() as user:
            _, (stdin, stdout, stderr) = user.start(b"printf %s '\xff\xfe\xc3\xa4'")
            assert read(stdout) == b"\xff\xfe\xc3\xa4"
            messages.close_all([stdin, stderr])

    run(world, body)


PTY = {"term": "xterm", "columns": 81, "rows": 25, "width": 0, "height": 0, "modes": [[53, 0]]}


def test_a_terminal_is_the_users(world: World) -> None:
    def body() -> None:
        with process() as user:
            answer, (master,) = user.ask(
                "start",
                kind="exec",
                command=encoded(b"stty size; tty; test -t 2; echo $?; stty -a"),
                environment={},
                pty=PTY,
            )
            status = os.stat(answer["tty"])
            assert (status.st_uid, status.st_mode & 0o707) == (4001, 0o600)
            text = b""
            try:
                while part := os.read(master, 1000):
                    text += part
            except OSError:
                pass  # EIO: the end
            assert text.startswith(f"25 81\r\n{answer['tty']}\r\n0\r\n".encode())
            assert b" -echo " in text
            os.close(master)

    run(world, body)


def test_a_worker_gets_no_more_than_the_key_allows(world: World) -> None:
    """The worker parses what the network sends; whoever takes it over has only this to ask."""

    def body() -> None:
        nothing = permission(
            command="echo forced", pty=False, port_forwarding=False, agent_forwarding=False, x11_forwarding=False
        )
        with process(nothing) as user:
            _, (stdin, stdout, stderr) = user.start(b"id")
            assert read(stdout) == b"forced\n"
            messages.close_all([stdin, stderr])
            assert user.event()["event"] == "exit"
            assert "key" in user.refusal("start", kind="shell", environment={}, pty=PTY)
            assert "key" in user.refusal("listen", host="localhost", port=0)
            assert "key" in user.refusal("listen_unix", path="x")
            assert "key" in user.refusal("connect_unix", path="x")
            assert "key" in user.refusal("agent")
            assert "key" in user.refusal("x11")
            _, (fd,) = user.ask("connector")
            with socket.socket(fileno=fd) as connector:
                connector.settimeout(10)
                messages.send(connector, {"id": 1, "op": "connect", "host": "127.0.0.1", "port": 22})
                assert "key" in messages.receive(connector)[0]["error"]

    run(world, body)


def test_variables_that_a_worker_may_not_set(world: World) -> None:
    def body() -> None:
        sent = {"LANG": "C.UTF-8", "LD_PRELOAD": "/x", "BASH_ENV": "/x", "LC_": "x", "LC_ALL": "C\n"}
        with process() as user:
            _, (fd, stdout, stderr) = user.ask("start", kind="exec", command=encoded(b"env"), environment=sent)
            names = {line.split(b"=")[0] for line in read(stdout).splitlines()}
            assert b"LANG" in names
            assert not names & {b"LD_PRELOAD", b"BASH_ENV", b"LC_", b"LC_ALL"}
            messages.close_all([fd, stderr])

    run(world, body)


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("nonsense", {}),
        ("start", {}),
        ("start", {"kind": "exec", "environment": {}}),
        ("start", {"kind": "exec", "command": "%%", "environment": {}}),
        ("start", {"kind": "exec", "command": "AA==", "environment": {}}),  # a NUL byte
        ("start", {"kind": "shell", "environment": []}),
        ("start", {"kind": "shell", "environment": {f"LC_{n}": "x" for n in range(65)}}),
        ("start", {"kind": "shell", "environment": {}, "pty": {}}),
        ("start", {"kind": "shell", "environment": {}, "pty": 7}),
        ("start", {"kind": "shell", "environment": {}, "display": 7}),
        ("start", {"kind": "shell", "environment": {}, "display": {"number": 10, "screen": 0, "protocol": "a\nb"}}),
        ("start", {"kind": "subsystem", "command": "AAAA", "environment": {}}),
        ("signal", {}),
        ("signal", {"session": 1, "name": "KILL"}),
        ("listen", {"host": 7, "port": 0}),
        ("listen", {"host": "", "port": -1}),
        ("listen", {"host": "", "port": 65536}),
        ("listen_unix", {"path": ""}),
        ("listen_unix", {"path": "\0abstract"}),
        ("listen_unix", {"path": "x" * 200}),
        ("listen_unix", {"path": "/etc/socket"}),
        ("connect_unix", {"path": 7}),
    ],
)
def test_questions_that_are_refused(world: World, op: str, fields: dict[str, object]) -> None:
    def body() -> None:
        with process() as user:
            assert user.refusal(op, **fields)
            _, fds = user.start(b"true")  # and it goes on
            messages.close_all(fds)
            assert user.event()["status"] == 0

    run(world, body)


def test_signals(world: World) -> None:
    def body() -> None:
        with process() as user:
            session, (stdin, stdout, stderr) = user.start(
                b"trap 'echo caught; exit 1' USR1; echo ready; while :; do sleep 0.05; done"
            )
            with open(stdout, "rb") as output:
                assert output.readline() == b"ready\n"
                for name in ("SEGV", "nonsense", 9, None):
                    assert user.refusal("signal", session=session, name=name) == "this signal is not sent"
                user.ask("signal", session=session, name="USR1")
                assert output.read() == b"caught\n"
            messages.close_all([stdin, stderr])

    run(world, body)


def test_socket_files_go_with_the_process(world: World) -> None:
    def body() -> None:
        with process() as user:
            answer, fds = user.ask("agent")
            messages.close_all([*fds, *user.ask("listen_unix", path="one")[1], *user.ask("listen_unix", path="two")[1]])
            directory = Path(answer["path"]).parent
            assert directory.stat().st_mode & 0o7777 == 0o700
            assert user.refusal("listen_unix", path="one") == "Address already in use"
            user.ask("forget_unix", path="one")
            assert not Path("/home/alice/one").exists()
            user.ask("forget_unix", path="/home/alice/three")  # never made: nothing is removed
            Path("/home/alice/two").unlink()
            Path("/home/alice/two").write_text("another's now")
        assert not directory.exists()
        assert Path("/home/alice/two").read_text() == "another's now"

    run(world, body)


def test_a_display_per_question(world: World) -> None:
    def body() -> None:
        with process() as user:
            answers = [user.ask("x11") for _ in range(2)]
            assert [answer["display"] for answer, _ in answers] == [10, 11]
            for _, fds in answers:
                messages.close_all(fds)

    run(world, body)


def test_it_ends_with_the_worker_and_leaves_background_programs(world: World) -> None:
    def body() -> None:
        marker = Path("/home/alice/marker")
        with process() as user:
            _, fds = user.start(b"mkfifo fifo; (read line; touch marker) <fifo >/dev/null 2>&1 &")
            messages.close_all(fds)
            wait_until(lambda: Path("/home/alice/fifo").exists(), 10, "the fifo")
        descriptor = os.open("/home/alice/fifo", os.O_RDWR)
        os.write(descriptor, b"go on\n")
        wait_until(marker.exists, 10, "the program that was left running")
        os.close(descriptor)

    run(world, body)


def test_an_early_end_is_no_crash(world: World) -> None:
    def body() -> None:
        with process() as user:
            messages.send(user.sock, {"no": "id", "nor": "op"})
            user.sock.send(b"no JSON")

    run(world, body)
