"""What every engine reports to the control plane and takes from it."""

import asyncio

import pytest

from pqtun.protocol.constants import COOKIE_BYTES, COOKIE_PREFIX, TUNNEL
from pqtun.pump.engine import Alive, Control, Cookie
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import FAR_OWN, FAR_US, Rig, delivered, to_far


def test_control_packets_stay_out_of_the_device(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        packet = p.cleared(p.ip(FAR_OWN, FAR_US, p.CONTROL, b"pqtun\1"))
        far.send(far.seal(packet))
        assert await rig.event(Control) == Control(far.tid, packet)
        far.send_packet(b"next")
        assert await rig.delivered() == delivered(b"next")

    play(scenario)


def test_short_tunnel_packets(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for size in range(2, 56):
            far.send((TUNNEL + far.tid + bytes(22))[:size])
        await rig.settle()
        assert rig.events == []
        assert rig.drops()["tunnel_short"] == 54

    play(scenario)


def test_send_datagram(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.engine.send_datagram(b"\1\0hello", far.endpoint)
        received = await asyncio.get_running_loop().sock_recvfrom(far.socket, 99)
        assert received == (b"\1\0hello", rig.address)  # from the tunnel's socket

    play(scenario)


def test_send_inner(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.engine.send_inner(far.tid, b"any plaintext")
        assert await far.plaintext() == b"any plaintext"
        rig.engine.send_inner(bytes(32), b"x")
        assert rig.drops()["send_unknown_tunnel"] == 1

    play(scenario)


def test_a_cookie_is_returned_before_the_next_packet(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        cookie = COOKIE_PREFIX + bytes(COOKIE_BYTES - len(COOKIE_PREFIX))
        far.send(far.seal(cookie[:-1]))
        far.send(far.seal(cookie + b"\0"))
        far.send(far.seal(cookie))
        assert await rig.event(Cookie) == Cookie(far.tid, cookie)
        assert rig.tunnel_drops(far.tid) == {"cookie_length": 2}
        assert far.quiet()
        stats = rig.engine.stats().tunnels[0]
        assert (stats.send_epoch, stats.recv_epoch) == (1, 1)
        rig.write(to_far(b"x"))
        assert await far.datagram() == cookie
        datagram = await far.datagram()
        assert datagram[34:40] == b"\0\1\0\0\0\0"
        assert far.tunnel.open(datagram, rig.clock()) == p.cleared(to_far(b"x"))
        rig.write(to_far(b"y"))
        assert await far.plaintext() == p.cleared(to_far(b"y"))

    play(scenario)


# -- events


def test_events_never_come_out_of_a_call(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        far.send_packet(b"early")
        await rig.until(lambda: rig.engine.stats().early_packets == 1, "the packet")
        rig.add(far)
        assert rig.events == []
        assert await rig.event(Alive) == Alive(far.tid)

    play(scenario)


def test_a_listener_that_fails_stops_nothing(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(rig: Rig) -> None:
        hear = rig.events.append

        def fails(event: object) -> None:
            hear(event)  # type: ignore[arg-type]
            raise RuntimeError("of the listener's own")

        rig.listener = fails
        far = rig.far()
        far.send_packet(b"1")
        assert await rig.delivered() == delivered(b"1")
        await rig.until(lambda: rig.drops().get("listener_error") == 1, "the fault")
        far.send(b"\3\0")
        await rig.until(lambda: rig.drops().get("listener_error") == 2, "the next fault")
        far.send_packet(b"2")
        assert await rig.delivered() == delivered(b"2")
        assert len(caplog.records) == 1

    play(scenario)
