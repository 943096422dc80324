"""One peer's link in virtual time."""

import asyncio

import pytest

from pqtun.daemon import link as link_module
from pqtun.daemon import liveness
from pqtun.daemon.connector import ConnectError
from pqtun.protocol import control
from tests.daemon.link_world import FIRST, SECOND, SERVER_HELLO, World, peer
from tests.daemon.virtual import now, play


def test_connects_once_however_often_wanted() -> None:
    async def scenario() -> None:
        world = World()
        assert world.link.state == "idle"
        world.link.want()
        world.link.want()
        assert world.link.state == "connecting"
        await world.until(lambda: world.link.state == "up")
        world.link.want()
        assert [name for name in world.names() if name != "mtu"] == ["hold", "contact", "handshake", "add"]
        assert world.log[-1] != ("add", 1, True)
        assert world.index == {b"\1" * 32: world.link}

    play(scenario())


def test_a_lost_handshake_is_followed_by_a_fresh_one_after_a_second() -> None:
    async def scenario() -> None:
        world = World()
        world.link.want()
        await world.until(lambda: "handshake" in world.names())
        world.reachable = False
        sent = now()
        await asyncio.sleep(0.5)
        world.reachable = True
        world.tunnels.clear()  # what was sent is lost
        await world.until(lambda: world.names().count("handshake") == 2)
        assert 1.0 <= now() - sent <= 2.5
        await world.until(lambda: world.link.state == "up")
        assert list(world.tunnels) == [world.link.tid]
        assert world.index == {world.link.tid: world.link}

    play(scenario())


def test_silence_for_90_seconds_then_programs_are_told() -> None:
    async def scenario() -> None:
        world = World(peer(good=FIRST))
        world.reachable = False
        world.link.want()
        await asyncio.sleep(85)
        assert world.link.state == "connecting"
        assert ("drop_held", True) not in world.log
        await world.until(lambda: world.link.state == "failed", 30)
        assert world.log[-1] == ("drop_held", True)
        assert world.link.error is not None
        assert world.failures == 1
        assert not world.tunnels
        await asyncio.sleep(link_module.MIN_PAUSE)
        world.reachable = True
        world.link.want()  # the next packet: quietly, once more
        assert await world.until(lambda: world.link.state == "up") < 1
        assert world.link.error is None

    play(scenario())


def test_a_known_failure_is_told_sooner() -> None:
    """While the server stays out of reach, each try fails within seconds; never more than one a second."""

    async def scenario() -> None:
        world = World(peer(good=FIRST))
        world.reachable = False
        world.link.want()
        await world.until(lambda: world.link.state == "failed")
        world.link.want()
        assert world.link.state == "failed"
        assert world.log[-1] == ("drop_held", True)
        await asyncio.sleep(link_module.MIN_PAUSE)
        world.link.want()
        assert world.link.state == "connecting"
        assert await world.until(lambda: world.link.state == "failed") < 15

    play(scenario())


@pytest.mark.parametrize(
    ("proven", "reason", "repeats"),
    [
        (False, "wrong_key", False),
        (True, "wrong_key", False),
        (False, "network", False),
        (False, "no_answer", False),
        (True, "no_answer", True),
        (False, "handshake", True),
        (True, "network", True),
    ],
)
def test_what_a_server_says_for_certain_is_not_waited_for(proven: bool, reason: str, repeats: bool) -> None:
    async def scenario() -> None:
        world = World(peer(good=FIRST) if proven else None)
        world.error = ConnectError(reason, "for certain")
        world.link.want()
        await asyncio.sleep(5)
        assert world.link.state == ("connecting" if repeats else "failed")

    play(scenario())


def test_a_packet_hurries_the_next_attempt() -> None:
    async def scenario() -> None:
        world = World(peer(good=FIRST))
        world.error = ConnectError("no_answer", "silent")
        world.link.want()
        await asyncio.sleep(50)
        assert world.log[-1] == ("hold", True)  # the next packet is told of
        tried = world.names().count("contact")
        assert tried < 12
        world.error = None
        world.link.want()
        assert await world.until(lambda: world.link.state == "up") <= 1.2

    play(scenario())


def test_the_address_that_did_not_answer_comes_last() -> None:
    async def scenario() -> None:
        world = World()
        real = world._serve
        world._serve = lambda tid, packet: None
        world.link.want()
        await asyncio.sleep(4.5)
        world._serve = real
        await world.until(lambda: world.link.state == "up")
        assert [entry[1] for entry in world.log if entry[0] == "contact"][:3] == [(), (FIRST,), (FIRST, SECOND)]

    play(scenario())


def test_an_idle_tunnel_is_kept_while_a_program_is_connected_and_no_longer() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        await world.run(600)
        assert world.link.state == "up"
        assert world.sessions == 1
        world.used = world.connected = False
        tunnel = world.tunnels[world.link.tid or b""]
        await world.run(10)
        sent = tunnel.last_sent
        await world.run(100)
        assert tunnel.last_sent == sent

    play(scenario())


def test_a_cut_of_five_minutes_is_outlived() -> None:
    """The new tunnel takes over the old one's address, although that was dead long ago."""

    async def scenario() -> None:
        world = World()
        await world.up()
        place = world.inner_of[world.link.tid or b""]
        world.reachable = False
        await world.run(120, packets=15)
        if world.link.tid is not None:
            world.die()
        await world.run(180)
        world.reachable = True
        begin = now()
        world.program_sends()
        await world.until(lambda: world.link.state == "up", 12)
        assert now() - begin < 12
        assert world.inner_of[world.link.tid or b""] == place
        assert list(world.tunnels) == [world.link.tid]

    play(scenario())


def test_silence_on_traffic_brings_a_new_tunnel_within_ten_seconds() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        old = world.link.tid
        world._serve = lambda tid, packet: World._serve(world, tid, packet) if tid != old else None
        deliver = world._deliver
        world._deliver = lambda tid, action: None if tid == old else deliver(tid, action)
        begin = now()
        await world.run(12, packets=0.5)
        assert world.link.tid not in (old, None)
        assert world.link.state == "up"
        assert world.route == world.link.tid
        moved = world.log.index(("move", 2))
        assert world.log.index(("hold", False), 5) < moved < world.log.index(("remove", 1))
        assert begin < world.tunnels[world.link.tid or b""].created < begin + 10

    play(scenario())


def test_nothing_of_a_program_goes_before_the_server_has_moved_the_tunnel() -> None:
    """It would answer from another address, or end the connection."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.die()
        lost = [2]  # hellos

        real = world._serve

        def serve(tid: bytes, packet: bytes) -> None:
            if control.is_control(packet) and lost[0]:
                lost[0] -= 1
            else:
                real(tid, packet)

        world._serve = serve
        world.link.want()
        await world.until(lambda: ("add", 2, True) in world.log)
        await asyncio.sleep(0.1)
        assert world.route is None
        assert world.link.state == "connecting"
        await world.until(lambda: world.link.state == "up")
        assert world.inner_of[b"\2" * 32] == 1
        assert world.route == b"\2" * 32

    play(scenario())


def test_a_server_that_has_forgotten_everything() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.inner_of.clear()
        world.die()
        world.link.want()
        await world.until(lambda: world.link.state == "up")
        assert world.route == world.link.tid

    play(scenario())


def test_an_attempt_that_only_the_server_knows_of_is_continued_too() -> None:
    """Its answers are lost: the server has moved the address to a tunnel that the client has given up."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.die()
        deliver = world._deliver
        world._deliver = lambda tid, action: None
        world.link.want()
        await world.until(lambda: ("remove", 2) in world.log)
        assert world.inner_of == {b"\2" * 32: 1}
        world._deliver = deliver
        await world.until(lambda: world.link.state == "up")
        assert world.inner_of == {world.link.tid: 1}
        assert len(world.tunnels) == 1

    play(scenario())


def test_a_tunnel_that_comes_back_before_the_next_attempt_is_kept() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.error = ConnectError("no_answer", "silent")
        world.reachable = False
        await world.run(12, packets=1)
        assert world.link.state == "connecting"
        world.reachable = True
        world.program_sends()
        await world.run(2)
        assert world.link.state == "up"
        assert world.link.tid == b"\1" * 32
        assert ("move", 1) in world.log

    play(scenario())


def test_connections_to_pqconnect_stay_in_the_old_tunnel_while_it_works() -> None:
    async def scenario() -> None:
        world = World()
        world.pqtun = False
        await world.up()
        world.reachable = False
        await world.run(liveness.PATIENT_LOST_SECONDS + 3, packets=1)
        assert world.link.state == "connecting"
        assert ("hold", False) not in world.log[3:]  # packets go on into the old one
        world.reachable = True
        await world.run(20, packets=1)
        assert world.link.tid == b"\1" * 32
        assert list(world.tunnels) == [b"\1" * 32]
        assert world.link.state == "up"

    play(scenario())


def test_pqconnect_after_a_restart() -> None:
    async def scenario() -> None:
        world = World()
        world.pqtun = False
        await world.up()
        old = world.link.tid
        deliver = world._deliver
        world._deliver = lambda tid, action: None if tid == old else deliver(tid, action)
        await world.run(liveness.PATIENT_LOST_SECONDS + 5, packets=1)
        assert world.link.tid == b"\2" * 32
        assert list(world.tunnels) == [b"\2" * 32]

    play(scenario())


@pytest.mark.parametrize("resumable", [False, True])
def test_a_farewell(resumable: bool) -> None:
    """Of a server that stops nothing is left to continue."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.link.ended(world.link.tid or b"", resumable=resumable)
        assert not world.tunnels
        world.link.want()
        await world.until(lambda: world.link.state == "up")
        assert ("add", 2, resumable) in world.log

    play(scenario())


def test_open_connections_get_a_new_tunnel_without_a_packet() -> None:
    """After sleep the old one is dead; the server may have something to say."""

    async def scenario() -> None:
        world = World()
        await world.up()
        world.die()
        await world.run(2)
        assert world.link.state == "up"
        world.die()
        world.connected = False
        await world.run(30)
        assert world.link.state == "idle"

    play(scenario())


def test_a_hint_or_a_new_address_is_followed_at_once() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.tunnels[world.link.tid or b""].last_received = now()
        old = world.link.tid
        deliver = world._deliver
        world._deliver = lambda tid, action: None if tid == old else deliver(tid, action)
        world.link.suspect(path=False)
        await world.run(liveness.SUSPECT_SECONDS + 2)
        assert world.link.tid == b"\2" * 32
        world._deliver = deliver
        for _ in range(10):
            world.link.suspect(path=True)
            await world.run(3)
        assert world.link.tid == b"\2" * 32

    play(scenario())


@pytest.mark.parametrize(
    ("used", "epoch"), [(True, link_module.REPLACE_EPOCH), (False, link_module.REPLACE_IDLE_EPOCH)]
)
def test_a_tunnel_is_replaced_before_its_epochs_end(used: bool, epoch: int) -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.used = used
        world.tunnels[b"\1" * 32].epoch = epoch - 1
        await world.run(1)
        assert world.sessions == 1
        world.tunnels[b"\1" * 32].epoch = epoch
        await world.run(2)
        assert world.link.tid == b"\2" * 32
        assert ("hold", False) not in world.log[3:]  # programs notice nothing
        assert world.inner_of == {b"\2" * 32: 1}

    play(scenario())


def test_a_lost_introduction_is_repeated() -> None:
    async def scenario() -> None:
        world = World()
        world.pqtun = False
        await world.up()
        assert world.link.upkeep is not None
        assert world.link.upkeep.hello is None
        world.pqtun = True
        await world.run(2)
        assert world.link.upkeep.hello == SERVER_HELLO
        world.die()
        await world.run(2)
        assert ("add", 2, True) in world.log

    play(scenario())


def test_the_peer_is_asked_whether_it_is_where_it_has_moved() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        world.link.roamed(b"\1" * 32, ("198.51.100.9", 7))
        await world.run(1)
        assert world.log.count(("confirm", 1, ("198.51.100.9", 7))) >= 1
        confirmed = len(world.log)
        await world.run(3)
        assert ("confirm", 1, ("198.51.100.9", 7)) not in world.log[confirmed:]

    play(scenario())


def test_a_path_that_drops_large_packets_is_lived_with() -> None:
    async def scenario() -> None:
        world = World()
        await world.up()
        send = world.send_inner
        world.send_inner = lambda tid, packet, **_: send(tid, packet) if len(packet) <= 1200 else None
        assert world.link.upkeep is not None
        world.link.suspect(path=True)
        await world.run(30)
        assert world.link.upkeep.mtu == 1176
        assert world.log[-1] == ("mtu", 1, 1176)

    play(scenario())


def test_give_up_and_close_leave_nothing_behind() -> None:
    async def scenario() -> None:
        world = World()
        world.link.want()
        await world.until(lambda: "add" in world.names())
        world.link.give_up("for others")
        assert (world.link.state, world.link.error) == ("failed", "for others")
        assert not world.tunnels
        assert not world.index
        await asyncio.sleep(2)
        world.link.want()
        await world.until(lambda: "add" in world.names())
        await world.link.close()
        assert world.link.state != "connecting"

    play(scenario())


def test_an_internal_error_is_logged_and_ends_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        world.error = ValueError("a defect")
        world.link.want()
        await world.until(lambda: world.link.state == "failed")
        assert world.link.error == "internal error (ValueError)"

    play(scenario())
    assert any(record.exc_info for record in caplog.records)
