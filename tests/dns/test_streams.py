from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.message
import pytest

from pqtun.dns import streams
from pqtun.dns.streams import StreamProxy
from tests.dns.messages import answer
from tests.dns.rig import SECONDS, Origins, listener, until

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def query(number: int, kind: str = "A") -> bytes:
    return dns.message.make_query("example.org.", kind, id=number).to_wire()


def reply(number: int, text: str = "before") -> bytes:
    return number.to_bytes(2, "big") + answer("example.org. TXT", f'example.org. 60 IN TXT "{text}"')[2:]


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


async def read(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(SECONDS):
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


async def at_end(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(SECONDS):
        return await reader.read(1) == b""


class Bench:
    def __init__(self) -> None:
        self.proxy, self.resolver = listener(), listener()
        self.origins = Origins(self.resolver.getsockname())
        self.counters: Counter[str] = Counter()
        self.connections: asyncio.Queue[Ends] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []
        self.streams = StreamProxy([self.proxy], self.origins, self.rewrite, self.counters)  # type: ignore[arg-type]

    def rewrite(self, message: bytes, upstream: tuple[str, int]) -> bytes:
        assert upstream == self.origins.resolver
        return message.replace(b"\6before", b"\5after") if b"before" in message else message

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await self.connections.put((reader, writer))

    async def program(self) -> Ends:
        ends = await asyncio.open_connection(*self.proxy.getsockname())
        self.writers.append(ends[1])
        return ends

    async def upstream(self) -> Ends:
        async with asyncio.timeout(SECONDS):
            return await self.connections.get()


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    server = await asyncio.start_server(made.accepted, sock=made.resolver)
    made.streams.start()
    try:
        yield made
    finally:
        await made.streams.close()
        assert made.streams.outstanding == 0
        for writer in made.writers:
            writer.close()
        server.close()
        made.proxy.close()
        await asyncio.sleep(0)


def test_pipelined_messages_both_ways() -> None:
    async def run() -> None:
        async with bench() as b:
            from_proxy, to_proxy = await b.program()
            questions = framed(*(query(number) for number in range(50)))
            to_proxy.write(questions[:77])
            await to_proxy.drain()
            to_proxy.write(questions[77:])
            reader, writer = await b.upstream()
            assert [await read(reader) for _ in range(50)] == [query(number) for number in range(50)]
            for byte in framed(reply(3, "before")):  # in the smallest pieces, in another order
                writer.write(bytes((byte,)))
                await writer.drain()
            writer.write(framed(reply(2, "other"), reply(1, "before")))
            expected = [message.replace(b"\6before", b"\5after") for message in (reply(3), reply(2, "other"), reply(1))]
            assert [await read(from_proxy) for _ in range(3)] == expected
            assert b.counters == {"tcp_connections": 1, "answers_rewritten": 2, "answers_passed": 1}

    asyncio.run(run())


def test_the_largest_message() -> None:
    async def run() -> None:
        async with bench() as b:
            from_proxy, to_proxy = await b.program()
            to_proxy.write(framed(query(1)))
            reader, writer = await b.upstream()
            await read(reader)
            largest = reply(1, "other").ljust(65535, b"\0")
            writer.write(framed(largest, b"", largest))
            assert [await read(from_proxy) for _ in range(3)] == [largest, b"", largest]

    asyncio.run(run())


def test_a_program_that_has_asked_all_still_gets_its_answers() -> None:
    async def run() -> None:
        async with bench() as b:
            from_proxy, to_proxy = await b.program()
            to_proxy.write(framed(query(1)))
            to_proxy.write_eof()
            reader, writer = await b.upstream()
            assert await read(reader) == query(1)
            assert await at_end(reader)
            writer.write(framed(reply(1, "other")))
            assert await read(from_proxy) == reply(1, "other")
            writer.close()
            assert await at_end(from_proxy)
            await until(lambda: b.streams.outstanding == 0)

    asyncio.run(run())


def test_either_end_that_breaks_off_ends_the_other() -> None:
    async def run() -> None:
        async with bench() as b:
            from_proxy, to_proxy = await b.program()
            to_proxy.write(framed(query(1))[:-1])  # a message that never becomes whole is not passed on
            reader, writer = await b.upstream()
            writer.write(framed(reply(1))[:-1])
            writer.close()
            assert await at_end(from_proxy)
            assert await at_end(reader)
            from_proxy, to_proxy = await b.program()
            to_proxy.write(framed(query(2)))
            reader, writer = await b.upstream()
            await read(reader)
            to_proxy.transport.abort()
            assert await at_end(reader)
            writer.close()
            await until(lambda: b.streams.outstanding == 0)

    asyncio.run(run())


def test_an_absent_resolver_resets_the_connection() -> None:
    async def run() -> None:
        async with bench() as b:
            absent = listener()
            b.origins.resolver = absent.getsockname()
            absent.close()
            from_proxy, to_proxy = await b.program()
            to_proxy.write(framed(query(1)))
            with pytest.raises(ConnectionResetError):
                await at_end(from_proxy)
            assert b.counters["tcp_unreachable"] == 1
            b.origins.resolver = None
            from_proxy, _ = await b.program()
            assert await at_end(from_proxy)
            assert b.counters["tcp_unknown_origin"] == 1

    asyncio.run(run())


def test_zone_transfers_stay_as_they_are() -> None:
    async def run() -> None:
        async with bench() as b:
            from_proxy, to_proxy = await b.program()
            to_proxy.write(framed(query(1, "AXFR"), query(2)))
            reader, writer = await b.upstream()
            await read(reader)
            await read(reader)
            writer.write(framed(reply(1), reply(2), reply(1)))
            expected = [reply(1), reply(2).replace(b"\6before", b"\5after"), reply(1)]
            assert [await read(from_proxy) for _ in range(3)] == expected
            to_proxy.write(framed(query(1)))  # the ID is used again, for a lookup
            await read(reader)
            writer.write(framed(reply(1)))
            assert await read(from_proxy) == reply(1).replace(b"\6before", b"\5after")

    asyncio.run(run())


def test_the_oldest_connection_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 2)

    async def run() -> None:
        async with bench() as b:
            programs = []
            for number in range(3):
                programs.append(await b.program())
                await until(lambda number=number: b.counters["tcp_connections"] == number + 1)
                await b.upstream()
            assert await at_end(programs[0][0])
            assert (b.streams.outstanding, b.counters["tcp_evicted"]) == (2, 1)

    asyncio.run(run())


def test_idle_connections_end_and_busy_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.3)

    async def run() -> None:
        async with bench() as b:
            from_proxy, to_proxy = await b.program()
            reader, writer = await b.upstream()
            begin = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < begin + 0.6:
                to_proxy.write(framed(query(1)))
                assert await read(reader) == query(1)
                await asyncio.sleep(0.01)
            assert b.counters["tcp_idle"] == 0
            assert await at_end(from_proxy)
            assert await at_end(reader)
            writer.close()
            assert b.counters["tcp_idle"] == 1

    asyncio.run(run())


def test_a_failing_rewrite_is_reported_and_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))
        async with bench() as b:
            monkeypatch.setattr(b.streams, "_rewrite", lambda message, upstream: 1 / 0)
            from_proxy, to_proxy = await b.program()
            to_proxy.write(framed(query(1)))
            reader, writer = await b.upstream()
            await read(reader)
            writer.write(framed(reply(1)))
            assert await at_end(from_proxy)
            await until(lambda: b.streams.outstanding == 0)
        assert [type(failure) for failure in failures] == [ZeroDivisionError]

    asyncio.run(run())


def test_a_slow_program_gets_all_that_a_resolver_said_before_it_closed() -> None:
    async def run() -> None:
        async with bench() as b:
            b.proxy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted sockets inherit it
            slow = socket.socket()
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await asyncio.get_running_loop().sock_connect(slow, b.proxy.getsockname())
            reader, writer = await b.upstream()
            large = reply(1, "other").ljust(50000, b"\0")  # below the writer's mark: it is not waited for
            writer.write(framed(large))
            writer.close()
            assert await at_end(reader)
            from_proxy, to_proxy = await asyncio.open_connection(sock=slow)
            b.writers.append(to_proxy)
            assert await read(from_proxy) == large
            assert await at_end(from_proxy)
            await until(lambda: b.streams.outstanding == 0)

    asyncio.run(run())
