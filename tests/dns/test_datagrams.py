from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.message
import pytest

from pqtun.dns import datagrams
from pqtun.dns.datagrams import ANSWER_SECONDS, DatagramProxy
from tests.dns.messages import answer, rcode
from tests.dns.rig import Origins, receive, udp, until


def query(number: int) -> bytes:
    return dns.message.make_query("www.example.org.", "A", id=number).to_wire()


def reply(number: int, address: str = "203.0.113.9") -> bytes:
    return number.to_bytes(2, "big") + answer("www.example.org. A", f"www.example.org. 60 IN A {address}")[2:]


class Bench:
    def __init__(self) -> None:
        self.program, self.proxy, self.resolver = udp(), udp(), udp()
        self.origins = Origins(self.resolver.getsockname())
        self.counters: Counter[str] = Counter()
        self.now = 0.0
        self.seen: list[tuple[bytes, tuple[str, int]]] = []
        self.datagrams = DatagramProxy(
            [self.proxy],
            self.origins,
            self.rewrite,
            lambda: self.now,
            self.counters,  # type: ignore[arg-type]
        )

    def rewrite(self, message: bytes, upstream: tuple[str, int]) -> bytes:
        self.seen.append((message, upstream))
        return message.replace(b"\xcb\x00\x71\x01", b"\x0a\x2b\x00\x02")

    def ask(self, message: bytes) -> None:
        self.program.sendto(message, self.proxy.getsockname())

    async def asked(self) -> tuple[bytes, tuple[str, int]]:
        return await receive(self.resolver)

    async def answered(self) -> bytes:
        return (await receive(self.program))[0]


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    made.datagrams.start()
    try:
        yield made
    finally:
        made.datagrams.close()
        assert made.datagrams.outstanding == 0
        for sock in (made.program, made.proxy, made.resolver):
            sock.close()


def test_answers_pass_and_are_rewritten() -> None:
    async def run() -> None:
        async with bench() as b:
            for number, address in enumerate(("203.0.113.9", "203.0.113.1")):
                b.ask(query(number))
                message, source = await b.asked()
                assert message == query(number)
                b.resolver.sendto(reply(number, address), source)
                expected = reply(number, {"203.0.113.1": "10.43.0.2"}.get(address, address))
                assert await b.answered() == expected
            assert b.seen[0] == (reply(0), b.resolver.getsockname())
            assert b.counters == {"udp_queries": 2, "answers_passed": 1, "answers_rewritten": 1}
            assert b.datagrams.outstanding == 0

    asyncio.run(run())


def test_each_query_has_a_port_of_its_own_and_gets_its_own_answer() -> None:
    async def run() -> None:
        async with bench() as b:
            sources = {}
            for number in range(20):
                b.ask(query(number))
            for _ in range(20):
                message, source = await b.asked()
                sources[int.from_bytes(message[:2], "big")] = source
            assert len(set(sources.values())) == 20
            for number in reversed(range(20)):
                b.resolver.sendto(reply(number), sources[number])
            assert {await b.answered() for _ in range(20)} == {reply(number) for number in range(20)}

    asyncio.run(run())


def test_wrong_answers_are_not_relayed_and_do_not_end_the_query() -> None:
    async def run() -> None:
        async with bench() as b:
            b.ask(query(7))
            _, source = await b.asked()
            for wrong in (reply(8), query(7), reply(7).replace(b"www", b"xxx", 1), b"", reply(7)[:11]):
                b.resolver.sendto(wrong, source)
            with udp() as stranger:
                stranger.sendto(reply(7, "192.0.2.66"), source)
            b.resolver.sendto(reply(7), source)
            assert await b.answered() == reply(7)
            assert b.counters["udp_wrong_answer"] == 5

    asyncio.run(run())


def test_an_absent_resolver_is_told_at_once() -> None:
    async def run() -> None:
        async with bench() as b:
            b.resolver.close()
            b.ask(query(7))
            failed = await b.answered()
            assert (failed[:2], rcode(failed)) == (query(7)[:2], "SERVFAIL")
            assert b.counters["udp_unreachable"] == 1
            b.origins.resolver = ("255.255.255.255", 53)  # connect() itself fails
            b.ask(query(8))
            assert rcode(await b.answered()) == "SERVFAIL"

    asyncio.run(run())


def test_what_cannot_be_forwarded_is_counted() -> None:
    async def run() -> None:
        async with bench() as b:
            for bad in (b"", query(1)[:11], query(1)[:20], b"\xff" * 40):
                b.ask(bad)
            b.origins.resolver = None
            b.ask(query(2))
            await until(lambda: b.counters["udp_queries"] == 5)
            assert b.counters == {"udp_queries": 5, "udp_bad_query": 4, "udp_unknown_origin": 1}

    asyncio.run(run())


def test_the_oldest_query_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MAX_QUERIES", 3)

    async def run() -> None:
        async with bench() as b:
            sources = []
            for number in range(5):
                b.ask(query(number))
                sources.append((await b.asked())[1])
            assert (b.datagrams.outstanding, b.counters["udp_evicted"]) == (3, 2)
            for number, source in enumerate(sources):
                b.resolver.sendto(reply(number), source)
            assert [await b.answered() for _ in range(3)] == [reply(number) for number in (2, 3, 4)]

    asyncio.run(run())


def test_unanswered_queries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "ANSWER_SECONDS", 0.05)

    async def run() -> None:
        async with bench() as b:
            b.ask(query(1))
            await b.asked()
            b.now = 0.04
            b.ask(query(2))
            await b.asked()
            assert b.datagrams.outstanding == 2
            b.now = 0.06
            await until(lambda: b.datagrams.outstanding == 1)
            b.now = 1.0
            await until(lambda: b.datagrams.outstanding == 0)
            assert b.counters["udp_timeout"] == 2
            b.ask(query(3))  # the timer starts again
            await b.asked()
            b.now = 2.0
            await until(lambda: b.datagrams.outstanding == 0)

    assert ANSWER_SECONDS == 10
    asyncio.run(run())


def test_a_failing_rewrite_ends_only_its_query(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))
        async with bench() as b:
            for number, address in ((1, "203.0.113.1"), (2, "203.0.113.9")):
                b.ask(query(number))
                _, source = await b.asked()
                monkeypatch.setattr(
                    b.datagrams, "_rewrite", b.rewrite if number == 2 else (lambda message, upstream: 1 / 0)
                )
                b.resolver.sendto(reply(number, address), source)
                await until(lambda: b.datagrams.outstanding == 0)
            assert await b.answered() == reply(2)
        assert [type(failure) for failure in failures] == [ZeroDivisionError]

    asyncio.run(run())


def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with bench() as b:
            real = socket.socket

            def none_left(*arguments: int) -> socket.socket:
                raise OSError(24, "Too many open files")

            monkeypatch.setattr(datagrams.socket, "socket", none_left)
            b.ask(query(1))
            await until(lambda: b.counters["udp_no_socket"] == 1)
            monkeypatch.setattr(datagrams.socket, "socket", real)
            b.ask(query(2))
            await b.asked()

    asyncio.run(run())
