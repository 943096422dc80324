"""No key outlives its time: registers and all memory of a process with an engine are searched, from outside."""

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pqtun.protocol.primitives import ZERO_NONCE, kdf
from tests.pump import packets as p
from tests.pump.chains import Chain, Name, Receiving, Sending
from tests.pump.conftest import ENGINES
from tests.pump.memory import Findings, Needles, flags
from tests.pump.rig import FAR_OWN, FAR_US, OWN, TIMEOUT

CHILD = Path(__file__).with_name("erasure_child.py")
ROOT = Path(__file__).parents[2]
HEADER = struct.Struct(">2s32sHI")
TUNNEL = b"\2\0"
BURST = 16
UNREAD = 48  # packets that a socket of programs takes when nobody reads them
SIZES = (0, 40, 129, 300, 600, 1100)
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_UDP_SEGMENT = 103  # linux/udp.h


class Host:
    """The process with the engine, and all that the engine speaks to."""

    def __init__(self, kind: str, lock: str = "lock") -> None:
        self.kind = kind
        self.now = 1000.0
        self.programs, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        udp, self.peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (udp, self.peer):
            sock.bind(("127.0.0.1", 0))
            if os.geteuid() == 0:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 20)
        for sock in (self.programs, self.peer):
            sock.settimeout(TIMEOUT)
        self.address: tuple[str, int] = udp.getsockname()
        (keys, self.keys), (orders, self.orders), (answered, answers) = os.pipe(), os.pipe(), os.pipe()
        self.answers = os.fdopen(answered)
        given = [tun.fileno(), udp.fileno(), keys, orders, answers]
        self.process = subprocess.Popen(
            [sys.executable, CHILD, kind, lock, *map(str, given)],
            pass_fds=given,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        tun.close()
        udp.close()
        for fd in (keys, orders, answers):
            os.close(fd)

    @property
    def pid(self) -> int:
        return self.process.pid

    def order(self, *words: object) -> Any:
        os.write(self.orders, " ".join(map(str, words)).encode())
        return json.loads(self.answers.readline())

    def settle(self) -> None:
        """Wait until the engine has done all that it has to do with what was sent until now, and rests."""
        probes = ("tun_not_ipv4", "tunnel_short")
        before = self.order("drops")
        self.programs.send(b"\0")
        self.peer.sendto(TUNNEL, self.address)
        end = time.monotonic() + TIMEOUT
        while not all(self.order("drops").get(probe, 0) > before.get(probe, 0) for probe in probes) or not self.rests():
            assert time.monotonic() < end
            time.sleep(0.001)

    def rests(self) -> bool:
        """Whether all threads sleep (proc(5), stat)."""
        stats = [task.read_text() for task in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)

    def clock(self, now: float) -> None:
        self.now = now
        self.order("clock", now)
        self.settle()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for closing in (self.programs, self.peer, self.answers):
            closing.close()
        for fd in (self.keys, self.orders):
            os.close(fd)


class Far:
    """The other end of a tunnel. It knows all keys of both directions, and which of them our end may have."""

    def __init__(self, host: Host, number: int, blocks: Iterable[int] = (8, 1, 3, 3)) -> None:
        self.host = host
        self.tid = os.urandom(32)
        self.inner = f"10.43.0.{number}"
        self.up = Chain(f"up {number}", os.urandom(32))
        self.down = Chain(f"down {number}", os.urandom(32))
        for chain in (self.up, self.down):
            chain.derive(blocks)
        self.resume = Name(f"resume {number}", "root", 0)
        self.secrets = {**self.up.keys, **self.down.keys, self.resume: os.urandom(32)}

    def add(self, first: bytes | None = None) -> None:
        names = (self.up.root(0), self.down.root(0), self.resume)
        os.write(self.host.keys, self.tid + b"".join(self.secrets[name] for name in names))
        self.sending, self.receiving = Sending(self.up), Receiving(self.down, self.host.now)
        self.host.order("add", self.inner, self.host.peer.getsockname()[1], "-" if first is None else first.hex())

    def packet(self, data: bytes) -> bytes:
        return p.cleared(p.udp_packet(FAR_OWN, FAR_US, data))

    def seal(self, epoch: int, counter: int, plaintext: bytes) -> bytes:
        header = HEADER.pack(TUNNEL, self.tid, epoch, counter)
        return header + self.down.cipher(epoch, counter).encrypt(ZERO_NONCE, plaintext, header)

    def send(self, epoch: int, counter: int, plaintext: bytes | None = None) -> None:
        """Send a packet that our end is to accept."""
        if plaintext is None:
            plaintext = self.packet(bytes(SIZES[counter % len(SIZES)]))
        self.host.peer.sendto(self.seal(epoch, counter, plaintext), self.host.address)
        self.accepted(epoch, counter)

    def send_train(self, epoch: int, counters: Iterable[int]) -> None:
        """Send packets in one message, which may arrive as one."""
        packets = []
        for counter in counters:
            packets.append(self.seal(epoch, counter, self.packet(bytes(500))))
            self.accepted(epoch, counter)
        size = struct.pack("=H", len(packets[0]))
        self.host.peer.sendmsg(packets, [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)], 0, self.host.address)

    def accepted(self, epoch: int, counter: int) -> None:
        self.receiving.receive(epoch, counter, self.host.now)
        self.sending.step(epoch)

    def forge(self, epoch: int, counter: int) -> None:
        datagram = self.seal(epoch, counter, bytes(100))
        self.host.peer.sendto(datagram[:-1] + bytes([datagram[-1] ^ 1]), self.host.address)

    def receive(self) -> bytes:
        """The plaintext of the next packet from our end."""
        datagram = self.host.peer.recv(65535)
        kind, tid, epoch, counter = HEADER.unpack_from(datagram)
        assert (kind, tid) == (TUNNEL, self.tid)
        self.sending.step(epoch)
        assert counter == self.sending.counter
        self.sending.counter += 1
        header = datagram[: HEADER.size]
        return self.up.cipher(epoch, counter).decrypt(ZERO_NONCE, datagram[HEADER.size :], header)

    def exchange(self, epoch: int, down: Iterable[int], up: int) -> None:
        """Both ends send, some packets at a time: to ours those with these counters, from ours so many."""
        counters = list(down)
        while counters or up:
            now, counters = counters[:BURST], counters[BURST:]
            for counter in now:
                self.send(epoch, counter)
            for _ in now:
                self.host.programs.recv(65535)
            count = min(up, BURST)
            for n in range(count):
                self.host.programs.send(p.udp_packet(OWN, self.inner, bytes(SIZES[n % len(SIZES)])))
            for _ in range(count):
                self.receive()
            up -= count

    def live(self) -> set[Name]:
        receiving = self.receiving.live(self.host.now)
        return receiving | self.sending.live() if receiving else set()


@pytest.fixture(params=list(ENGINES))
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    made = Host(request.param)
    try:
        yield made
    finally:
        made.close()


def needles(*fars: Far) -> Needles[Name]:
    keys = {name: key for far in fars for name, key in far.secrets.items()}
    return Needles(keys, {name for name in keys if name.kind == "packet"})


def check(found: Findings[Name], live: set[Name]) -> None:
    """Exactly the live keys are there, each as a whole only."""
    wrong = [f"part of {name} ({what}) at {place}" for name, what, place in found.parts]
    wrong += [f"dead {name} at {min(places):x}" for name, places in found.whole.items() if name not in live]
    wrong += [f"no {name}" for name in live - set(found.whole)]
    if wrong:
        pytest.fail(f"{len(wrong)} faults: " + "; ".join(sorted(wrong)[:20]), pytrace=False)


LOST = {7, 129, *range(40, 76)}
LATE = {20, 21, 41}


def disordered(count: int) -> list[int]:
    """Counters as they arrive: some never, some late."""
    counters = [n for n in range(count) if n not in LOST | LATE]
    return counters[:60] + sorted(LATE) + counters[60:]


def test_only_live_keys_are_there(host: Host) -> None:
    """Several epochs with all that befalls packets, then the end of tunnels: two minutes over, removed, closed."""
    a, b, c = (Far(host, number, [24] * 5 + [4] * 5) for number in (7, 8, 9))
    wanted = needles(a, b, c)

    host.peer.sendto(a.seal(0, 0, a.packet(b"early")), host.address)
    host.settle()
    a.add(first=bytes(60))
    a.accepted(0, 0)
    assert host.programs.recv(65535).endswith(b"early")
    assert a.receive() == bytes(60)
    a.exchange(0, disordered(400)[1:], 400)
    host.clock(1030.0)
    a.exchange(1, disordered(400), 400)
    host.clock(1061.0)
    a.exchange(2, disordered(200), 200)
    cookie = b"pqccookE" + os.urandom(136)
    a.send(2, 200, cookie)
    host.settle()
    a.receiving.step(3, host.now)
    a.sending.step(3)
    host.programs.send(p.udp_packet(OWN, a.inner))
    assert host.peer.recv(65535) == cookie
    a.receive()
    host.clock(1095.0)
    a.exchange(4, disordered(400), 400)
    for epoch, counter in [(0, 40), (4, 40), (4, 410), (3, 20), (8, 50)]:
        a.forge(epoch, counter)
    host.peer.sendto(a.seal(4, 100, bytes(100)), host.address)  # again
    host.settle()
    assert host.order("tunnels")[a.tid.hex()] == {"authentication": 5, "replay": 1}
    assert {name.kind for name in a.live()} == {"root", "chain", "packet"}
    check(wanted.scan(host.pid), a.live())

    host.clock(1121.0)
    check(wanted.scan(host.pid, all_memory=False), a.live())
    a.exchange(1, range(42, 60), 0)
    b.add()
    b.exchange(0, range(30), 30)
    host.clock(1185.0)
    c.add()
    c.exchange(0, range(30), 30)
    host.settle()
    check(wanted.scan(host.pid, all_memory=False), a.live() | b.live() | c.live())

    host.clock(1216.0)
    assert host.order("events").count("Dead") == 1
    assert not a.live()
    check(wanted.scan(host.pid), b.live() | c.live())
    host.order("remove", b.tid.hex())
    host.settle()
    check(wanted.scan(host.pid, all_memory=False), c.live())
    host.order("close")
    check(wanted.scan(host.pid), set())


def test_every_way_of_a_packet(host: Host) -> None:
    """Nothing of one packet is overwritten only because another one takes the same way."""
    far = Far(host, 7)
    wanted = needles(far)

    def look() -> None:
        host.settle()
        check(wanted.scan(host.pid, all_memory=False), far.live())

    far.add()
    look()
    for counter in range(len(SIZES)):
        far.exchange(0, [counter], 0)
        look()
    for size in SIZES[1::2]:
        host.programs.send(p.udp_packet(OWN, far.inner, bytes(size)))
        far.receive()
        look()
    host.order("send", far.tid.hex(), bytes(200).hex())
    far.receive()
    look()
    for epoch, counter in [(0, 12), (0, 100), (3, 40)]:
        far.forge(epoch, counter)
        look()
    far.exchange(0, [100], 0)
    far.exchange(2, [40], 0)
    look()
    host.clock(1040.0)
    far.exchange(2, [], 1)
    look()


def test_a_tunnel_that_is_put_aside_leaves_nothing(host: Host) -> None:
    """Neither its keys nor the roots that the cookie holds, which the schedules derive for it."""
    far = Far(host, 7)
    wanted = needles(far)
    far.add()
    far.exchange(0, range(30), 30)
    host.clock(1070.0)
    host.order("put_aside", far.tid.hex())
    cookie = far.receive()
    assert (cookie[:8], len(cookie), far.sending.epoch) == (b"pqccookE", 144, 2)
    host.settle()
    assert host.order("tunnels") == {}
    check(wanted.scan(host.pid), set())


def test_after_much_at_once(host: Host) -> None:
    """A busy engine that comes to rest leaves as little."""
    far = Far(host, 7, [20, 1])
    wanted = needles(far)
    far.add()
    host.settle()
    os.kill(host.pid, signal.SIGSTOP)
    for first in range(0, 200, 50):
        far.send_train(0, range(first, first + 50))
    for counter in range(200, 300):
        far.send(0, counter)
    host.programs.setblocking(False)
    for n in range(UNREAD):
        host.programs.send(p.udp_packet(OWN, far.inner, bytes(SIZES[n % len(SIZES)])))
    os.kill(host.pid, signal.SIGCONT)
    for _ in range(UNREAD):
        far.receive()
    with contextlib.suppress(BlockingIOError):  # what did not fit in here is dropped, but was opened
        while True:
            host.programs.recv(65535)
    host.settle()
    check(wanted.scan(host.pid, all_memory=False), far.live())


@pytest.mark.skipif("native" not in ENGINES, reason="needs the native engine")
@pytest.mark.parametrize("lock", ["lock", "no-lock"])
def test_memory_of_keys(lock: str) -> None:
    """It is in no core dump, and locked where the limit allows; else the engine says that it is not."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if lock == "lock" and os.geteuid() != 0 and 0 <= limit < 4 << 20:
        pytest.skip("needs a limit for locked memory of 4 MB")
    host = Host("native", lock)
    try:
        far = Far(host, 7)
        far.add()
        far.exchange(0, disordered(100), 30)
        host.settle()
        found = needles(far).scan(host.pid, all_memory=False)
        check(found, far.live())
        regions = flags(host.pid)
        places = [place for places in found.whole.values() for place in places]
        assert len(places) == len(found.whole)
        kept = [next(what for region, what in regions.items() if place in region) for place in places]
        locked, unlocked = host.order("key_memory")
        status = Path(f"/proc/{host.pid}/status").read_text()
        assert f"VmLck:\t{locked // 1024:8} kB" in status
        assert all("dd" in what for what in kept)
        if lock == "lock":
            assert locked > 0
            assert unlocked == 0
            assert all("lo" in what for what in kept)
        else:
            assert locked == 0
            assert unlocked > 0
            assert not any("lo" in what for what in kept)
    finally:
        host.close()


def test_the_search() -> None:
    """It finds keys that lie anywhere, halves of keys, and what a cipher makes of them."""
    names = [Name("", "packet", 0, n) for n in range(5)]
    keys = {name: os.urandom(32) for name in names}
    wanted = Needles(keys, set(names))
    words = [keys[names[2]][at : at + 4] for at in range(0, 32, 4)]
    (once,) = kdf(1, keys[names[3]])
    shown = [b"ab" + keys[names[0]], b"abc" + keys[names[1]][16:], b"".join(word * 8 for word in words), bytes(once)]
    data = b"".join(piece + bytes(-len(piece) % 16 + 16) for piece in shown)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; data = sys.stdin.buffer.read(int(sys.argv[1])); print(); input()",
            str(len(data)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(data)
        process.stdin.flush()
        process.stdout.readline()
        found = wanted.scan(process.pid)
        process.stdin.close()
    assert set(found.whole) == {names[0]}
    assert {(name, what) for name, what, _ in found.parts} == {
        (names[1], "key"),
        (names[2], "spread"),
        (names[3], "one-time key"),
    }
