"""What a server, or who stands before it, cannot make a link do; and what a link leaves behind. In virtual time."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pqtun.daemon import link as link_module
from pqtun.daemon.connector import ConnectError
from pqtun.daemon.ticket import TICKET_SECONDS
from pqtun.daemon.upkeep import HINT_INTERVAL
from tests.daemon.link_world import SERVER_HELLO, World
from tests.daemon.virtual import now, play


def test_a_server_that_ends_every_tunnel_gets_one_handshake_a_second() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        before, begin = world.sessions, now()
        while now() < begin + 20:
            if world.link.tid is not None:
                world.link.ended(world.link.tid, resumable=True)
            world.link.want()
            await asyncio.sleep(0.01)
        assert 10 <= world.sessions - before <= 20 / link_module.MIN_PAUSE + 1

    play(scenario())


def test_who_had_to_make_room_does_not_press_in_again_for_a_silent_connection() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.link.ended(world.link.tid or b"", resumable=True)
        await world.run(link_module.QUIET_RETRY_SECONDS - 1)
        assert world.sessions == 1
        await world.run(2)
        assert world.link.state == "up"
        assert ("add", 2, True) in world.log

    play(scenario())


def test_an_attempt_that_is_given_up_for_others_has_not_failed() -> None:
    """Else whoever has this host look up many names would have it speak in clear where that is allowed."""

    async def scenario() -> None:
        world = World()
        world.link.want()
        await asyncio.sleep(0)
        world.link.give_up("for others")
        assert world.link.state == "failed"
        assert world.failures == 0

    play(scenario())


def test_long_round_trips_are_waited_for_from_the_first_handshake_on() -> None:
    """Also with little patience, after a failure."""

    async def scenario() -> None:
        world = World()
        world.delay = 0.7
        await world.up()
        assert world.sessions == 1
        world.die()
        world.reachable = False
        world.link.want()
        await world.until(lambda: world.link.state == "failed")
        await asyncio.sleep(2)
        world.reachable = True
        world.link.want()
        await world.until(lambda: world.link.state != "connecting", 10)
        assert world.link.state == "up"

    play(scenario())


@pytest.mark.parametrize("pqtun", [False, True])
def test_nothing_secret_is_left_of_a_peer_that_is_forgotten(pqtun: bool) -> None:
    async def scenario() -> None:
        world = World()
        world.pqtun = pqtun
        await world.up()
        tickets = [*world.link._tickets._tickets, *filter(None, [world.link._ticket])]
        assert any(tickets[0]._secret)
        world.link.forget()
        assert not any(any(ticket._secret) for ticket in tickets)
        assert not world.tunnels
        assert not world.index
        assert world.link.rest()

    play(scenario())


def test_a_peer_introduces_itself_once() -> None:
    """One that says something else all the time has nobody begin anew, or write to the disk."""

    async def scenario() -> None:
        world = World()
        await world.up()
        tid, upkeep = world.link.tid or b"", world.link.upkeep
        assert upkeep is not None
        mtu, said = upkeep.mtu, len(world.log)
        for number in (0, 1, 68, 575, 1280, 65535):
            assert not world.link.introduced(tid, replace(SERVER_HELLO, features=number, mtu=number))
        await world.run(5)
        assert upkeep.hello == SERVER_HELLO
        assert upkeep.mtu == mtu
        assert world.log[said:] == []

    play(scenario())


def test_a_tunnel_that_cannot_be_replaced_is_kept_up_meanwhile() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        tunnel = world.tunnels[b"\1" * 32]
        tunnel.epoch = link_module.REPLACE_EPOCH
        world.error = ConnectError("wrong_key", "for certain")
        for _ in range(20):
            await world.run(30)
            assert world.link.state == "up"
            assert now() - (tunnel.last_received or 0.0) < 25
        assert 8 <= world.names().count("contact") <= 12
        world.error = None
        await world.run(65)
        assert world.link.tid == b"\2" * 32

    play(scenario())


def test_a_host_that_sleeps_while_it_waits_for_the_hello(caplog: pytest.LogCaptureFixture) -> None:
    """The engine has removed the new tunnel when the attempt goes on."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.die()
        real = world._serve
        world._serve = lambda tid, packet: world._deliver(tid, lambda: None)  # no hello
        world.link.want()
        await world.until(lambda: bool(world.link._attempt and world.link._attempt.alive))
        world.tunnels.clear()
        await asyncio.sleep(3)
        world._serve = real
        await world.until(lambda: world.link.state == "up", 10)
        assert list(world.tunnels) == [world.link.tid]

    play(scenario())
    assert not [record for record in caplog.records if record.exc_info]


def test_what_is_remembered_and_for_how_long() -> None:
    async def scenario() -> None:
        world = World()
        assert world.link.rest()
        world.error = ConnectError("wrong_key", "for certain")
        world.link.want()
        assert not world.link.rest()
        await world.until(lambda: world.link.state == "failed")
        assert not world.link.rest()
        await asyncio.sleep(link_module.REMEMBER_SECONDS)
        assert world.link.rest()
        world.error = None
        await world.up()
        assert not world.link.rest()
        world.die()
        await asyncio.sleep(TICKET_SECONDS - 60)
        assert not world.link.rest()
        await asyncio.sleep(120)
        assert world.link.rest()
        assert not world.link._tickets

    play(scenario())


def test_a_new_order_of_addresses_is_nothing_new() -> None:
    """As DNS gives them in turns: a failure that is known is told soon all the same."""

    async def scenario() -> None:
        world = World()
        world.error = ConnectError("wrong_key", "for certain")
        world.link.want()
        await world.until(lambda: world.link.state == "failed")
        assert world.link.refuses
        world.link.found(replace(world.link.peer, addresses=world.link.peer.addresses[::-1]), ("192.0.2.53", 53))
        assert world.link.refuses
        world.link.found(replace(world.link.peer, addresses=world.link.peer.addresses[1:]), ("192.0.2.53", 53))
        assert not world.link.refuses

    play(scenario())


def test_where_there_was_a_tunnel_a_refusal_is_a_restart() -> None:
    """Also if nobody has looked the name up since."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.error = ConnectError("network", "refused")
        world.die()
        world.link.want()
        await asyncio.sleep(10)
        assert world.link.state == "connecting"
        world.error = None
        await world.until(lambda: world.link.state == "up", 20)

    play(scenario())


def test_a_host_that_is_offline_learns_nothing_about_the_server() -> None:
    """Where programs may go without a tunnel after a failure, they do not for minutes after each walk out of reach."""

    async def scenario() -> None:
        world = World()
        for reason, failures in (("no_route", 0), ("network", 1)):
            world.error = ConnectError(reason, "no way")
            world.link.want()
            await world.until(lambda: world.link.state == "failed")
            assert world.failures == failures
            await asyncio.sleep(5)
        world.error = None
        await world.up()
        world.error = ConnectError("no_route", "no way")
        world.die()
        world.link.want()
        await asyncio.sleep(10)
        assert world.link.state == "connecting"

    play(scenario())


def test_hints_without_end_bring_few_questions() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        send, sent = world.send_inner, []

        def count(tid: bytes, packet: bytes, **named: Any) -> None:
            sent.append(packet)
            send(tid, packet, **named)

        world.send_inner = count
        for _ in range(600):
            world.link.suspect(path=False)
            await world.run(1)
        assert 600 / HINT_INTERVAL <= len(sent) <= 1.5 * 600 / HINT_INTERVAL
        assert world.sessions == 1

    play(scenario())
