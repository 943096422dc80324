from __future__ import annotations

import asyncio
import os
import pty
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pqtun.shell.client.descriptors import Sink, Source

BLOB = bytes(range(256)) * 2000


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # nothing tells but the descriptor itself
        await asyncio.sleep(0)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


class Reader:
    """Takes all that a Source gives."""

    def __init__(self, fd: int) -> None:
        self.data = b""
        self.ended = asyncio.Event()
        self.source = Source(fd, self._received)
        self.source.resume()

    def _received(self, data: bytes) -> None:
        assert not self.ended.is_set()
        self.data += data
        if not data:
            self.ended.set()


def test_a_pipe_is_read_to_its_end_and_others_of_it_still_wait(pipe: tuple[int, int]) -> None:
    async def work() -> None:
        reader = Reader(os.dup(pipe[0]))
        os.write(pipe[1], b"one")
        await until(lambda: reader.data == b"one")
        assert os.get_blocking(pipe[0])
        reader.source.pause()
        os.write(pipe[1], b"two")
        os.close(pipe[1])
        for _ in range(5):
            await asyncio.sleep(0)
        assert reader.data == b"one"
        reader.source.resume()
        await reader.ended.wait()
        assert reader.data == b"onetwo"

    run(work)


def test_files_and_dev_null_and_sockets_are_read(tmp_path: Path) -> None:
    async def work() -> None:
        (tmp_path / "file").write_bytes(BLOB)
        file = Reader(os.open(tmp_path / "file", os.O_RDONLY))
        null = Reader(os.open(os.devnull, os.O_RDONLY))
        ours, theirs = socket.socketpair()
        stream = Reader(ours.detach())
        theirs.sendall(b"hello")
        theirs.close()
        for reader in (file, null, stream):
            await reader.ended.wait()
        assert (file.data, null.data, stream.data) == (BLOB, b"", b"hello")

    run(work)


def test_a_terminal_that_hangs_up_is_at_its_end() -> None:
    async def work() -> None:
        master, slave = pty.openpty()
        reader = Reader(os.dup(slave))
        os.write(master, b"line\n")
        await until(lambda: reader.data == b"line\n")
        assert os.get_blocking(slave)
        os.close(master)
        await reader.ended.wait()
        os.close(slave)

    run(work)


def test_a_slow_reader_gets_all_and_one_that_goes_is_noticed(pipe: tuple[int, int]) -> None:
    async def work() -> None:
        events: list[str] = []
        sink = Sink(os.dup(pipe[1]), lambda: events.append("drained"), lambda: events.append("broken"))
        assert os.get_blocking(pipe[1])
        sink.write(BLOB)
        assert sink.waiting
        sink.write(b"end")
        reader = Reader(os.dup(pipe[0]))
        await until(lambda: len(reader.data) == len(BLOB) + 3)
        assert reader.data == BLOB + b"end"
        await until(lambda: bool(events))
        assert events == ["drained"]
        assert not sink.waiting
        reader.source.close()
        os.close(pipe[0])
        sink.write(b"nobody")
        assert events == ["drained", "broken"]
        sink.write(b"still nobody")
        assert events == ["drained", "broken"]
        assert not sink.waiting

    run(work)


def test_a_reader_that_goes_while_something_waits(pipe: tuple[int, int]) -> None:
    async def work() -> None:
        broken = asyncio.Event()
        sink = Sink(os.dup(pipe[1]), lambda: pytest.fail("not drained"), broken.set)
        sink.write(BLOB)
        os.close(pipe[0])
        await broken.wait()
        assert not sink.waiting

    run(work)


def test_where_it_cannot_be_opened_anew_the_flag_is_taken_back(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError

    async def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refused)
            source = Source(os.dup(pipe[0]), lambda _: None)
        assert not os.get_blocking(pipe[0])
        source.close()
        assert os.get_blocking(pipe[0])

    run(work)
