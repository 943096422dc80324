"""Client and server beside each other in virtual time: what a program notices of loss, cuts, moves and restarts."""

import asyncio
import random

import pytest

from pqtun.protocol import control
from tests.daemon.two_ends import CLIENT, TwoEnds, datagram, two_ends
from tests.daemon.virtual import now


@pytest.fixture
def ends(tmp_path, monkeypatch):
    """Plays scenarios."""

    def play(scenario, seed=1):
        two_ends(tmp_path, monkeypatch, scenario, seed)

    return play


async def connected(ends: TwoEnds) -> None:
    ends.look_up()
    await ends.say()
    ends.connect()
    await asyncio.sleep(2)
    assert ends.link.state == "up"


def test_first_contact(ends):
    async def scenario(ends):
        ends.look_up()
        assert await ends.say() < 5
        await asyncio.sleep(2)
        assert ends.link.upkeep.hello is not None
        assert ends.tunnels() == (1, 1)

    ends(scenario)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("loss", "reorder", "duplicate"), [(0.05, 0.05, 0.01), (0.3, 0.2, 0.1)])
def test_a_bad_path(ends, seed, loss, reorder, duplicate):
    """Ten minutes of talk, and the server's program hears one client throughout."""

    async def scenario(ends):
        ends.relay.loss, ends.relay.reorder, ends.relay.duplicate = loss, reorder, duplicate
        ends.look_up()
        await ends.say(120)
        ends.connect()
        await asyncio.sleep(10)
        ends.sources.clear()
        for _ in range(60):
            await ends.say(60)
            await asyncio.sleep(10)
        assert len(ends.sources) == 1
        ends.relay.loss = 0.0
        await asyncio.sleep(30)
        await ends.say()
        assert ends.link.state == "up"
        await asyncio.sleep(150)
        assert ends.tunnels() == (1, 1)

    ends(scenario, seed)


def test_ten_minutes_of_silence(ends):
    async def scenario(ends):
        await connected(ends)
        await asyncio.sleep(600)
        assert await ends.say() < 0.1
        assert len(ends.sources) == 1

    ends(scenario)


def test_nothing_is_sent_for_nobody(ends):
    """Two minutes after the last word the tunnel is gone; the next word brings another, at the same address."""

    async def scenario(ends):
        await connected(ends)
        ends.disconnect()
        await asyncio.sleep(100)
        seen = len(ends.relay.seen)
        await asyncio.sleep(200)
        assert len(ends.relay.seen) == seen
        assert ends.tunnels() == (0, 0)
        assert await ends.say() < 3
        assert len(ends.sources) == 1

    ends(scenario)


@pytest.mark.parametrize("cut", [20, 60, 130, 300, 3600])
def test_a_cut(ends, cut):
    async def scenario(ends):
        await connected(ends)
        ends.relay.cut = True
        await asyncio.sleep(cut)
        ends.relay.cut = False
        assert await ends.say() < 3
        assert len(ends.sources) == 1
        await asyncio.sleep(150)
        assert ends.tunnels() == (1, 1)

    ends(scenario)


def test_words_during_a_cut(ends):
    async def scenario(ends):
        await connected(ends)
        ends.relay.cut = True
        asyncio.get_running_loop().call_later(40, setattr, ends.relay, "cut", False)
        assert 40 <= await ends.say() < 44
        assert len(ends.sources) == 1

    ends(scenario)


def test_the_source_changes(ends):
    """As when a NAT forgets, or the client has another address; either way of telling."""

    async def scenario(ends):
        await connected(ends)
        for told in (False, True, False):
            ends.tunnel_path.move()
            if told:
                ends.client._network_changed()
            assert await ends.say() < 1.1
        assert len(ends.sources) == 1
        await asyncio.sleep(5)
        (tunnel,) = ends.server._engine.stats().tunnels
        assert tunnel.confirmed
        assert tunnel.endpoint == ends.tunnel_path.back.getsockname()

    ends(scenario)


def test_the_source_changes_in_silence(ends):
    async def scenario(ends):
        await connected(ends)
        for _ in range(5):
            ends.tunnel_path.move()
            await asyncio.sleep(300)
        assert await ends.say() < 0.1
        assert len(ends.sources) == 1

    ends(scenario)


@pytest.mark.parametrize("away", [0, 30])
def test_the_server_dies_and_comes_back(ends, away):
    async def scenario(ends):
        await connected(ends)
        ends.kill_server()
        await asyncio.sleep(away)
        ends.start_server()
        back = now()
        await ends.say()
        assert now() - back < 10
        await asyncio.sleep(5)
        assert ends.tunnels() == (1, 1)

    ends(scenario)


def test_lost_handshakes(ends):
    async def scenario(ends):
        ends.look_up()
        await ends.say()
        for lost in (1, 2, 5):
            ends.relay.cut = True
            await asyncio.sleep(150)
            ends.relay.cut = False
            ends.relay.lose_next = lost
            assert await ends.say() < 15
        assert len(ends.sources) == 1

    ends(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_answers_alone_are_lost(ends, seed, monkeypatch):
    """The server hears each attempt, moves the address to it, and nobody learns of it."""

    async def scenario(ends):
        await connected(ends)
        send = ends.tunnel_path._send

        def one_way(sock, data, to):
            if sock is not ends.tunnel_path.front:
                send(sock, data, to)

        monkeypatch.setattr(type(ends.tunnel_path), "_send", staticmethod(one_way))
        await asyncio.sleep(60)
        monkeypatch.setattr(type(ends.tunnel_path), "_send", staticmethod(send))
        assert await ends.say() < 5
        assert len(ends.sources) == 1
        await asyncio.sleep(150)
        assert ends.tunnels() == (1, 1)

    ends(scenario, seed)


def test_late_and_repeated_datagrams_change_nothing(ends):
    """Everything that ever passed comes once more, handshakes of tunnels that are gone with it."""

    async def scenario(ends):
        await connected(ends)
        ends.relay.cut = True
        await asyncio.sleep(50)
        ends.relay.cut = False
        await ends.say()
        before = ends.link.tid
        for data in [data for data in ends.relay.seen if data[:2] in (b"\1\0", b"\2\0")][-400:]:
            ends.tunnel_path.back.sendto(data, ends._addresses[0])
            await asyncio.sleep(0)
        await asyncio.sleep(5)
        await ends.say()
        assert ends.link.tid == before
        assert len(ends.sources) == 1
        await asyncio.sleep(130)
        assert ends.tunnels() == (1, 1)

    ends(scenario)


def test_a_farewell(ends):
    async def scenario(ends):
        await connected(ends)
        ends.server.close()
        await asyncio.sleep(1)
        assert ends.link.tid is None

    ends(scenario)


@pytest.mark.parametrize("delay", [0.35, 0.7, 1.2])
def test_long_round_trips(ends, delay):
    """As over satellites: a first contact, ten minutes, a cut, and what follows a failure."""

    async def scenario(ends):
        ends.relay.delay = delay
        ends.look_up()
        assert await ends.say(every=5) < 20 * delay + 5  # the key of a megabyte with it
        ends.connect()
        await asyncio.sleep(600)
        assert await ends.say(every=5) < 2 * delay + 0.1
        ends.relay.cut = True
        await asyncio.sleep(300)
        ends.relay.cut = False
        assert await ends.say(every=5) < 12 * delay + 5
        assert len(ends.sources) == 1
        await asyncio.sleep(150)
        assert ends.tunnels() == (1, 1)

    ends(scenario)


def test_a_network_that_changes_all_the_time_keeps_up_nothing_that_nobody_uses(ends):
    async def scenario(ends):
        await connected(ends)
        ends.disconnect()
        await asyncio.sleep(65)
        seen = len(ends.relay.seen)
        for _ in range(30):
            ends.client._network_changed()
            await asyncio.sleep(10)
        assert len(ends.relay.seen) == seen
        assert ends.tunnels() == (0, 0)
        assert await ends.say() < 3
        assert len(ends.sources) == 1

    ends(scenario)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_befalls_them_at_whatever_moment(ends, seed, caplog):
    """At last there is one tunnel, which works, and nothing else: no task, no secret, no entry in an index."""
    chance = random.Random(seed)

    def leap(_):
        asyncio.get_running_loop()._jumping.now += chance.choice([4, 50, 119, 121, 200, 4000])

    def restart(ends):
        ends.kill_server()
        ends.start_server()

    def hint(ends):
        if ends.tunnel_path._client is not None:
            ends.tunnel_path.front.sendto(b"\3\0", ends.tunnel_path._client)

    def bye(ends):
        farewell = control.encode([control.Bye(chance.choice([0, 1]))], ends.server._own)
        for tunnel in ends.server._engine.stats().tunnels:
            ends.server._engine.send_inner(tunnel.tid, farewell)
            if chance.random() < 0.5:
                ends.server._engine.remove_tunnel(tunnel.tid)

    def worsen(ends):
        ends.relay.loss = chance.choice([0, 0, 0.1, 0.3, 0.6])
        ends.relay.delay = chance.choice([0.001, 0.01, 0.1, 0.35, 0.7])

    def cut(ends):
        ends.relay.cut = not ends.relay.cut

    def use(ends):
        chance.choice([ends.connect, ends.disconnect, ends.look_up])()

    def give_up(ends):
        if ends.link.state != "none":
            ends.link.give_up("for others")

    def talk(ends):
        ends._client_tun.send(datagram(str(CLIENT.ip), str(ends.inner), b"x%d" % chance.randrange(99999)))

    events = [leap, restart, hint, bye, worsen, cut, use, use, give_up, *[talk] * 6]
    events += [lambda ends: ends.client._network_changed(), lambda ends: ends.tunnel_path.move()]

    async def scenario(ends):
        faults = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        await connected(ends)
        for _ in range(300):
            chance.choice(events)(ends)
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.02, 0.1, 0.5, 1, 3, 20]) * chance.random())
        ends.relay.cut, ends.relay.loss, ends.relay.delay = False, 0.0, 0.01
        ends.look_up()
        ends.connect()
        await asyncio.sleep(65)
        await ends.say()
        await asyncio.sleep(155)
        await ends.say()
        assert ends.tunnels() == (1, 1)
        assert set(ends.client._by_tid) == {ends.link.tid}
        assert ends.link._attempt is None
        assert (len(ends.link._tickets._tickets), ends.link._ticket) == (1, None)
        assert not faults

    ends(scenario, seed)
    assert not [record for record in caplog.records if record.exc_info]
