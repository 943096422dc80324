"""The process that makes connections: names, both families, what cannot be reached, many at once."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from pqtun.daemon.settings import SshdSettings
from pqtun.shell.sshd import connector, messages
from pqtun.shell.sshd.allowed import Allowed
from tests.shell.sshd.driver import fork, permission, run
from tests.shell.sshd.world import World

pytestmark = pytest.mark.root


@contextmanager
def connecting(**options: Any) -> Generator[socket.socket, None, None]:
    ours, theirs = messages.pair()

    def be_connector() -> None:
        ours.close()
        connector.run(theirs, Allowed(permission(**options), SshdSettings()))

    pid = fork(be_connector)
    theirs.close()
    ours.settimeout(20)
    try:
        yield ours
    finally:
        ours.close()
        assert os.waitpid(pid, 0)[1] == 0  # it ends by itself


def connect(sock: socket.socket, host: object, port: object) -> tuple[str | None, socket.socket | None]:
    messages.send(sock, {"id": 1, "op": "connect", "host": host, "port": port})
    answer, fds = messages.receive(sock)
    return answer.get("error"), socket.socket(fileno=fds[0]) if fds else None


def test_names_and_both_families(world: World) -> None:
    world.etc["hosts"] = "127.0.0.1 both\n::1 both\n127.0.0.1 four\n::1 six\n192.0.2.1 last\n127.0.0.1 last\n"
    world.etc["nsswitch.conf"] = "passwd: files\nhosts: files\n"

    def body() -> None:
        subprocess.run(["ip", "route", "add", "blackhole", "192.0.2.0/24"], check=True)
        with socket.create_server(("127.0.0.1", 0)) as four, connecting() as asked:
            port = four.getsockname()[1]
            for name in ("both", "four", "127.0.0.1", "last"):
                error, sock = connect(asked, name, port)
                assert error is None
                accepted, _ = four.accept()
                accepted.sendall(b"at once")  # nothing may be read of it before the descriptor is ours
                assert sock is not None
                assert sock.getpeername() == ("127.0.0.1", port)
                assert sock.recv(100) == b"at once"
                sock.close()
                accepted.close()
            with socket.create_server(("::1", port), family=socket.AF_INET6):
                for name in ("six", "::1"):
                    error, sock = connect(asked, name, port)
                    assert error is None
                    assert sock is not None
                    assert sock.getpeername()[0] == "::1"
                    sock.close()
            assert "not known" in str(connect(asked, "nowhere.invalid", port)[0])

    run(world, body)


@pytest.mark.parametrize(
    ("host", "port"), [(None, 80), ("h", "80"), ("h", 0), ("h", 65536), ("h" * 256, 80), ("a\0b", 80), ("é" * 100, 80)]
)
def test_what_is_no_address(host: object, port: object) -> None:
    with connecting() as asked:
        error, sock = connect(asked, host, port)
        assert error
        assert sock is None


def test_the_key_is_asked_first() -> None:
    with connecting(permit_open=(("127.0.0.1", 1),)) as asked:
        assert "key" in str(connect(asked, "127.0.0.1", 2)[0])
        assert "key" not in str(connect(asked, "127.0.0.1", 1)[0])


def test_many_at_once_and_none_waits_for_another() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server, connecting() as asked:
        for number in range(100):
            port = server.getsockname()[1] if number % 2 else 1
            messages.send(asked, {"id": number, "op": "connect", "host": "127.0.0.1", "port": port})
        answered = {}
        for _ in range(100):
            answer, fds = messages.receive(asked)
            answered[answer["id"]] = len(fds)
            messages.close_all(fds)
        assert answered == {number: number % 2 for number in range(100)}
