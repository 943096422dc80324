"""Bytes between descriptors and channels: nothing is lost, nothing is read ahead without bound."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd.streams import MAX_QUEUED, Congestion, Sink, Source


class Channel:
    """Notes whether it is to deliver, as asyncssh's would."""

    def __init__(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body, 20)

    asyncio.run(bounded())


async def drain(fd: int) -> bytes:
    """Read to the end, letting the loop run."""
    parts = []
    while True:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        if not part:
            return b"".join(parts)
        parts.append(part)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is so."""
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never")


def pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


@given(st.lists(st.binary(max_size=300) | st.integers(1, 200_000).map(lambda size: os.urandom(1) * size), max_size=12))
def test_a_sink_writes_all_in_order(parts: list[bytes]) -> None:
    async def body() -> None:
        reading, writing = pipe()
        finished = []

        def finish() -> None:
            finished.append(True)
            os.close(writing)

        sink = Sink(writing, Channel(), finish)
        for part in parts:
            sink.write(part)
        sink.end()
        assert await drain(reading) == b"".join(parts)
        os.close(reading)
        assert finished == [True]
        assert sink.total == sum(map(len, parts))

    run(body())


def test_a_sink_stops_the_channel_until_its_reader_goes_on() -> None:
    async def body() -> None:
        reading, writing = pipe()
        channel = Channel()
        sink = Sink(writing, channel, lambda: os.close(writing))
        written = 0
        while not channel.paused:
            sink.write(bytes(32 << 10))
            written += 32 << 10
        assert written <= MAX_QUEUED + (200 << 10)
        sink.end()
        assert len(await drain(reading)) == written
        assert not channel.paused
        os.close(reading)

    run(body())


def test_a_sink_that_nobody_reads_drops_and_lets_the_channel_go_on() -> None:
    async def body() -> None:
        reading, writing = pipe()
        channel = Channel()
        finished = []
        sink = Sink(writing, channel, lambda: finished.append(True))
        while not channel.paused:
            sink.write(bytes(32 << 10))
        os.close(reading)
        await until(lambda: not channel.paused)
        sink.write(b"more")
        sink.end()
        assert finished == [True]
        os.close(writing)

    run(body())


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 300_000))
def test_a_source_delivers_all_whatever_pauses_it(pauses: list[bool], size: int) -> None:
    async def body() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        congestion = Congestion()
        got: list[bytes] = []
        ended: list[bool] = []
        source = Source(ours.fileno(), congestion, got.append, lambda: ended.append(True))
        data = os.urandom(size)
        theirs.setblocking(False)
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(theirs, data))
        for pause in pauses:
            (congestion.begin if pause else source.pause)()
            before = len(b"".join(got))
            await asyncio.sleep(0)
            assert len(b"".join(got)) == before
            (congestion.end if pause else source.resume)()
            await asyncio.sleep(0)
        await sending
        theirs.close()
        await until(lambda: ended)
        assert b"".join(got) == data
        assert source.total == size
        assert ended == [True]
        assert not source.open
        ours.close()

    run(body())


def test_a_paused_source_reads_nothing_although_the_connection_goes_on() -> None:
    async def body() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        got: list[bytes] = []
        congestion = Congestion()
        source = Source(ours.fileno(), congestion, got.append, lambda: None)
        source.pause()
        congestion.begin()
        congestion.end()
        theirs.send(b"x")
        for _ in range(5):
            await asyncio.sleep(0)
        assert got == []
        source.resume()
        await until(lambda: got)
        source.close()
        source.close()
        ours.close()
        theirs.close()

    run(body())


@given(st.integers(0, 100_000), st.booleans())
def test_a_source_that_is_told_to_finish_needs_no_end_of_file(size: int, paused: bool) -> None:
    async def body() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.send(bytes(size))
        got: list[bytes] = []
        ended: list[bool] = []
        source = Source(ours.fileno(), Congestion(), got.append, lambda: ended.append(True))
        if paused:
            source.pause()
            source.finish()
            await asyncio.sleep(0)
            assert not ended
            source.resume()
        else:
            source.finish()
        await until(lambda: ended)
        assert len(b"".join(got)) == size
        assert ended == [True]
        ours.close()
        theirs.close()

    run(body())


def test_a_source_ends_where_nobody_takes_what_it_reads() -> None:
    async def body() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        ended: list[bool] = []

        def refuse(data: bytes) -> None:
            raise BrokenPipeError

        source = Source(ours.fileno(), Congestion(), refuse, lambda: ended.append(True))
        theirs.send(b"x")
        await until(lambda: ended)
        assert not source.open
        ours.close()
        theirs.close()

    run(body())
