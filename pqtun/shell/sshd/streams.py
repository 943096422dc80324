"""Bytes between descriptors and SSH channels, in the worker: each side is read only as fast as the other takes it."""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

MIN_READ: Final = 16 << 10  # bytes of one read, which grow while reads are filled
MAX_READ: Final = 256 << 10
MAX_QUEUED: Final = 1 << 20  # bytes for a descriptor, from which on the channel is not read
RESUME_QUEUED: Final = 256 << 10
_MAX_PARTS: Final = 64  # of one writev(2); the kernel takes 1024


class Congestion:
    """Whether the connection takes more at all: TCP's own send buffer is full, whatever the channels' windows say."""

    def __init__(self) -> None:
        """Not congested."""
        self._sources: set[Source] = set()
        self.congested = False

    def add(self, source: "Source") -> None:
        """Let a source know from now on."""
        self._sources.add(source)

    def discard(self, source: "Source") -> None:
        """A source has ended."""
        self._sources.discard(source)

    def begin(self) -> None:
        """As asyncio's Protocol.pause_writing."""
        self.congested = True
        for source in self._sources:
            source.update()

    def end(self) -> None:
        """As asyncio's Protocol.resume_writing."""
        self.congested = False
        for source in list(self._sources):
            source.update()


class Source:
    """Reads a descriptor for a channel, until its end."""

    def __init__(
        self, fd: int, congestion: Congestion, deliver: Callable[[bytes], None], ended: Callable[[], None]
    ) -> None:
        """The descriptor must not wait. It stays the caller's, who calls `close` before closing it.

        `deliver` raises BrokenPipeError where nobody takes anything any more, which is an end as well.
        """
        self._fd = fd
        self._congestion = congestion
        self._deliver = deliver
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._reading = False
        self._last = False
        self._size = MIN_READ
        self.open = True
        self.total = 0  # bytes that were read
        congestion.add(self)
        self.update()

    def pause(self) -> None:
        """The channel has enough for now."""
        self._paused = True
        self.update()

    def resume(self) -> None:
        """The channel takes more."""
        self._paused = False
        self.update()

    def update(self) -> None:
        """Read or do not, as both the channel and the connection want."""
        wanted = self.open and not self._paused and not self._congestion.congested
        if wanted and not self._reading:
            self._loop.add_reader(self._fd, self._readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._fd)
        self._reading = wanted
        if wanted and self._last:
            self._loop.call_soon(self._read_last)

    def finish(self) -> None:
        """What can be read now is the last, even if something still holds the other end."""
        self._last = True
        self.update()

    def _read_last(self) -> None:
        if self._reading:
            self._readable()
        if self._reading:
            self._loop.call_soon(self._read_last)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, self._size)
        except BlockingIOError:
            if not self._last:
                return
            data = b""
        except OSError:
            data = b""  # EIO: the last process has closed the pseudo-terminal; ECONNRESET: as good as the end
        if not data:
            self._end()
            return
        full = len(data) == self._size
        self._size = min(self._size * 2, MAX_READ) if full else max(self._size // 2, MIN_READ)
        self.total += len(data)
        try:
            self._deliver(data)
        except BrokenPipeError:
            self._end()

    def _end(self) -> None:
        self.close()
        self._ended()

    def close(self) -> None:
        """Read no more. May be called twice."""
        self.open = False
        self.update()
        self._congestion.discard(self)


class Reader(Protocol):
    """A channel as a sink sees it."""

    def pause_reading(self) -> None:
        """Deliver nothing for now."""

    def resume_reading(self) -> None:
        """Deliver again."""


class Sink:
    """Writes a channel's data to a descriptor, and finishes it after the last byte."""

    def __init__(self, fd: int, channel: Reader, finish: Callable[[], None]) -> None:
        """The descriptor must not wait. `finish` is called once: after `end` and the last byte, or when it broke."""
        self._fd = fd
        self._channel = channel
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._paused = False
        self._ending = False
        self._finished = False
        self.total = 0  # bytes that were written

    def write(self, data: bytes) -> None:
        """Write, now or later; nothing after the end, or where nobody reads any more."""
        if self._ending or self._finished or not data:
            return
        if not self._queue:
            done = self._write([data])
            if done == len(data) or self._finished:
                return
            self._loop.add_writer(self._fd, self._writable)
            data = data[done:]
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > MAX_QUEUED and not self._paused:
            self._paused = True
            self._channel.pause_reading()

    def end(self) -> None:
        """Nothing comes any more."""
        self._ending = True
        if not self._queue:
            self._done()

    def break_off(self) -> None:
        """Forget what is not written yet. May be called twice."""
        if self._queue:
            self._loop.remove_writer(self._fd)
            self._queue.clear()
            self._queued = 0
        self._finished = True

    def _write(self, parts: list[bytes]) -> int:
        try:
            done = os.writev(self._fd, parts)
        except BlockingIOError:
            return 0
        except OSError:
            self._done()  # nobody reads it; what still comes is dropped, as by sshd
            return 0
        self.total += done
        return done

    def _writable(self) -> None:
        done = self._write([self._queue[index] for index in range(min(len(self._queue), _MAX_PARTS))])
        self._queued -= done
        while done:
            first = self._queue.popleft()
            if len(first) > done:
                self._queue.appendleft(first[done:])
                break
            done -= len(first)
        if not self._queue and not self._finished:
            self._loop.remove_writer(self._fd)
            if self._ending:
                self._done()
        if self._paused and self._queued <= RESUME_QUEUED:
            self._paused = False
            self._channel.resume_reading()

    def _done(self) -> None:
        if self._finished:
            return
        self.break_off()
        if self._paused:
            self._paused = False
            # Not from within: this may be called from where the channel delivers.
            self._loop.call_soon(self._channel.resume_reading)
        self._finish()


class Ends:
    """What asyncssh tells the session of a channel whose other ends are descriptors: to stand before its own class."""

    def __init__(self) -> None:
        """Nothing to read or to write yet."""
        self._sources: list[Source] = []
        self._sink: Sink | None = None
        self._paused = False

    def _begin(self, sink: Sink, sources: list[Source]) -> None:
        self._sink = sink
        self._sources = sources
        if self._paused:
            self.pause_writing()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """From the client."""
        if self._sink is not None:
            self._sink.write(data)

    def eof_received(self) -> bool:
        """The client sends nothing any more, but may still get."""
        if self._sink is not None:
            self._sink.end()
        return True

    def pause_writing(self) -> None:
        """The channel has enough."""
        self._paused = True
        for source in self._sources:
            source.pause()

    def resume_writing(self) -> None:
        """The channel takes more."""
        self._paused = False
        for source in self._sources:
            source.resume()

    @property
    def _totals(self) -> tuple[int, int]:
        """Bytes that the client sent, and that it got."""
        return (self._sink.total if self._sink else 0, sum(source.total for source in self._sources))
