"""Tunnels that a server puts aside as a cookie and takes up again, of every engine."""

import asyncio
from ipaddress import IPv4Address

import pytest

from pqtun.protocol import cookie
from pqtun.protocol.constants import COOKIE_BYTES, COOKIE_PREFIX
from pqtun.protocol.handshake import Session
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.engine import Alive, Cookie, Datagram, HandshakeLimits, Wanted
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import (
    OTHER,
    PEER,
    EngineFactory,
    Far,
    Rig,
    delivered,
    from_far,
    rig,
    session,
    to_far,
)

KEY, NONCE, THEN = b"k" * 32, b"n" * 12, 1_700_000_000


def put_aside(rig: Rig, far: Far) -> None:
    rig.engine.put_aside(far.tid, KEY, NONCE, THEN)


def resume(rig: Rig, state: cookie.TunnelState, far: Far, inner: str = OTHER) -> None:
    """What a server's control plane does with a cookie that came back."""
    restored = Session(state.tid, bytearray(state.send_root), bytearray(state.recv_root), bytearray(32))
    rig.engine.add_tunnel(restored, IPv4Address(inner), far.endpoint, epoch=state.epoch + 1, confirmed=False)


async def taken(far: Far) -> cookie.TunnelState:
    """The peer keeps the cookie that comes, and moves both chains on (section 7); what is in it, as its maker reads."""
    plaintext = await far.plaintext()
    far.tunnel.step(far.rig.clock())
    return cookie.unpack(plaintext, KEY, THEN)


def test_the_peer_gets_its_tunnel_as_a_cookie_and_the_tunnel_goes(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        far.send_packet(b"1")
        await rig.delivered()
        put_aside(rig, far)
        assert rig.engine.stats().tunnels == []
        datagram = await far.datagram()
        assert len(datagram) == 56 + 144
        plaintext = far.tunnel.open(datagram, rig.clock())
        state = cookie.unpack(plaintext, KEY, THEN)
        assert plaintext[8:28] == THEN.to_bytes(8, "big") + NONCE
        assert (state.tid, state.epoch) == (far.tid, 0)
        # The roots are those of epoch 1: they open and seal what the peer seals and opens there.
        far.tunnel.step(rig.clock())
        again = Tunnel(far.tid, state.send_root, state.recv_root, rig.clock(), 1)
        assert again.open(far.seal(b"up"), rig.clock()) == b"up"
        assert far.tunnel.open(again.seal(b"down", rig.clock()), rig.clock()) == b"down"
        put_aside(rig, far)  # unknown by now: nothing happens
        rig.write(to_far(b"x"))
        assert await rig.event(Wanted)
        await rig.settle()
        assert far.quiet()
        assert rig.events == [Alive(far.tid)]

    play(scenario)


def test_the_cookie_is_of_the_epoch_that_it_is_sent_in(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        await rig.pass_time(65)  # the peer has sent nothing since: its chain is two epochs behind
        put_aside(rig, far)
        datagram = await far.datagram()
        assert datagram[34:36] == b"\0\2"
        plaintext = far.tunnel.open(datagram, rig.clock())
        state = cookie.unpack(plaintext, KEY, THEN)
        assert state.epoch == 2
        far.tunnel.step(rig.clock())
        resume(rig, state, far)
        assert (rig.stats(far).send_epoch, rig.stats(far).recv_epoch) == (3, 3)
        far.send_packet(b"up")
        assert await rig.delivered() == delivered(b"up", OTHER)
        rig.write(to_far(b"down", OTHER))
        assert await far.plaintext() == p.cleared(to_far(b"down", OTHER))

    play(scenario)


def test_a_peer_whose_epoch_is_ahead_is_followed(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        ahead = far.tunnel.seal(from_far(b"ahead"), rig.clock() + 95)
        far.send(ahead)
        assert await rig.delivered() == delivered(b"ahead")
        put_aside(rig, far)
        state = await taken(far)
        assert state.epoch == 3
        resume(rig, state, far)
        far.send(far.tunnel.seal(from_far(b"on"), rig.clock() + 95))
        assert await rig.delivered() == delivered(b"on", OTHER)

    play(scenario)


def test_what_cannot_be_put_aside_is_removed(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = Far(rig, 1, epoch=0xFFFF)
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), far.endpoint, epoch=0xFFFF)
        put_aside(rig, far)
        assert rig.engine.stats().tunnels == []
        await rig.settle()
        assert far.quiet()
        assert rig.drops()["epoch_end"] == 1

    play(scenario)


def test_a_cookie_leaves_the_address_to_the_next_older_tunnel(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        old, new = rig.far(1), rig.far(2)
        put_aside(rig, new)
        await new.datagram()
        rig.write(to_far(b"x"))
        assert await old.plaintext() == p.cleared(to_far(b"x"))

    play(scenario)


def test_a_tunnel_may_come_back_under_its_own_id(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for _ in range(3):
            await rig.pass_time(31)
            put_aside(rig, far)
            resume(rig, await taken(far), far, PEER)
            with pytest.raises(ValueError, match="exists"):
                rig.add(far)
            far.send_packet(b"up")
            assert await rig.delivered() == delivered(b"up")
            assert rig.stats(far).created == rig.clock()
        assert not rig.stats(far).confirmed
        await rig.pass_time(110)  # what was due of the earlier ones does not hurt the last
        assert rig.stats(far).recv_epoch == 6
        await rig.pass_time(20)
        assert rig.engine.stats().tunnels == []

    play(scenario)


def test_a_server_keeps_no_cookies_of_its_clients(play: Play) -> None:
    """It would go to another epoch and return it, as often as a client likes."""

    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for text in (COOKIE_PREFIX + bytes(COOKIE_BYTES - len(COOKIE_PREFIX)), COOKIE_PREFIX):
            far.send(far.seal(text))
        far.send_packet(b"still epoch 0")
        assert await rig.delivered() == delivered(b"still epoch 0")
        await rig.settle()
        assert rig.tunnel_drops(far.tid) == {"cookie_unwanted": 2}
        assert (rig.stats(far).send_epoch, rig.stats(far).recv_epoch) == (0, 0)
        rig.write(to_far(b"down"))
        assert await far.plaintext() == p.cleared(to_far(b"down"))
        assert rig.events == [Alive(far.tid)]

    play(scenario, handshakes=HandshakeLimits(per_second=100, per_prefix=100))


# -- both ends are engines


@pytest.mark.usefixtures("_own_network")
def test_a_cookie_passes_between_two_engines(factory: EngineFactory) -> None:
    """Put aside at one, kept and returned by the other, taken up again by the first's control plane."""

    async def scene() -> None:
        limits = HandshakeLimits(per_second=100, per_prefix=100)
        with rig(factory) as client, rig(factory, handshakes=limits) as server:
            ours, theirs = session(1)
            client_address, server_address = client.address, server.address
            client.engine.add_tunnel(ours, IPv4Address(PEER), server_address)
            server.engine.add_tunnel(theirs, IPv4Address(OTHER), client_address)
            for now in (1000.0, 1031.0):
                client.clock.now = server.clock.now = now
                client.write(to_far(b"up"))
                assert await server.delivered() == delivered(b"up", OTHER)
                server.write(to_far(b"down", OTHER))
                assert await client.delivered() == delivered(b"down")
            assert await client.event(Alive)
            assert await server.event(Alive)

            server.engine.put_aside(ours.tid, KEY, NONCE, THEN)
            kept = await client.event(Cookie)
            (stats,) = client.engine.stats().tunnels
            assert (stats.send_epoch, stats.recv_epoch) == (2, 2)
            assert server.engine.stats().tunnels == []
            client.write(to_far(b"after"))
            returned = await server.event(Datagram)
            assert returned == Datagram(kept.cookie, client_address)
            state = cookie.unpack(returned.data, KEY, THEN)
            restored = Session(state.tid, bytearray(state.send_root), bytearray(state.recv_root), bytearray(32))
            server.engine.add_tunnel(
                restored, IPv4Address(OTHER), client_address, epoch=state.epoch + 1, confirmed=False
            )
            assert await server.delivered() == delivered(b"after", OTHER)  # it came right behind the cookie
            server.write(to_far(b"down again", OTHER))
            assert await client.delivered() == delivered(b"down again")
            await client.settle()
            await server.settle()
            assert client.events == []
            assert server.events == [Alive(ours.tid)]
            (at_client,), (at_server,) = client.engine.stats().tunnels, server.engine.stats().tunnels
            assert at_client.drops == at_server.drops == {}
            assert (
                (at_client.send_epoch, at_client.recv_epoch) == (at_server.recv_epoch, at_server.send_epoch) == (2, 2)
            )

    asyncio.run(scene())
