"""fetch.py over a pair of connected datagram sockets: no network is needed."""

import asyncio
import contextlib
import socket
import time

import pytest

from pqtun.keyserver import fetch
from pqtun.keyserver.download import DownloadError
from pqtun.keyserver.fetch import fetch_ephemeral, fetch_server_key
from pqtun.keyserver.limits import MAX_DATAGRAM
from pqtun.protocol.keydatagram import ephemeral_response, static_request
from pqtun.protocol.keytree import NODES
from tests.keyserver.servers import a_server
from tests.protocol.vectors import public_key


class Clock:
    """A clock that runs faster, to wait for timeouts."""

    def __init__(self, speed):
        self.speed = speed

    def __call__(self):
        return time.monotonic() * self.speed


class Peer:
    """A server at the other end of a socket pair, on the same event loop."""

    def __init__(self, answer):
        self.sock, self._other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self._other.setblocking(False)
        self._answer = answer
        self.requests = []
        self.asked = asyncio.Event()

    def __enter__(self):
        asyncio.get_running_loop().add_reader(self._other, self._readable)
        return self

    def __exit__(self, *_):
        self.hang_up()
        self.sock.close()

    def hang_up(self):
        """From now on the kernel refuses what is sent here."""
        if self._other.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._other)
            self._other.close()

    def send(self, datagram):
        self._other.send(datagram)

    def _readable(self):
        while True:
            try:
                request = self._other.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            self.requests.append(request)
            self.asked.set()
            answer = self._answer(request)
            if answer is not None:
                try:
                    self._other.send(answer)
                except BlockingIOError:
                    return


def test_server_key(tree):
    progress = []

    async def run():
        with Peer(a_server().answer) as peer:
            key = await fetch_server_key(
                peer.sock, tree.keyhash, clock=time.monotonic, on_progress=lambda *seen: progress.append(seen)
            )
            # The socket is free again: the next fetch uses it.
            assert (await fetch_ephemeral(peer.sock, clock=time.monotonic)).x25519_pk
            return key

    assert asyncio.run(run()) == public_key()
    assert progress[-1] == (len(NODES), len(NODES))
    assert progress == sorted(set(progress))


@pytest.mark.parametrize("answer", [lambda request: None, lambda request: b"\xf1"])
def test_no_answer(tree, answer, monkeypatch):
    """Timers of the event loop run on real time, so the wait is cut short and the clock is fast."""

    async def run():
        loop = asyncio.get_running_loop()
        real = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda delay, *rest: real(delay / 100, *rest))
        with Peer(answer) as peer:
            with pytest.raises(DownloadError) as caught:
                await fetch_server_key(peer.sock, tree.keyhash, clock=Clock(100))
            assert caught.value.reason == "no_answer"
            assert loop.remove_reader(peer.sock) is False  # nothing stays behind

    asyncio.run(run())


def test_wrong_key(tree, other_tree):
    async def run():
        with Peer(a_server(other_tree).answer) as peer:
            with pytest.raises(DownloadError) as caught:
                await fetch_server_key(peer.sock, tree.keyhash, clock=time.monotonic)
            assert caught.value.reason == "wrong_key"

    asyncio.run(run())


def test_cancelling_leaves_nothing_behind(tree):
    async def run():
        with Peer(lambda request: None) as peer:
            task = asyncio.create_task(fetch_server_key(peer.sock, tree.keyhash, clock=time.monotonic))
            async with asyncio.timeout(10):
                await peer.asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.get_running_loop().remove_reader(peer.sock) is False

    asyncio.run(run())


def test_an_error_of_the_callback_reaches_the_caller(tree):
    def failing(verified, total):
        raise RuntimeError("progress bar")

    async def run():
        with Peer(a_server().answer) as peer, pytest.raises(RuntimeError, match="progress bar"):
            await fetch_server_key(peer.sock, tree.keyhash, clock=time.monotonic, on_progress=failing)

    asyncio.run(run())


def test_the_loop_is_free_during_a_download(tree):
    async def run():
        turns = 0
        with Peer(a_server().answer) as peer:
            task = asyncio.create_task(fetch_server_key(peer.sock, tree.keyhash, clock=time.monotonic))
            while not task.done():
                turns += 1
                await asyncio.sleep(0)
            await task
        return turns

    assert asyncio.run(run()) > 10


EPHEMERAL = ephemeral_response(b"s" * 1158, b"x" * 32)


def test_ephemeral():
    async def run():
        with Peer(lambda request: EPHEMERAL) as peer:
            key = await fetch_ephemeral(peer.sock, clock=time.monotonic)
            assert (key.sntrup_pk, key.x25519_pk) == (b"s" * 1158, b"x" * 32)

    asyncio.run(run())


def test_ephemeral_skips_what_is_something_else(tree):
    async def run():
        with Peer(lambda request: EPHEMERAL) as peer:
            late = a_server().answer(static_request((3, 5)))
            for stray in (b"", b"junk", late, EPHEMERAL[:-1], EPHEMERAL + b"\0"):
                peer.send(stray)
            assert (await fetch_ephemeral(peer.sock, clock=time.monotonic)).x25519_pk == b"x" * 32
            assert len(peer.requests) == 1

    asyncio.run(run())


def test_ephemeral_is_asked_again(monkeypatch):
    monkeypatch.setattr(fetch, "EPHEMERAL_RETRY", 0.01)
    count = 0

    def third_time(request):
        nonlocal count
        count += 1
        return EPHEMERAL if count == 3 else None

    async def run():
        with Peer(third_time) as peer:
            await fetch_ephemeral(peer.sock, clock=time.monotonic)
            assert len(peer.requests) == 3

    asyncio.run(run())


def test_ephemeral_waits_where_the_send_buffer_is_full(monkeypatch):
    monkeypatch.setattr(fetch, "NO_ANSWER_TIMEOUT", 2.0)
    monkeypatch.setattr(fetch, "EPHEMERAL_RETRY", 0.05)

    async def run():
        with Peer(lambda request: EPHEMERAL if request else None) as peer:
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer.sock.send(b"")
            # The peer reads only if it gets its turn.
            assert (await fetch_ephemeral(peer.sock, clock=time.monotonic)).x25519_pk == b"x" * 32

    asyncio.run(run())


def test_the_loop_is_free_while_junk_comes_instead_of_ephemeral_keys(monkeypatch):
    monkeypatch.setattr(fetch, "NO_ANSWER_TIMEOUT", 0.2)

    class Flooded(socket.socket):
        def recv(self, size):
            return b"junk"

    async def run():
        turns = 0
        with Peer(lambda request: None) as peer, Flooded(fileno=peer.sock.detach()) as sock:
            task = asyncio.create_task(fetch_ephemeral(sock, clock=time.monotonic))
            while not task.done():
                turns += 1
                await asyncio.sleep(0)
            assert isinstance(task.exception(), DownloadError)
        return turns

    assert asyncio.run(run()) > 10


def test_no_ephemeral_answer(monkeypatch):
    monkeypatch.setattr(fetch, "NO_ANSWER_TIMEOUT", 0.3)
    monkeypatch.setattr(fetch, "EPHEMERAL_RETRY", 0.02)
    monkeypatch.setattr(fetch, "EPHEMERAL_RETRY_MAX", 0.08)

    async def run():
        with Peer(lambda request: None) as peer:
            with pytest.raises(DownloadError) as caught:
                await fetch_ephemeral(peer.sock, clock=time.monotonic)
            assert caught.value.reason == "no_answer"
            assert 3 <= len(peer.requests) <= 7

    asyncio.run(run())


@pytest.mark.parametrize(
    "fetching",
    [
        lambda sock, keyhash: fetch_server_key(sock, keyhash, clock=time.monotonic),
        lambda sock, keyhash: fetch_ephemeral(sock, clock=time.monotonic),
    ],
)
def test_refused(tree, monkeypatch, fetching):
    """A socket whose other end is closed refuses, as UDP does after an ICMP port unreachable."""
    monkeypatch.setattr(fetch, "REFUSED_TIMEOUT", 0.1)
    monkeypatch.setattr(fetch, "EPHEMERAL_RETRY", 0.05)
    monkeypatch.setattr("pqtun.keyserver.download.REFUSED_TIMEOUT", 0.1)

    async def run():
        with Peer(lambda request: None) as peer:
            peer.hang_up()
            with pytest.raises(DownloadError, match="cannot be reached: ") as caught:
                await fetching(peer.sock, tree.keyhash)
            assert caught.value.reason == "network"

    asyncio.run(run())
