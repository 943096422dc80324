"""pqtun.pump.events: order and bounds."""

import asyncio
from ipaddress import IPv4Address

import pytest

from pqtun.pump import events
from pqtun.pump.engine import Alive, Control, Cookie, Datagram, Dead, Event, Roamed, Wanted
from pqtun.pump.events import EventQueue
from pqtun.pump.limits import EVENT_BATCH, QUEUED_DATAGRAMS, QUEUED_EVENTS_PER_TUNNEL, QUEUED_PEER_EVENTS

TID = bytes(32)
DATAGRAM = Datagram(b"\1\0", ("192.0.2.1", 1))


async def heard(got: list[Event], count: int) -> None:
    """Give the event loop turns until so many events have come; each takes one turn at most."""
    for _ in range(count + 1):
        if len(got) < count:
            await asyncio.sleep(0)
    assert len(got) >= count


def tid(number: int) -> bytes:
    return number.to_bytes(32, "big")


def datagram(number: int, *, expected: bool = False) -> Datagram:
    return Datagram(b"%d" % number, ("192.0.2.1", 1), expected)


def test_events_of_tunnels_keep_their_order_and_go_before_datagrams() -> None:
    async def scene() -> None:
        put: list[Event] = [Wanted(IPv4Address(1)), DATAGRAM, Alive(TID), DATAGRAM, Control(TID, b""), Dead(TID)]
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        for event in put[:3]:
            assert queue.put(event)
        queue.start(got.append)  # what came before the start is delivered too
        for event in put[3:]:
            assert queue.put(event)
        assert got == []
        await heard(got, len(put))
        assert got == [put[n] for n in (0, 2, 4, 5, 1, 3)]

    asyncio.run(scene())


def test_expected_datagrams_go_before_others() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        for number in range(6):
            queue.put(datagram(number, expected=number in (2, 5)))
        queue.start(got.append)
        await heard(got, 6)
        assert got == [datagram(n, expected=n in (2, 5)) for n in (2, 5, 0, 1, 3, 4)]

    asyncio.run(scene())


def test_bounds_are_separate_and_room_comes_back() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        queue.start(got.append)
        for _ in range(2):
            for number in range(QUEUED_DATAGRAMS):
                assert queue.put(datagram(number, expected=True))
            assert not queue.put(datagram(0, expected=True))
            for number in range(QUEUED_PEER_EVENTS):
                peer = tid(number if number >= QUEUED_PEER_EVENTS // 2 else number // QUEUED_EVENTS_PER_TUNNEL)
                peers: tuple[Event, ...] = (Control(peer, b""), Cookie(peer, b""))
                assert queue.put(peers[number % 2])
            assert not any(queue.put(event) for event in peers)
            assert not queue.put(Control(tid(2000), b""))
            assert queue.put(Roamed(peer, ("192.0.2.1", 1)))
            own: list[Event] = [Wanted(IPv4Address(1)), Alive(TID), Dead(TID)]
            assert all(queue.put(event) for event in own * 1000)
            total = QUEUED_DATAGRAMS + QUEUED_PEER_EVENTS + 1 + 3000
            await heard(got, total)
            assert len(got) == total
            got.clear()

    asyncio.run(scene())


def test_one_peer_does_not_take_the_room_of_all() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        queue.start(got.append)
        for _ in range(2):
            kept = sum(queue.put(Control(tid(1), b"")) for _ in range(QUEUED_PEER_EVENTS))
            assert kept == QUEUED_EVENTS_PER_TUNNEL
            assert queue.put(Control(tid(2), b""))
            await heard(got, kept + 1)
            got.clear()

    asyncio.run(scene())


def test_some_peers_together_do_not_keep_another_from_a_word() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        queue.start(got.append)
        some = [tid(number) for number in range(400)]
        kept = sum(queue.put(Control(peer, b"")) for peer in some for _ in range(QUEUED_EVENTS_PER_TUNNEL))
        assert kept == QUEUED_PEER_EVENTS // 2 + len(some) - QUEUED_PEER_EVENTS // 2 // QUEUED_EVENTS_PER_TUNNEL
        assert queue.put(Control(tid(1000), b""))
        assert not queue.put(Control(tid(1000), b""))
        await heard(got, kept + 1)
        assert queue.put(Control(tid(1000), b""))

    asyncio.run(scene())


def test_of_a_peer_that_moves_about_the_last_place_counts() -> None:
    """However often it moves, and whatever else it sends, that one is told."""

    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        queue.start(got.append)
        while queue.put(Control(TID, b"")):
            pass
        for port in range(1, 2000):
            assert queue.put(Roamed(TID, ("192.0.2.1", port)))
            assert queue.put(Roamed(tid(2), ("192.0.2.2", port)))
        await heard(got, QUEUED_EVENTS_PER_TUNNEL + 2)
        assert got[-2:] == [Roamed(TID, ("192.0.2.1", 1999)), Roamed(tid(2), ("192.0.2.2", 1999))]
        assert len(got) == QUEUED_EVENTS_PER_TUNNEL + 2
        assert queue.put(Roamed(TID, ("192.0.2.1", 7)))
        await heard(got, QUEUED_EVENTS_PER_TUNNEL + 3)
        assert got[-1] == Roamed(TID, ("192.0.2.1", 7))

    asyncio.run(scene())


def test_when_it_is_full_any_of_the_unexpected_datagrams_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []

    def choose(number: int) -> int:
        chosen.append(number)
        return number // 2

    monkeypatch.setattr(events.random, "randrange", choose)

    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        for number in range(QUEUED_DATAGRAMS):
            assert queue.put(datagram(number, expected=number >= 10))
        for number in range(QUEUED_DATAGRAMS, QUEUED_DATAGRAMS + 3):
            assert not queue.put(datagram(number, expected=number > QUEUED_DATAGRAMS))
        queue.start(got.append)
        await heard(got, QUEUED_DATAGRAMS)
        for _ in range(3):
            await asyncio.sleep(0)
        assert chosen == [10, 10, 9]
        numbers = [int(event.data) for event in got if isinstance(event, Datagram)]
        expected = [*range(10, QUEUED_DATAGRAMS), QUEUED_DATAGRAMS + 1, QUEUED_DATAGRAMS + 2]
        assert numbers == [*expected, 0, 1, 2, 3, 7, 8, 9, QUEUED_DATAGRAMS]

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


def test_events_of_peers_keep_no_datagram_waiting() -> None:
    async def scene() -> None:
        queue, got = EventQueue(asyncio.get_running_loop()), list[Event]()
        queue.start(got.append)
        peers: list[Event] = [Control(tid(number), b"") for number in range(EVENT_BATCH)]
        peers += [Roamed(tid(number), ("192.0.2.1", 1)) for number in range(EVENT_BATCH + 7)]
        for event in (*peers, DATAGRAM, DATAGRAM, DATAGRAM):
            assert queue.put(event)
        for turn, number in enumerate((EVENT_BATCH, EVENT_BATCH, 7)):
            await asyncio.sleep(0)
            assert got == [*peers[turn * EVENT_BATCH :][:number], DATAGRAM]
            got.clear()

    asyncio.run(scene())


def test_events_of_peers_have_as_long_as_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        queue, got = EventQueue(loop, datagram_seconds=0.01), list[Event]()

        def listen(event: Event) -> None:
            nonlocal now
            got.append(event)
            now += 0.004 if len(got) < 20 else 1.0

        monkeypatch.setattr(loop, "time", lambda: now)
        queue.start(listen)
        peers: list[Event] = [Control(tid(1), b"%d" % number) for number in range(12)]
        datagrams: list[Event] = [datagram(number) for number in range(12)]
        for event in (*datagrams, *peers):
            assert queue.put(event)
        for start in (0, 3, 6):
            await asyncio.sleep(0)
            assert got[-6:] == [*peers[start : start + 3], *datagrams[start : start + 3]]
        got += [DATAGRAM, DATAGRAM]  # each takes longer from now on: one in a turn
        for number in (9, 10, 11):
            await asyncio.sleep(0)
            assert got[-2:] == [peers[number], datagrams[number]]

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
