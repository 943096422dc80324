"""What every engine hands to the control plane out of tunnels, at which rate, and what counts as use by programs."""

from ipaddress import IPv4Address

from pqtun.protocol import control
from pqtun.pump import icmp
from pqtun.pump.engine import Alive, Control
from pqtun.pump.limits import CONTROL_BURST, CONTROL_RATE
from tests.pump import packets as p
from tests.pump.conftest import Play
from tests.pump.rig import FAR_OWN, FAR_US, OTHER, OWN, PEER, Far, Rig, delivered, to_far

TOKEN = b"01234567"


def echo_reply(source: str = FAR_OWN, destination: str = FAR_US, size: int = 0) -> bytes:
    """What a peer's kernel makes of our request; PQConnect leaves checksums as they were, and clears the address."""
    request = icmp.echo_request(IPv4Address(OWN), TOKEN, size)
    return p.cleared(p.ip(source, destination, p.ICMP, p.icmp(0, 0, request[24:])))


async def controls(rig: Rig, far: Far, packet: bytes, count: int) -> int:
    """Have the peer send so many control packets; return how many the engine has reported."""
    got = 0
    for number in range(count):
        far.send(far.seal(packet))
        if number % 32 == 31:
            got += await _reported(rig, far, packet)
    return got + await _reported(rig, far, packet)


async def _reported(rig: Rig, far: Far, packet: bytes) -> int:
    await rig.settle()
    got = rig.events.count(Control(far.tid, packet))
    rig.events = [event for event in rig.events if event != Control(far.tid, packet)]
    return got


# -- echoes


def test_answers_to_our_echoes_are_for_the_control_plane(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        for plaintext in (echo_reply(), echo_reply("192.0.2.1", "198.51.100.1"), echo_reply(size=1300)):
            stale = plaintext[:10] + b"\xde\xad" + plaintext[12:22] + b"\xbe\xef" + plaintext[24:]
            for packet in (plaintext, stale, plaintext + bytes(9)):
                far.send(far.seal(packet))
                assert await rig.event(Control) == Control(far.tid, packet)
                assert icmp.echo_token(packet) == TOKEN
        far.send_packet(b"next")
        assert await rig.delivered() == delivered(b"next")  # nothing before it

    play(scenario)


def test_other_echoes_are_for_programs(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        request = icmp.echo_request(IPv4Address(FAR_OWN), TOKEN)
        foreign = p.cleared(p.ip(FAR_OWN, FAR_US, p.ICMP, p.icmp(0, 0, b"\x12\x34\0\1" + request[28:])))
        for plaintext in (request, foreign):
            far.send(far.seal(plaintext))
            packet = await rig.delivered()
            assert packet[12:20] == IPv4Address(PEER).packed + IPv4Address(OWN).packed
            assert packet[24:] == plaintext[24:]
        await rig.settle()
        assert rig.events == [Alive(far.tid)]

    play(scenario)


# -- the rate


def test_control_packets_have_a_rate_of_each_tunnel(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far, other = rig.far(1), rig.far(2, OTHER)
        ping = p.cleared(control.encode([control.Ping(TOKEN)], IPv4Address(FAR_OWN)))
        reply = echo_reply()
        half = int(CONTROL_BURST) // 2
        assert await controls(rig, far, ping, half) == half
        assert await controls(rig, far, reply, half + 30) == half
        assert await controls(rig, far, ping, 10) == 0
        assert rig.tunnel_drops(far.tid) == {"control_limit": 40}
        assert await controls(rig, other, ping, 10) == 10
        await rig.pass_time(0.25)
        assert await controls(rig, far, ping, 40) == CONTROL_RATE / 4
        far.send_packet(b"x")
        assert await rig.delivered() == delivered(b"x")
        assert rig.stats(far).packets_received == 2 * half + 30 + 10 + 40 + 1

    play(scenario)


# -- use


def test_of_very_many_tunnels_only_some_are_looked_at(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        silent, older, newer, used = (rig.far(number, f"10.43.0.{number + 9}") for number in range(1, 5))
        for far in (used, newer, older):
            far.send(far.seal(control.encode([], IPv4Address(FAR_OWN))))
            await rig.event(Control)
            await rig.pass_time(1)
        for far in (older, newer, used):
            far.send_packet(b"")
            await rig.delivered()
            await rig.settle()
            await rig.pass_time(1)
        recent = [used.tid, newer.tid, older.tid, silent.tid]
        idle = [silent.tid, older.tid, newer.tid, used.tid]
        for count in range(6):
            assert [tunnel.tid for tunnel in rig.engine.stats(count).tunnels] == recent[:count]
            assert [tunnel.tid for tunnel in rig.engine.longest_idle(count)] == idle[:count]
        assert {tunnel.tid for tunnel in rig.engine.stats().tunnels} == set(recent)
        late = rig.far(5, "10.43.0.20")  # made just now, which counts as a use, and is nothing to be heard
        assert [tunnel.tid for tunnel in rig.engine.stats(2).tunnels] == [late.tid, used.tid]
        assert [tunnel.tid for tunnel in rig.engine.longest_idle(2)] == [silent.tid, late.tid]

    play(scenario)


def test_last_used_tells_when_a_program_s_packet_passed(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        assert rig.stats(far).last_used is None
        rig.engine.send_inner(far.tid, control.encode([], IPv4Address(OWN)))
        await far.plaintext()
        for plaintext in (control.encode([], IPv4Address(FAR_OWN)), echo_reply(), b"pqccookE" + bytes(136), b"refused"):
            far.send(far.seal(plaintext))
        await rig.settle()
        assert rig.stats(far).last_used is None
        assert rig.stats(far).last_sent == rig.stats(far).last_received == 1000.0
        await rig.pass_time(5)
        rig.write(to_far(b"up"))
        await far.datagram()  # the cookie
        assert await far.plaintext() == p.cleared(to_far(b"up"))
        await rig.settle()
        assert rig.stats(far).last_used == 1005.0
        await rig.pass_time(5)
        far.send_packet(b"down")
        assert await rig.delivered() == delivered(b"down")
        await rig.settle()
        assert rig.stats(far).last_used == 1010.0
        await rig.pass_time(5)
        rig.engine.send_inner(far.tid, b"control")
        rig.engine.hold(IPv4Address(PEER))
        rig.write(to_far(b"held"))
        await rig.settle()
        assert rig.stats(far).last_used == 1010.0
        rig.engine.move_tunnel(far.tid, IPv4Address(PEER))
        await rig.settle()
        assert rig.stats(far).last_used == 1015.0

    play(scenario)


def test_what_is_not_sent_is_no_use(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        rig.engine.add_tunnel(far.ours, IPv4Address(PEER), ("255.255.255.255", 9))  # the kernel refuses it
        rig.write(to_far(b"lost"))
        await rig.until(lambda: rig.tunnel_drops(far.tid), "a drop")
        assert rig.stats(far).last_used is None

    play(scenario)
