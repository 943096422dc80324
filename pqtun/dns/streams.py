"""Lookups over TCP (RFC 7766): a connection to the resolver for each of the program's, messages both ways."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from pqtun.dns.origin import OriginalDestinations, Upstream
from pqtun.dns.question import is_transfer, question_section

Rewrite = Callable[[bytes, Upstream], bytes]

MAX_STREAMS: Final = 64  # each holds two descriptors and at most a few messages of 64 KB each way
CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 60.0  # without a message in either direction
MAX_TRANSFERS: Final = 64  # IDs of zone transfers remembered for a connection
BATCH: Final = 16  # connections accepted before others have their turn

_RESET_ON_CLOSE: Final = struct.pack("@ii", 1, 0)  # struct linger


class StreamProxy:
    """Serves the given listening TCP sockets."""

    def __init__(
        self,
        socks: Sequence[socket.socket],
        origins: OriginalDestinations,
        rewrite: Rewrite,
        counters: Counter[str],
    ) -> None:
        self._socks = socks
        self._origins = origins
        self._rewrite = rewrite
        self._counters = counters
        self._streams: OrderedDict[asyncio.Task[None], None] = OrderedDict()  # oldest first

    def start(self) -> None:
        """Begin to serve, in the running loop."""
        self._loop = asyncio.get_running_loop()
        for sock in self._socks:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def close(self) -> None:
        """Stop and close all connections. The listening sockets stay open."""
        for sock in self._socks:
            self._loop.remove_reader(sock.fileno())
        streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    @property
    def outstanding(self) -> int:
        """Connections that are open."""
        return len(self._streams)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                program, _source = listener.accept()
            except BlockingIOError:
                return
            except OSError:  # the connection is over already, or there is no descriptor for it
                self._counters["tcp_accept_failed"] += 1
                return
            self._counters["tcp_connections"] += 1
            program.setblocking(False)
            resolver = self._origins.of_stream(program)
            if resolver is None:
                self._counters["tcp_unknown_origin"] += 1
                program.close()
                continue
            if len(self._streams) >= MAX_STREAMS:
                self._counters["tcp_evicted"] += 1
                self._streams.popitem(last=False)[0].cancel()
            stream = self._loop.create_task(self._serve(program, resolver))
            self._streams[stream] = None
            stream.add_done_callback(self._ended)

    def _ended(self, stream: asyncio.Task[None]) -> None:
        self._streams.pop(stream, None)
        if not stream.cancelled() and (error := stream.exception()) is not None:
            self._loop.call_exception_handler({"message": "a DNS connection failed", "exception": error})

    async def _serve(self, program: socket.socket, resolver: Upstream) -> None:
        with contextlib.ExitStack() as ends:
            ends.callback(program.close)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    from_resolver, to_resolver = await asyncio.open_connection(*resolver)
            except OSError:  # TimeoutError is one; the program shall see an error, not an end
                self._counters["tcp_unreachable"] += 1
                program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                return
            # Not close(): that waits for whoever does not read, with a descriptor that no longer counts.
            ends.callback(to_resolver.transport.abort)
            from_program, to_program = await asyncio.open_connection(sock=program)
            ends.callback(to_program.transport.abort)
            to_program.transport.set_write_buffer_limits(high=0)  # drain() waits until the kernel has everything
            stream = _Stream(from_program, to_resolver, from_resolver, to_program)
            try:
                async with asyncio.timeout(IDLE_SECONDS) as idle:
                    await stream.relay(self._rewrite_counted, resolver, idle)
            except TimeoutError:
                self._counters["tcp_idle"] += 1

    def _rewrite_counted(self, answer: bytes, upstream: Upstream) -> bytes:
        rewritten = self._rewrite(answer, upstream)
        self._counters["answers_passed" if rewritten is answer else "answers_rewritten"] += 1
        return rewritten


class _Stream:
    """One program's connection and the one to its resolver."""

    def __init__(
        self,
        from_program: asyncio.StreamReader,
        to_resolver: asyncio.StreamWriter,
        from_resolver: asyncio.StreamReader,
        to_program: asyncio.StreamWriter,
    ) -> None:
        self._from_program = from_program
        self._to_resolver = to_resolver
        self._from_resolver = from_resolver
        self._to_program = to_program
        self._transfers: set[bytes] = set()

    async def relay(self, rewrite: Rewrite, upstream: Upstream, idle: asyncio.Timeout) -> None:
        """Carry messages until the resolver has no more to say, or either side breaks off."""
        questions = asyncio.ensure_future(self._carry_questions(idle))
        try:
            await self._carry_answers(rewrite, upstream, idle)
        finally:
            questions.cancel()
            await asyncio.gather(questions, return_exceptions=True)

    async def _carry_questions(self, idle: asyncio.Timeout) -> None:
        try:
            while (message := await _read(self._from_program)) is not None:
                _postpone(idle)
                self._note_transfer(message)
                await _write(self._to_resolver, message)
            self._to_resolver.write_eof()  # the program may still wait for answers
        except OSError:
            self._to_resolver.transport.abort()

    async def _carry_answers(self, rewrite: Rewrite, upstream: Upstream, idle: asyncio.Timeout) -> None:
        try:
            while (message := await _read(self._from_resolver)) is not None:
                _postpone(idle)
                if message[:2] not in self._transfers:
                    message = rewrite(message, upstream)
                await _write(self._to_program, message)
        except TimeoutError:
            raise
        except OSError:
            pass  # the connections are closed next

    def _note_transfer(self, query: bytes) -> None:
        """Remember zone transfers: a secondary server on this host has to get the zone as it is.

        Only the first of a transfer's messages repeats the question (RFC 5936 section 2.2.1).
        """
        question = question_section(query)
        if question is not None and is_transfer(question) and len(self._transfers) < MAX_TRANSFERS:
            self._transfers.add(query[:2])
        else:
            self._transfers.discard(query[:2])


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    """Read a message with its 2-byte length; None at the end, also within a message."""
    try:
        size = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        return None


async def _write(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(len(message).to_bytes(2, "big") + message)
    await writer.drain()


def _postpone(idle: asyncio.Timeout) -> None:
    idle.reschedule(asyncio.get_running_loop().time() + IDLE_SECONDS)
