"""The whois socket: everybody may ask, nobody can take it from others."""

import asyncio
import json
import os
import socket
import stat
import threading
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import whois
from pqtun.daemon.control import Bounds, ControlSocket
from pqtun.daemon.peers import PeerBook
from pqtun.daemon.rundir import RunDirectory
from pqtun.protocol.base32 import encode
from pqtun.protocol.errors import UserError
from pqtun.protocol.names import Announcement
from pqtun.protocol.private6 import address6, prefix
from tests.net.process import wait_until

KEYHASH = b"k" * 32
NETWORK6 = prefix(IPv4Network("10.43.0.0/16"))


@pytest.fixture
def book(tmp_path):
    made = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/16"), lambda: 1e6)
    made.met(Announcement(KEYHASH), "pq1k.example.net", [IPv4Address("192.0.2.1")], None, lambda _: False)
    yield made
    made.close()


@contextmanager
def on_a_loop(served):
    """It serves on an event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(served.start(), loop).result(5)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(served.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@pytest.fixture
def run(tmp_path, book):
    """The run directory of a client that answers, at most three at once and two of one user."""
    directory = RunDirectory(tmp_path / "run", "client")
    handlers = {whois.OP: lambda request: whois.answer(book, NETWORK6, request)}
    served = ControlSocket(directory.listen_to_all(whois.ROLE), handlers, Bounds(3, 2, whois.MAX_REQUEST))
    with on_a_loop(served):
        yield tmp_path / "run"
    directory.close()
    assert not (tmp_path / "run").exists()


def test_a_peer_by_both_of_its_addresses(run):
    known = whois.Known("pq1k.example.net", encode(KEYHASH))
    assert whois.ask(run, "10.43.0.2") == known
    assert whois.ask(run, str(address6(NETWORK6, IPv4Address("10.43.0.2")))) == known


@pytest.mark.parametrize("address", ["10.43.0.3", "10.43.0.1", "192.0.2.1", "::1", str(NETWORK6[1]), "x", ""])
def test_others_are_unknown(run, address):
    with pytest.raises(whois.UnknownAddressError):
        whois.ask(run, address)


def test_without_private_ipv6(book):
    inner6 = str(address6(NETWORK6, IPv4Address("10.43.0.2")))
    assert "error" in whois.answer(book, None, {"address": inner6})
    assert "name" in whois.answer(book, NETWORK6, {"address": inner6})


@given(st.dictionaries(st.sampled_from(["address", "op"]), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_any_request_is_answered(request_):
    class Nobody:
        def by_inner(self, inner):
            return None

    assert whois.answer(Nobody(), NETWORK6, request_) == {"error": "no peer has this address"}


def test_everybody_may_connect(run):
    mode = (run / "whois.sock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o666


def test_no_client_runs(tmp_path):
    with pytest.raises(whois.NotRunningError):
        whois.ask(tmp_path, "10.43.0.2")


def test_only_this_can_be_asked(run):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(run / "whois.sock"))
        for asked in ({"op": "status"}, {"op": "real_address", "private_address": "10.43.0.2"}):
            sock.sendall(json.dumps(asked).encode() + b"\n")
            assert "error" in json.loads(sock.recv(4096))


def test_a_user_cannot_take_all_connections(run):
    held = []
    try:
        for _ in range(2):
            sock = socket.socket(socket.AF_UNIX)
            held.append(sock)
            sock.connect(str(run / "whois.sock"))
            sock.settimeout(5)
            sock.sendall(b'{"op": "whois", "address": "10.43.0.2"}\n')
            assert "name" in json.loads(sock.recv(4096))  # it is served, and so counted
        with pytest.raises(UserError, match=r"too busy|does not answer"):
            whois.ask(run, "10.43.0.2")
    finally:
        for sock in held:
            sock.close()

    def answered():
        try:
            return whois.ask(run, "10.43.0.2")
        except UserError:
            return None

    wait_until(answered, 5, "room for another connection")


def test_who_has_many_ids_makes_room_for_others(tmp_path, book):
    directory = RunDirectory(tmp_path / "run", "client")
    handlers = {whois.OP: lambda request: whois.answer(book, NETWORK6, request)}
    served = ControlSocket(directory.listen_to_all(whois.ROLE), handlers, Bounds(2, 100, whois.MAX_REQUEST))
    with on_a_loop(served), socket.socket(socket.AF_UNIX) as oldest, socket.socket(socket.AF_UNIX) as other:
        for sock in (oldest, other):
            sock.connect(str(tmp_path / "run" / "whois.sock"))
            sock.settimeout(5)
            sock.sendall(b'{"op": "whois", "address": "10.43.0.2"}\n')
            assert "name" in json.loads(sock.recv(4096))
        assert whois.ask(tmp_path / "run", "10.43.0.2").name == "pq1k.example.net"
        assert oldest.recv(4096) == b""
        other.sendall(b'{"op": "whois", "address": "10.43.0.2"}\n')
        assert other.recv(4096)
    directory.close()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_directory_that_others_may_write_to_is_not_believed(run, mode):
    run.chmod(mode)
    with pytest.raises(UserError, match="others may write"):
        whois.ask(run, "10.43.0.2")
    run.chmod(0o755)


@pytest.mark.root
def test_a_directory_of_another_user_is_not_believed(run):
    os.chown(run, 65534, 65534)
    with pytest.raises(UserError, match="others may write"):
        whois.ask(run, "10.43.0.2")
    os.chown(run, 0, 0)


@pytest.mark.root
def test_another_user_is_still_served(run, tmp_path):
    os.chmod(tmp_path, 0o755)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for sock in (one, two):
            sock.connect(str(run / "whois.sock"))
            sock.settimeout(5)
            sock.sendall(b'{"op": "whois", "address": "10.43.0.2"}\n')
            assert sock.recv(4096)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(run)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.write(writing, whois.ask(run.relative_to(run), "10.43.0.2").name.encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(pid, 0)
        assert os.read(reading, 100) == b"pq1k.example.net"
        os.close(reading)


def test_a_long_line_is_cut_off(run):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(run / "whois.sock"))
        try:
            sock.sendall(b"x" * (64 << 10))
            assert sock.recv(1) == b""
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert whois.ask(run, "10.43.0.2")


@pytest.mark.parametrize(
    "answer", [b"", b"null\n", b"[]\n", b'{"name": 1}\n', b'{"name": "a\\u001b", "keyhash": "b"}\n', b"x" * 5000]
)
def test_a_strange_answer_is_none(tmp_path, answer):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "whois.sock"))
        server.listen()
        pid = os.fork()
        if pid == 0:
            try:
                sock, _ = server.accept()
                sock.recv(1000)
                sock.sendall(answer)
                sock.close()
            finally:
                os._exit(0)
        try:
            with pytest.raises(UserError, match="pqtun client at"):
                whois.ask(tmp_path, "10.43.0.2")
        finally:
            os.waitpid(pid, 0)
