import asyncio
import contextlib
import json
import os
import socket
import threading

import pytest

from pqtun.daemon import control
from pqtun.daemon.rundir import RunDirectory, socket_path
from pqtun.protocol.errors import UserError


@contextlib.contextmanager
def serving(run, handlers):
    """A control socket on an event loop in a thread."""
    directory = RunDirectory(run, "client")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    served = control.ControlSocket(directory.listen(os.getgid()), handlers)
    asyncio.run_coroutine_threadsafe(served.start(), loop).result(5)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(served.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
        directory.close()


def test_ask(tmp_path):
    with serving(tmp_path / "run", {"status": lambda request: {"got": request}}):
        assert control.ask(tmp_path / "run", "client", {"op": "status"}) == {"got": {"op": "status"}}
        with pytest.raises(UserError, match="understand"):
            control.ask(tmp_path / "run", "client", {"op": "other"})


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b"[]\n", b"1\n", b'"op"\n', b"\xff\n", b'{"op": []}\n', b'{"op": "x"}\n', b"[" * 60000 + b"\n"],
)
def test_bad_requests_get_an_error(tmp_path, line):
    with serving(tmp_path / "run", {"status": lambda _: {}}), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(socket_path(tmp_path / "run", "client")))
        sock.sendall(line)
        assert "error" in json.loads(sock.makefile("rb").readline())


def test_an_endless_line_is_cut_off(tmp_path):
    with serving(tmp_path / "run", {"status": lambda _: {}}), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(socket_path(tmp_path / "run", "client")))
        with contextlib.suppress(OSError):
            sock.sendall(b"x" * (4 * control.MAX_REQUEST))
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert control.ask(tmp_path / "run", "client", {"op": "status"}) == {}


def test_nobody_there(tmp_path):
    with pytest.raises(UserError, match="no pqtun server runs"):
        control.ask(tmp_path, "server", {"op": "status"})


def test_an_endless_answer_is_cut_off(tmp_path, monkeypatch):
    """Root asks; whoever has taken over the worker answers."""
    monkeypatch.setattr(control, "MAX_ANSWER", 1000)
    with (
        serving(tmp_path / "run", {"status": lambda _: {"a": "x" * 10_000}}),
        pytest.raises(UserError, match="does not answer"),
    ):
        control.ask(tmp_path / "run", "client", {"op": "status"})
