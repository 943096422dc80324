"""What only the native engine has: threads, descriptors, a device of the kernel, and bounds written down twice."""

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address
from operator import ge
from pathlib import Path

import pytest

from pqtun.protocol import limits as protocol_limits
from pqtun.protocol.constants import HANDSHAKE_FAILED
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump import _native, icmp, limits
from pqtun.pump.engine import Alive, Datagram, Event, Failed, Wanted
from pqtun.pump.native import NativeEngine
from pqtun.pump.tun import open_tun
from tests.pump import gso, hammer
from tests.pump import packets as p
from tests.pump.rig import OWN, PEER, SUBNET, Rig, delivered, from_far, rig, session, to_far
from tests.pump.twins import ALL_OFFLOADS, UDP_SEGMENT, Side, native

pytestmark = pytest.mark.usefixtures("_own_network")

Scenario = Callable[[Rig], Coroutine[None, None, None]]


def play(scenario: Scenario) -> None:
    async def scene() -> None:
        with rig(native(virtio=False)) as made:
            await scenario(made)
            assert "internal_error" not in made.drops()

    asyncio.run(scene())


# Bounds of the event loop, of what the Python engine does at a time, and of what the daemons set.
NOT_OF_PACKETS = {
    "BATCH",
    "DATAGRAM_TURN_SECONDS",
    "EVENT_BATCH",
    "HANDSHAKES_PER_PREFIX",
    "HANDSHAKES_PER_SECOND",
    "READ_BYTES",
    "TIMER_SECONDS",
}


def test_bounds_are_those_of_the_other_engine() -> None:
    bounds = dict(_native.bounds())
    known = {**vars(protocol_limits), **vars(limits)}
    assert bounds == {name: known[name] for name in bounds}
    assert set(bounds) == {name for name in known if name.isupper()} - NOT_OF_PACKETS


# -- threads and descriptors ----------------------------------------------------------------------------


def threads() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ends just now
            names.append(Path(task, "comm").read_text().strip())
    return sorted(names)


async def gone() -> None:
    """No thread of an engine is left. One that was joined is seen for a moment still."""
    end = time.monotonic() + 5
    while any(name.startswith("pump") for name in threads()):
        assert time.monotonic() < end, threads()
        await asyncio.sleep(0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("started", [True, False])
def test_nothing_is_left_of_a_hundred_engines(started: bool) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        end = hammer.End(OWN, PEER, loop)
        end.close()
        before = len(threads()), descriptors()
        for number in range(100):
            pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in pairs]
            for sock in sockets:
                sock.bind(("127.0.0.1", 0))
            address = sockets[0].getsockname()
            engine = NativeEngine(
                [theirs.detach() for _, theirs in pairs],
                sockets,
                own=IPv4Address(OWN),
                subnet=SUBNET,
                virtio=True,
                offload=ALL_OFFLOADS,
                loop=loop,
            )
            if started:
                engine.start(lambda event: None)
                assert len(threads()) == before[0] + 3
                engine.add_tunnel(session(number)[0], IPv4Address(PEER), address)
            engine.close()
            engine.close()
            await gone()
            for ours, _ in pairs:
                assert ours.recv(1) == b""  # the engine's end is closed
                ours.close()
        del engine  # its event descriptors go with it
        assert (len(threads()), descriptors()) == before

    asyncio.run(scene())


def test_after_it_was_closed() -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.engine.close()
        with pytest.raises(ValueError, match="closed"):
            rig.engine.add_tunnel(session(2)[0], IPv4Address(PEER), far.endpoint)
        rig.engine.remove_tunnel(far.tid)
        rig.engine.hold(IPv4Address(PEER))
        rig.engine.drop_held(IPv4Address(PEER), unreachable=True)
        rig.engine.send_datagram(b"\1\0", far.endpoint)
        rig.engine.send_inner(far.tid, b"x")
        stats = rig.engine.stats()
        assert stats.tunnels == []
        assert far.quiet()
        assert stats.drops["send_unknown_tunnel"] == 1

    play(scenario)


@pytest.mark.parametrize(("tuns", "sockets"), [(0, 0), (1, 2), (2, 1)])
def test_a_worker_needs_a_queue_and_a_socket(tuns: int, sockets: int) -> None:
    async def scene() -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(tuns)]
        before = descriptors()
        with pytest.raises(OSError, match="one TUN queue and one socket"):
            NativeEngine(
                [theirs.detach() for _, theirs in pairs],
                [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(sockets)],
                own=IPv4Address(OWN),
                subnet=SUBNET,
                virtio=False,
                offload=(),
                loop=asyncio.get_running_loop(),
            )
        assert descriptors() == before - tuns
        for ours, _ in pairs:
            ours.close()

    asyncio.run(scene())


def test_the_end_of_the_device_is_reported_once() -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.programs.shutdown(socket.SHUT_WR)
        assert await rig.event(Failed) == Failed("end of file")
        far.send_packet(b"still")  # the other direction is as it was
        assert await rig.delivered() == delivered(b"still")
        assert [event for event in rig.events if isinstance(event, Failed)] == []

    play(scenario)


# -- events ---------------------------------------------------------------------------------------------


def test_a_listener_adds_and_removes_tunnels() -> None:
    """As the daemon does: a wanted peer gets a tunnel, a datagram ends it, and another takes its place."""

    async def scenario(rig: Rig) -> None:
        fars = [rig.far(number, inner=None) for number in range(1, 4)]
        told: list[Event] = []

        def listener(event: Event) -> None:
            told.append(event)
            if isinstance(event, Wanted):
                rig.add(fars[0], str(event.inner))
                rig.engine.send_inner(fars[0].tid, b"from the listener")
            elif isinstance(event, Alive) and event.tid == fars[0].tid:
                rig.add(fars[1], PEER)
                rig.engine.remove_tunnel(fars[0].tid)
            elif isinstance(event, Datagram):
                rig.engine.close()

        rig.listener = listener
        for number in range(3):
            rig.write(to_far(bytes([number])))
        for number in range(3):
            assert (await fars[0].plaintext())[28:] == bytes([number])
        assert await fars[0].plaintext() == b"from the listener"
        fars[0].send_packet(b"alive")
        await rig.until(lambda: len(rig.engine.stats().tunnels) == 1 and len(told) >= 2, "the second tunnel")
        assert rig.engine.stats().tunnels[0].tid == fars[1].tid
        rig.write(to_far(b"second"))
        assert (await fars[1].plaintext())[28:] == b"second"
        fars[1].send(HANDSHAKE_FAILED)
        fars[2].send(HANDSHAKE_FAILED)  # nobody is told
        await rig.until(lambda: told[-1] == Datagram(HANDSHAKE_FAILED, fars[1].endpoint), "the last event")
        await asyncio.sleep(0.01)
        assert len(told) == 3

    play(scenario)


def test_a_large_packet_whose_segments_are_too_big_is_refused_whole() -> None:
    """The program is told once, as by a router that met the first segment."""

    async def scenario(rig: Rig) -> None:
        side = Side(rig, virtio=True)
        far = rig.far()
        rig.engine.set_mtu(far.tid, 1000)
        packet = gso.tcp_packet(OWN, PEER, bytes(5000))
        await side.write_message(gso.large(packet, 961))
        await side.write_message(gso.large(packet, 960))
        for segment in gso.segments(packet, 960):
            assert await far.plaintext() == p.cleared(segment)
        await rig.settle()
        (answer,) = side.delivered()
        assert answer == icmp.too_big(gso.segments(packet, 961)[0], 1000)
        assert rig.tunnel_drops(far.tid) == {"tun_too_big": 6}

    async def scene() -> None:
        with rig(native(virtio=True)) as made:
            await scenario(made)

    asyncio.run(scene())


def test_time_passes_as_fast_as_a_test_wants() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def scene() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        engine = NativeEngine(
            [theirs.detach()],
            [sock],
            own=IPv4Address(OWN),
            subnet=SUBNET,
            virtio=False,
            offload=(),
            loop=asyncio.get_running_loop(),
            clock_scale=60.0,
        )
        before = clock()
        engine.add_tunnel(session(1)[0], IPv4Address(PEER), address)
        (tunnel,) = engine.stats().tunnels
        engine.close()
        assert 60 * before <= tunnel.created <= 60 * clock()

    with ours:
        asyncio.run(scene())


# -- threads at work ------------------------------------------------------------------------------------


def ends() -> tuple[hammer.End, hammer.End]:
    """Two engines with a tunnel between them."""
    loop = asyncio.get_running_loop()
    left, right = hammer.End(OWN, PEER, loop), hammer.End(PEER, OWN, loop)
    connect(left, right, 0)
    return left, right


def connect(left: hammer.End, right: hammer.End, number: int) -> None:
    one, other = hammer.pair(number)
    right.engine.add_tunnel(other, right.peer, left.address)
    left.engine.add_tunnel(one, left.peer, right.address)


async def joined(players: list[threading.Thread]) -> None:
    for player in players:
        await asyncio.to_thread(player.join, 20)
    assert not any(player.is_alive() for player in players)


def test_what_came_early_is_not_overtaken() -> None:
    """While a new tunnel opens what waited for it, the worker has more of it at hand."""

    async def scenario(rig: Rig) -> None:
        side = Side(rig)
        for number in range(1, 101):
            far = rig.far(number, inner=None)
            datagrams = [far.seal(from_far(bytes([n]))) for n in range(60)]
            side.send_train(datagrams[:40])
            await rig.settle()
            assert rig.engine.stats().early_packets == 40
            side.send_train(datagrams[40:])
            begun = time.perf_counter()
            while time.perf_counter() < begun + number * 1e-6:  # the worker wakes up meanwhile
                pass
            rig.add(far)
            assert [(await rig.delivered())[28] for _ in datagrams] == list(range(60))
            rig.engine.remove_tunnel(far.tid)

    play(scenario)


def test_threads_keep_the_order_while_tunnels_come_and_go() -> None:
    """Packets move to a new tunnel of the same peer, again and again; none is lost and none overtakes another."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        left, right = ends()
        both = left, right
        stop = threading.Event()
        players = [*left.play(right, stop), *right.play(left, stop)]
        old: deque[tuple[int, list[int]]] = deque()
        end, number = loop.time() + 3, 0
        while loop.time() < end and not stop.is_set():
            connect(left, right, number + 1)
            # What goes through the tunnel before has been sent by now; once it has arrived the tunnel may go.
            old.append((number, left.sent() + right.sent()))
            number += 1
            await asyncio.sleep(0.001)
            while old and all(map(ge, left.got() + right.got(), old[0][1])):
                tid = hammer.pair(old.popleft()[0])[0].tid
                left.engine.remove_tunnel(tid)
                right.engine.remove_tunnel(tid)
            assert len(left.engine.stats().tunnels) == len(old) + 1
        stop.set()
        await joined(players)
        assert left.failures == right.failures == []
        assert [end.engine.stats().drops for end in both] == [{}, {}]
        assert all(tunnel.drops == {} for end in both for tunnel in end.engine.stats().tunnels)
        assert [end.got() for end in both] == [end.sent() for end in both]
        assert number > 20
        assert len(old) < number
        assert sum(left.got()) + sum(right.got()) > 2000
        assert any(flow.joined for flow in left.flows.values())
        for end in both:
            end.close()

    asyncio.run(scene())


def test_close_under_load() -> None:
    """Engines end at once while programs and peers still send."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            left, right = ends()
            stop = threading.Event()
            players = [*left.play(right, stop), *right.play(left, stop)]
            await asyncio.sleep(0.1)
            assert any(left.got())
            begun = loop.time()
            left.engine.close()
            right.engine.close()
            assert loop.time() - begun < 5
            stop.set()
            await joined(players)
            # Who writes to a closed device hears of it, and so does who reads from it.
            assert all(isinstance(error, BrokenPipeError | ConnectionError) for error in left.failures + right.failures)
            left.close()
            right.close()
        await gone()

    asyncio.run(scene())


# -- a device of the kernel --------------------------------------------------------------------------------


def clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.root
@pytest.mark.tun
def test_with_a_device_every_offload_works() -> None:
    """A program's UDP run is read as one packet and cut; runs from a peer are written as one, and cut by the kernel."""
    (device,) = open_tun("pq0", vnet_header=True)
    subprocess.run(["ip", "addr", "add", f"{OWN}/16", "dev", "pq0"], check=True)
    subprocess.run(["ip", "link", "set", "pq0", "up", "mtu", "1396"], check=True)

    async def scene() -> None:
        far_socket, sock, program = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
        for bound in (far_socket, sock):
            bound.bind(("127.0.0.1", 0))
            bound.setsockopt(socket.SOL_SOCKET, hammer.SO_RCVBUFFORCE, 1 << 20)
        address = sock.getsockname()
        engine = NativeEngine(
            [device],
            [sock],
            own=IPv4Address(OWN),
            subnet=SUBNET,
            virtio=True,
            offload=ALL_OFFLOADS,
            loop=asyncio.get_running_loop(),
        )
        try:
            engine.start(lambda event: None)
            assert {name: engine.offload()[name] for name in ALL_OFFLOADS} == dict.fromkeys(ALL_OFFLOADS, "on")
            theirs = session(1)[1]
            far = Tunnel(theirs.tid, theirs.send_root, theirs.recv_root, clock())
            engine.add_tunnel(session(1)[0], IPv4Address(PEER), far_socket.getsockname())
            program.bind((OWN, 2000))
            far_socket.settimeout(5)
            program.settimeout(5)
            lines = [bytes([number]) * 1000 for number in range(40)]
            program.sendmsg(
                [b"".join(lines)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1000))], 0, (PEER, 1000)
            )
            for line in lines:
                plaintext = far.open(await asyncio.to_thread(far_socket.recv, 65535), clock())
                assert plaintext[28:] == line
                whole = plaintext[:16] + IPv4Address(PEER).packed + plaintext[20:]
                assert p.valid(whole[:20])
                assert p.transport_valid(whole)
            train = [
                far.seal(p.cleared(gso.udp_packet("10.42.0.1", "10.42.0.9", line, identification=n)), clock())
                for n, line in enumerate(lines)
            ]
            size = struct.pack("=H", len(train[0]))
            far_socket.sendmsg([b"".join(train)], [(socket.IPPROTO_UDP, UDP_SEGMENT, size)], 0, address)
            for line in lines:
                assert await asyncio.to_thread(program.recvfrom, 65535) == (line, (PEER, 1000))
            assert {name: engine.offload()[name] for name in ALL_OFFLOADS} == dict.fromkeys(ALL_OFFLOADS, "on")
            (tunnel,) = engine.stats().tunnels
            assert (tunnel.packets_sent, tunnel.packets_received, tunnel.drops) == (40, 40, {})
        finally:
            engine.close()
            far_socket.close()
            program.close()

    asyncio.run(scene())
