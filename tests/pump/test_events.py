"""pqtun.pump.events: order and bounds."""

import asyncio
from ipaddress import IPv4Address

from pqtun.pump.engine import Alive, Control, Cookie, Datagram, Dead, Event, Roamed, Wanted
from pqtun.pump.events import EventQueue
from pqtun.pump.limits import QUEUED_DATAGRAMS, QUEUED_PEER_EVENTS

TID = bytes(32)
DATAGRAM = Datagram(b"\1\0", ("192.0.2.1", 1))


async def heard(got: list[Event], count: int) -> None:
    """Give the event loop turns until so many events have come; each takes one turn at most."""
    for _ in range(count + 1):
        if len(got) < count:
            await asyncio.sleep(0)
    assert len(got) >= count


def test_order_across_kinds() -> None:
    async def scene() -> None:
        events: list[Event] = [Wanted(IPv4Address(1)), DATAGRAM, Alive(TID), DATAGRAM, Control(TID, b""), Dead(TID)]
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        for event in events[:3]:
            assert queue.put(event)
        queue.start(got.append)  # what came before the start is delivered too
        for event in events[3:]:
            assert queue.put(event)
        assert got == []
        await heard(got, len(events))
        assert got == events

    asyncio.run(scene())


def test_bounds_are_separate_and_room_comes_back() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        queue.start(got.append)
        for _ in range(2):
            for _ in range(QUEUED_DATAGRAMS):
                assert queue.put(DATAGRAM)
            assert not queue.put(DATAGRAM)
            peers: tuple[Event, ...] = (Control(TID, b""), Cookie(TID, b""), Roamed(TID, ("192.0.2.1", 1)))
            for n in range(QUEUED_PEER_EVENTS):
                assert queue.put(peers[n % 3])
            assert not any(queue.put(event) for event in peers)
            own: list[Event] = [Wanted(IPv4Address(1)), Alive(TID), Dead(TID)]
            assert all(queue.put(event) for event in own * 1000)
            total = QUEUED_DATAGRAMS + QUEUED_PEER_EVENTS + 3000
            await heard(got, total)
            assert len(got) == total
            got.clear()

    asyncio.run(scene())


def test_one_datagram_a_turn() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        queue.start(got.append)
        for _ in range(3):
            queue.put(DATAGRAM)
        for turn in range(1, 4):
            await asyncio.sleep(0)
            assert len(got) == turn

    asyncio.run(scene())


def test_several_datagrams_a_turn_for_a_time() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        queue, got = EventQueue(loop, datagram_seconds=0.01), list[Event]()

        def listen(event: Event) -> None:
            got.append(event)
            while len(got) == 4 and loop.time() < begin + 0.02:
                pass

        queue.start(listen)
        for _ in range(7):
            queue.put(DATAGRAM)
        begin = loop.time()
        await asyncio.sleep(0)
        assert 1 <= len(got) <= 4  # 4 unless the machine was busy
        await heard(got, 7)

    asyncio.run(scene())


def test_nothing_after_close_not_even_from_the_listener() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()

        def listen(event: Event) -> None:
            got.append(event)
            queue.close()

        queue.start(listen)
        queue.put(Alive(TID))
        queue.put(Dead(TID))
        await heard(got, 1)
        queue.put(Dead(TID))
        for _ in range(5):
            await asyncio.sleep(0)
        assert got == [Alive(TID)]

    asyncio.run(scene())
