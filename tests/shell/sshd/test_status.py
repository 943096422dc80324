import json
import selectors
import socket

import pytest

from pqtun.shell.sshd.status import MAX_ASKING, MAX_REQUEST, StatusSocket


@pytest.fixture
def asked(tmp_path):
    path = str(tmp_path / "status.sock")
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(path)
        listening.listen()
        listening.setblocking(False)
        control = StatusSocket(listening, selector, lambda: {"role": "sshd"})

        def connect():
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(10)
            sock.connect(path)
            turn(selector)
            return sock

        yield connect, selector
        control.close()


def turn(selector):
    for key, _ in selector.select(0):
        key.data()


def answer(sock, selector):
    turn(selector)
    data = sock.recv(4096)
    assert sock.recv(1) == b""
    return json.loads(data) if data else None


def test_status(asked):
    connect, selector = asked
    with connect() as sock:
        sock.sendall(b'{"op":')
        turn(selector)
        sock.sendall(b'"status"}\n')
        assert answer(sock, selector) == {"role": "sshd"}


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"nonsense", b'{"op":"stop"}', b"[" * 3000, b"\xff"])
def test_other_requests(asked, line):
    connect, selector = asked
    with connect() as sock:
        sock.sendall(line + b"\n")
        assert "unknown request" in answer(sock, selector)["error"]


def test_too_long_a_request(asked):
    connect, selector = asked
    with connect() as sock:
        sock.sendall(b"x" * MAX_REQUEST)
        turn(selector)
        sock.sendall(b"x")
        turn(selector)
        assert sock.recv(10) == b""


def test_the_oldest_makes_room(asked):
    connect, selector = asked
    silent = [connect() for _ in range(MAX_ASKING)]
    with connect() as sock:
        assert silent[0].recv(10) == b""
        sock.sendall(b'{"op":"status"}\n')
        assert answer(sock, selector) == {"role": "sshd"}
    for sock in silent:
        sock.close()
    turn(selector)
    assert len(selector.get_map()) == 1
