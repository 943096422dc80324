"""The native engine with offloads switched off, and with offloads that fail while they are used."""

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address

import pytest

from pqtun.pump.engine import Wanted
from tests.pump import gso
from tests.pump import packets as p
from tests.pump.rig import OTHER, OWN, PEER, delivered
from tests.pump.twins import ALL_OFFLOADS, Side
from tests.pump.virtio import (
    LARGE,
    as_delivered,
    joined,
    noise,
    of_tcp,
    opened,
    play,
    train,
    written,
)

pytestmark = pytest.mark.usefixtures("_own_network")


@pytest.mark.parametrize("offload", [(), *[(name,) for name in ALL_OFFLOADS], ALL_OFFLOADS], ids=" ".join)
def test_without_offloads_the_content_is_the_same(offload: Sequence[str]) -> None:
    large, size = LARGE["tcp"]
    packets = of_tcp(40)

    async def scenario(side: Side) -> None:
        far = side.rig.far()
        await side.write_message(gso.large(large, size))
        expected = [p.cleared(segment) for segment in gso.segments(large, size)]
        assert await opened(far, len(expected)) == expected
        side.send_train(train(far, packets))
        await side.rig.settle()
        messages = written(side)
        cut = [packet for message in messages for packet in gso.cut(message)]
        assert [gso.loose(packet) for packet in cut] == [gso.loose(as_delivered(x)) for x in packets]
        if "tun-gro" not in offload:
            assert len(messages) == 40
        states = side.rig.engine.offload()
        for name in ALL_OFFLOADS:
            # A pair of sockets knows nothing of a TUN device's reading side.
            on = "unsupported" if name in ("tun-tso", "tun-uso") else "on"
            assert states[name] == (on if name in offload else "off"), name

    play(scenario, offload)


@pytest.fixture
def small_mtu() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1000"], check=True)
    yield
    subprocess.run(["ip", "link", "set", "lo", "mtu", "65536"], check=True)


@pytest.mark.root
@pytest.mark.usefixtures("small_mtu")
def test_a_way_that_takes_no_trains() -> None:
    """Segments longer than the MTU are refused with EINVAL (or EMSGSIZE); one by one, IP cuts them."""
    large, size = LARGE["tcp"]
    expected = [p.cleared(segment) for segment in gso.segments(large, size)]

    async def scenario(side: Side) -> None:
        with pytest.raises(OSError, match=r"Invalid argument|Message too long"):
            side.send_train([bytes(1200)] * 2)
        far = side.rig.far()
        short = side.rig.far(2, OTHER)
        for _ in range(2):
            await side.write_message(gso.large(large, size))
            assert await opened(far, len(expected)) == expected
        await side.write_message(gso.large(gso.tcp_packet(OWN, OTHER, noise(9000)), 500))
        assert len(await opened(short, 18)) == 18
        await side.rig.settle()
        assert [tunnel.drops for tunnel in side.rig.engine.stats().tunnels] == [{}, {}]
        assert sorted(t.packets_sent for t in side.rig.engine.stats().tunnels) == [18, 2 * len(expected)]
        assert side.rig.engine.offload()["udp-gso"] == "on"

    play(scenario)


def test_a_device_that_refuses_runs() -> None:
    """What is longer than its buffer is refused with EMSGSIZE; from then on it gets packets one by one."""
    packets = of_tcp(6, size=2300)

    async def scenario(side: Side) -> None:
        with socket.socket(fileno=os.dup(side.rig.tun_fd)) as device:
            device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)  # the least that the kernel allows
        far = side.rig.far()
        seen = []
        for at in (0, 2, 4):
            side.send_train(train(far, packets[at : at + 2]))
            await side.rig.settle()
            messages = written(side)
            assert joined(messages) == [1, 1]
            seen += [packet for message in messages for packet in gso.cut(message)]
            assert side.rig.engine.offload()["tun-gro"] == "failed"
        assert seen == [as_delivered(packet) for packet in packets]
        assert side.rig.tunnel_drops(far.tid) == {}

    play(scenario)


def test_a_device_that_takes_nothing() -> None:
    """Then that is counted, for each packet, and is no reason to give up an offload."""

    async def scenario(side: Side) -> None:
        with socket.socket(fileno=os.dup(side.rig.tun_fd)) as device:
            device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        far = side.rig.far()
        side.send_train(train(far, of_tcp(3, size=9000)))
        await side.rig.settle()
        assert written(side) == []
        assert side.rig.tunnel_drops(far.tid) == {"tun_write_emsgsize": 3}
        assert side.rig.engine.offload()["tun-gro"] == "on"
        far.send_packet(b"short")
        await side.rig.settle()
        assert [packet for message in written(side) for packet in gso.cut(message)] == [delivered(b"short")]

    play(scenario)


def test_an_answer_of_our_own_is_complete() -> None:
    async def scenario(side: Side) -> None:
        await side.write(p.udp_packet(OWN, PEER))
        await side.rig.event(Wanted)
        side.rig.engine.drop_held(IPv4Address(PEER), unreachable=True)
        message = await side.rig.delivered()
        assert message[:10] == gso.PLAIN
        packet = message[10:]
        assert (packet[9], packet[20], packet[12:16]) == (p.ICMP, 3, IPv4Address(PEER).packed)
        assert p.valid(packet[:20])
        assert p.valid(packet[20:])

    play(scenario)
