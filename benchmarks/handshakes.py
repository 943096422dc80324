"""`python -m benchmarks.handshakes`: what the server's handshakes cost, alone and beside a live tunnel.

The objects are those of production: the server service with real keys and its engine (the native one where it is
built), on a UDP socket; a Unix socket stands for the TUN device. The server has one core, the clients another.
"""

import argparse
import asyncio
import json
import mmap
import os
import resource
import select
import socket
import statistics
import struct
import sys
import time
import timeit
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Interface
from typing import Any

from benchmarks.report import write_json
from pqtun.daemon import clock
from pqtun.daemon.host import SOCKET_BUFFER, Tun
from pqtun.daemon.server import ServerService
from pqtun.daemon.settings import ServerSettings
from pqtun.daemon.tenants import Tenants
from pqtun.keys.directory import LongTermKey
from pqtun.keys.ring import EphemeralRing
from pqtun.protocol import handshake, primitives
from pqtun.protocol.handshake import EphemeralPublicKey, ServerSecretKey
from pqtun.protocol.keydatagram import ephemeral_request, parse_response
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from pqtun.protocol.replay import ReplayMemory
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.engine import Datagram, Engine, Event, HandshakeLimits
from pqtun.pump.python import PythonEngine
from tests.pump import packets

CORES = sorted(os.sched_getaffinity(0))
SUBNET = IPv4Interface("10.42.0.1/16")
WINDOW = 64  # handshakes on their way at once: no queue overflows
FLOOD_WINDOW = 200  # the same, to keep the queue of the engine full
IDLE_TUNNELS = 10_000
PROBE_SECONDS = 0.001
NO_LIMITS = HandshakeLimits(1_000_000, 1_000_000)  # what is measured is what they cost
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def long_term_key() -> LongTermKey:
    """A fresh long-term key."""
    mceliece_pk, mceliece_sk = primitives.skem_keypair()
    x25519_pk, x25519_sk = primitives.x25519_keypair()
    public = ServerPublicKey(mceliece_pk, x25519_pk)
    return LongTermKey(ServerSecretKey(mceliece_sk, x25519_sk), public, os.urandom(32), KeyTree(public).keyhash)


def engine_name(wanted: str) -> str:
    """The engine that ``wanted`` (auto, native, python) means here."""
    if wanted == "python":
        return wanted
    try:
        import pqtun.pump.native  # noqa: F401
    except ImportError:
        if wanted == "native":
            raise
        return "python"
    return "native"


class Server:
    """The service of one server, with the far ends of its sockets. Make it on an event loop."""

    def __init__(self, key: LongTermKey, engine: str) -> None:
        self.key = key
        self.tun, own_tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        own_tun.setblocking(False)
        if os.geteuid() == 0:
            udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER)
        self.address: tuple[str, int] = udp.getsockname()
        self.engine = self._engine(engine, own_tun.detach(), udp)
        self.service = ServerService(ServerSettings(address=SUBNET), Tun((), "bench", SUBNET), self.engine, key)
        self.handled = mmap.mmap(-1, 8)  # events, seen by the clients' process too
        self._count = 0

    @staticmethod
    def _engine(name: str, tun_fd: int, udp: socket.socket) -> Engine:
        loop = asyncio.get_running_loop()
        if name == "python":
            return PythonEngine(
                tun_fd,
                udp,
                own=SUBNET.ip,
                subnet=SUBNET.network,
                clock=clock.boottime,
                loop=loop,
                handshakes=NO_LIMITS,
            )
        from pqtun.pump.native import NativeEngine

        return NativeEngine(
            [tun_fd],
            [udp],
            own=SUBNET.ip,
            subnet=SUBNET.network,
            virtio=False,
            offload=(),
            loop=loop,
            handshakes=NO_LIMITS,
        )

    def start(self) -> None:
        """What a server's worker does at its start, and a count of the events."""
        self.engine.start(self._handle)

    def _handle(self, event: Event) -> None:
        self.service.handle(event)
        self._count += 1
        struct.pack_into("<Q", self.handled, 0, self._count)

    def ephemeral(self) -> EphemeralPublicKey:
        """The server's ephemeral public key, asked for as clients do."""
        asked = self.service.key_server.answer(ephemeral_request(), "127.0.0.1", clock.boottime())
        response = parse_response(asked)
        return EphemeralPublicKey(response.sntrup_pk, response.x25519_pk)

    def datagrams(self, count: int) -> list[bytes]:
        """Handshakes of so many clients."""
        ephemeral = self.ephemeral()
        return [handshake.initiate(self.key.public, ephemeral)[0] for _ in range(count)]

    def close(self) -> None:
        """End the service."""
        self.service.failed.cancel()
        self.service.close()
        self.tun.close()


def best(step: Callable[[], object], number: int = 10) -> float:
    """Microseconds of one call, the best of 200 runs."""
    return min(timeit.repeat(step, number=number, repeat=200)) / number * 1e6


def steps(key: LongTermKey) -> dict[str, float]:
    """Microseconds that the steps of one handshake take, each by itself."""
    ring = EphemeralRing(clock.wall, clock.boottime)
    public, (secret,) = ring.current(), ring.acceptable()
    datagram, _ = handshake.initiate(key.public, public)
    message = handshake.parse(datagram)
    k0 = primitives.skem_dec(message.c0, key.secret.mceliece_sk)
    client = primitives.x25519_point(primitives.open_sealed(k0, message.c0, message.sealed_x25519))
    ad, chain, mixed = os.urandom(32), os.urandom(32), bytearray(os.urandom(32))
    c2, _ = primitives.ekem_enc(public.sntrup_pk)
    sealed = primitives.seal(chain, ad, c2)
    replays, now = ReplayMemory(), clock.boottime()
    tenants, names = Tenants(SUBNET), iter(range(1 << 30))

    def replay() -> None:
        replays.remember(replays.check(next(names).to_bytes(194, "big"), now), now)

    return {
        "parse": best(lambda: handshake.parse(datagram)),
        "replay memory": best(replay),
        "acceptable ephemeral keys": best(ring.acceptable),
        "McEliece decapsulation": best(lambda: primitives.skem_dec(message.c0, key.secret.mceliece_sk)),
        "X25519, long-term": best(lambda: key.secret.x25519.shared(client)),
        "X25519, ephemeral": best(lambda: secret.x25519.shared(client)),
        "sntrup761 decapsulation": best(lambda: primitives.ekem_dec(c2, secret.sntrup_sk)),
        "2 AEAD": best(lambda: primitives.open_sealed(k0, message.c0, message.sealed_x25519))
        + best(lambda: primitives.open_sealed(chain, ad, sealed)),
        "2 SHAKE256": best(lambda: primitives.hash32(message.c0 + message.sealed_x25519))
        + best(lambda: primitives.hash32(ad + message.sealed_sntrup)),
        "4 KDF": 3 * best(lambda: primitives.mix(mixed, ad)) + best(lambda: primitives.kdf(4, chain, ad)),
        "all of respond": best(lambda: handshake.respond(message, key.secret, ring.acceptable())),
        "tenant address": best(lambda: tenants.take(next(names).to_bytes(32, "big"), ("192.0.2.1", 9), now)),
    }


async def service_only(key: LongTermKey, engine: str, count: int) -> float:
    """Microseconds of one handshake from the event on: the service and ``add_tunnel``, no socket, no loop."""
    server = Server(key, engine)
    try:
        events = [Datagram(datagram, ("127.0.0.1", 9)) for datagram in server.datagrams(count)]
        began = time.process_time()
        for event in events:
            server.service.handle(event)
        taken = time.process_time() - began
        check(server, count)
    finally:
        server.close()
    return taken / count * 1e6


def check(server: Server, count: int) -> None:
    """RuntimeError unless so many tunnels were made."""
    stats = server.engine.stats()
    if len(stats.tunnels) != count:
        raise RuntimeError(f"{len(stats.tunnels)} of {count} handshakes were accepted; {stats.drops}")


def pin(core: int) -> None:
    """Keep this process, and what it starts from now on, on one core."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})


def apart(measurement: Coroutine[Any, Any, Any]) -> Any:
    """Run one measurement in a process of its own on the server's core; return what it found.

    So none begins with the heap, or the priority, that another left.
    """
    reader, writer = os.pipe()

    def work() -> None:
        pin(0)
        found = json.dumps(asyncio.run(measurement))
        with open(writer, "w") as pipe:
            pipe.write(found)

    pid = beside(work)
    measurement.close()
    os.close(writer)
    with open(reader) as pipe:
        found = pipe.read()
    reap(pid)
    return json.loads(found)


def beside(work: Callable[[], None]) -> int:
    """Run ``work`` in a process of its own; return its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def reap(pid: int) -> None:
    """Forget a process that has ended. RuntimeError if it failed."""
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a process of the benchmark failed")


async def ended(pid: int) -> None:
    """Wait for the end of a process on the event loop."""
    done = asyncio.Event()
    watched = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(watched, done.set)
    await done.wait()
    loop.remove_reader(watched)
    os.close(watched)
    reap(pid)


async def whole_path(key: LongTermKey, engine: str, count: int) -> dict[str, float]:
    """Handshakes a second from the UDP socket to the tunnel, by the clock and by the server's processor time."""
    server = Server(key, engine)
    try:
        datagrams = server.datagrams(count)

        def clients() -> None:
            pin(1)
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(server.address)
            for sent, datagram in enumerate(datagrams):
                while sent - struct.unpack("<Q", server.handled)[0] >= WINDOW:
                    time.sleep(0.0005)
                sock.send(datagram)
            while struct.unpack("<Q", server.handled)[0] < count:
                time.sleep(0.0002)

        pid = beside(clients)
        used, began = time.process_time(), time.perf_counter()
        server.start()
        await asyncio.wait_for(ended(pid), 60)
        wall, used = time.perf_counter() - began, time.process_time() - used
        check(server, count)
    finally:
        server.close()
    return {"per_second": count / wall, "per_cpu_second": count / used}


async def delays(key: LongTermKey, engine: str, seconds: float, *, flooded: bool) -> dict[str, float]:
    """How long packets of a live tunnel take from the UDP socket to the TUN device, in microseconds.

    ``flooded``: beside them come, without end and as fast as the server takes them, handshakes that are found forged in
    their last step, so that they fill no table.
    """
    server = Server(key, engine)
    ours, theirs = mmap.mmap(-1, 1 << 20), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        (hello,) = server.datagrams(1)
        first, session = handshake.initiate(key.public, server.ephemeral())
        forged = hello[:-1] + bytes([hello[-1] ^ 1])

        def clients() -> None:
            pin(1)
            theirs.connect(server.address)
            theirs.send(first)
            tunnel = Tunnel(session.tid, session.send_root, session.recv_root, clock.boottime())
            packet = packets.cleared(packets.udp_packet("10.43.0.1", "10.42.0.1", b"probe"))
            while not struct.unpack("<Q", server.handled)[0]:
                time.sleep(0.001)
            floods, found = 1, []
            ready = select.poll()
            ready.register(server.tun, select.POLLIN)
            end = time.perf_counter() + seconds
            while (began := time.perf_counter()) < end:
                theirs.send(tunnel.seal(packet, clock.boottime()))
                began = time.perf_counter()
                arrived = False
                while not arrived or time.perf_counter() < began + PROBE_SECONDS:
                    if not arrived and ready.poll(0):
                        found.append(time.perf_counter() - began)
                        server.tun.recv(2048)
                        arrived = True
                    if time.perf_counter() > began + 1:
                        break  # lost: counts as a second
                    if flooded and floods - struct.unpack("<Q", server.handled)[0] < FLOOD_WINDOW:
                        theirs.send(forged)
                        floods += 1
                if not arrived:
                    found.append(1.0)
            text = json.dumps({"delays": found, "floods": floods}).encode()
            ours[:] = text.ljust(len(ours))

        pid = beside(clients)
        server.start()
        await asyncio.wait_for(ended(pid), seconds + 30)
    finally:
        server.close()
        theirs.close()
    said = json.loads(ours[:])
    ordered = sorted(delay * 1e6 for delay in said["delays"])
    return {
        "packets": len(ordered),
        "handshakes_per_second": said["floods"] / seconds if flooded else 0.0,
        "median": statistics.median(ordered),
        "p99": ordered[len(ordered) * 99 // 100],
        "p99.9": ordered[len(ordered) * 999 // 1000],
        "max": ordered[-1],
    }


async def memory(key: LongTermKey, engine: str, count: int) -> float:
    """Bytes of resident memory that one idle tunnel takes, Python's share and the engine's."""
    server = Server(key, engine)
    try:
        datagrams = server.datagrams(count + 100)
        for datagram in datagrams[count:]:  # what is there from the first tunnel on
            server.service.handle(Datagram(datagram, ("127.0.0.1", 9)))
        before = resident()
        for datagram in datagrams[:count]:
            server.service.handle(Datagram(datagram, ("127.0.0.1", 9)))
        return (resident() - before) / count
    finally:
        server.close()


def resident() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def main() -> int:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.handshakes", description=__doc__)
    parser.add_argument("--engine", choices=("auto", "native", "python"), default="auto")
    parser.add_argument("--count", type=int, default=4000, help="handshakes of one run")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement of delays")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/handshakes-DATE.json")
    options = parser.parse_args()
    engine = engine_name(options.engine)
    pin(0)
    key = long_term_key()
    found: dict[str, Any] = {"engine": engine, "bytes_per_tunnel": apart(memory(key, engine, IDLE_TUNNELS))}
    print(f"memory of an idle tunnel at the server: {found['bytes_per_tunnel']:.0f} bytes")
    found["steps_us"] = steps(key)
    print(f"engine {engine}; microseconds a step, the best of 200 runs:")
    for name, us in found["steps_us"].items():
        print(f"  {name:30} {us:7.1f}")
    runs = [apart(service_only(key, engine, options.count)) for _ in range(options.repetitions)]
    found["service_us"] = runs
    print(f"  {'service and add_tunnel':30} {min(runs):7.1f}  (median {statistics.median(runs):.1f})")
    paths = [apart(whole_path(key, engine, options.count)) for _ in range(options.repetitions)]
    found["path"] = paths
    for name, title in (("per_second", "by the clock"), ("per_cpu_second", "by processor time")):
        rates = [path[name] for path in paths]
        print(f"handshakes a second on one core, {title}: {statistics.median(rates):.0f} (best {max(rates):.0f})")
    for name, flooded in (("idle", False), ("flooded", True)):
        found[name] = apart(delays(key, engine, options.seconds, flooded=flooded))
        print(f"delay of packets, {name}: " + ", ".join(f"{key} {value:.0f}" for key, value in found[name].items()))
    if options.json:
        print(write_json("handshakes", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
