"""Whatever happens to them, both engines do the same: datagrams, packets, events and counters.

A script is a list of actions; each has a seed that says what exactly it does. Between two looks at the engines only one
side of them is used, so that nothing depends on which side a thread looks at first.
"""

import asyncio
import random
import struct
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pqtun.protocol.constants import (
    COOKIE_BYTES,
    COOKIE_PREFIX,
    HANDSHAKE,
    HANDSHAKE_BYTES,
    HANDSHAKE_FAILED,
    TUNNEL,
)
from pqtun.protocol.limits import RECEIVE_WINDOW
from pqtun.protocol.primitives import ZERO_NONCE
from pqtun.protocol.schedule import SendSchedule
from pqtun.pump.engine import Alive, Control, Cookie, Datagram, Dead, HandshakeLimits, Roamed, Wanted
from tests.pump import gso
from tests.pump import packets as p
from tests.pump.rig import FAR_OWN, FAR_US, OWN, session
from tests.pump.traffic import FROM_FAR, flow, from_here, odd, packet, size
from tests.pump.twins import SOCKETS, Twins, twins

LOOK_EVERY = 8
TUNNELS: Final = range(1, 6)
PEERS: Final = [f"10.43.0.{n}" for n in (7, 8, 9)]
NO_PEERS: Final = [OWN, "10.43.0.0", "10.43.255.255", "10.44.0.1", "224.0.0.1"]
DELIVER_TO: Final = "10.43.0.2"
LOST = [1, 17, 18, 19, 90, 280, 300, 600, 4100, *range(RECEIVE_WINDOW - 2, RECEIVE_WINDOW + 2)]
TIMES = [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 10.0, 29.0, 29.0, 31.0, 31.0, 89.0, 119.0, 121.0]


class Far:
    """The sending half of a peer."""

    def __init__(self, number: int, now: float, epoch: int = 0) -> None:
        self.ours, theirs = session(number)
        self.tid = theirs.tid
        self.schedule = SendSchedule(theirs.send_root, now, epoch)

    def seal(self, plaintext: bytes, now: float) -> bytes:
        self.schedule.advance(now)
        counter, key = self.schedule.next_key()
        header = TUNNEL + self.tid + struct.pack("!HI", self.schedule.epoch, counter)
        return header + ChaCha20Poly1305(key).encrypt(ZERO_NONCE, plaintext, header)

    def lose(self, count: int, now: float) -> None:
        self.schedule.advance(now)
        for _ in range(count):
            self.schedule.next_key()


class Script:
    """Plays actions to both engines."""

    def __init__(self, engines: Twins, host: str) -> None:
        self.engines = engines
        self.host = host
        self.fars = {number: Far(number, engines.now) for number in TUNNELS}
        self.log: deque[bytes] = deque(maxlen=200)
        self.late: list[bytes] = []
        # A large packet is refused whole by the engine that gets it whole; by the other only what is too long of it.
        self.narrow = False
        self.seen: set[str] = set()

    # -- programs of this host ---------------------------------------------------------------------

    async def program(self, rng: random.Random) -> None:
        target = rng.choice(PEERS)
        for _ in range(rng.choice([1, 1, 2, 20])):
            for part in packet(rng, from_here(rng.choice([OWN, OWN, self.host]), target)):
                await self.engines.write(part)

    async def odd_program(self, rng: random.Random) -> None:
        source, target = rng.choice([OWN, OWN, "10.43.0.9"]), rng.choice(PEERS + NO_PEERS)
        await self.engines.write(odd(rng, from_here(source, target)))

    async def row(self, rng: random.Random) -> None:
        """Packets of one length, as a program in a hurry sends them, and some of almost that length."""
        target, data = rng.choice(PEERS), rng.randbytes(rng.choice([0, 10, 600]))
        for _ in range(rng.choice([60, 70, 150])):
            await self.engines.write(p.udp_packet(OWN, target, data))
        for other in (data + b"+", data, data[1:], data):
            await self.engines.write(p.udp_packet(OWN, target, other))

    async def flood(self, rng: random.Random) -> None:
        target = rng.choice(PEERS)
        for n in range(rng.choice([100, 260])):
            await self.engines.write(p.udp_packet(OWN, target, bytes([n % 256])))

    async def long_program(self, rng: random.Random) -> None:
        target, length = rng.choice(PEERS), rng.choice([1500, 9000, 65451, 65452, 65535])
        await self.engines.write(p.ip(OWN, target, 47, rng.randbytes(length - 20)))

    async def large(self, rng: random.Random) -> None:
        """A packet that is cut on its way: by the kernel for the one, by the other itself if it can."""
        ends, length = from_here(OWN, rng.choice(PEERS)), rng.choice([2, 3000, 20000, 60000])
        segment = 500 if self.narrow else rng.choice([500, 1144, 1400])
        data, ttl = rng.randbytes(length), rng.choice([1, 64])
        six = self.host == OWN and rng.random() < 0.4
        source, target = (ends.source6, ends.target6) if six else (ends.source, ends.target)
        if rng.random() < 0.7:
            flags, extra = rng.choice([0x10, 0x18, 0x19, 0x90]), rng.choice([b"", b"\1\1\x08\x0a" + bytes(8)])
            whole = gso.tcp_packet(
                source, target, data, sequence=2**32 - 5000, flags=flags, options=extra, ttl=ttl, identification=65530
            )
        else:
            whole = gso.udp_packet(source, target, data, identification=65530, dont_fragment=False)
        await self.engines.write_large(whole, min(segment, length))

    # -- the network ---------------------------------------------------------------------------------

    def far(self, rng: random.Random) -> Far:
        return self.fars[rng.choice([1, 1, 1, 2, 2, *TUNNELS])]

    def sealed(self, far: Far, plaintext: bytes) -> bytes:
        datagram = far.seal(plaintext, self.engines.now)
        self.log.append(datagram)
        return datagram

    def some(self, rng: random.Random, far: Far) -> bytes:
        """A datagram that the other end accepts."""
        return self.sealed(far, p.cleared(rng.choice(packet(rng, FROM_FAR))))

    async def good(self, rng: random.Random) -> None:
        far = self.far(rng)
        for _ in range(rng.choice([1, 1, 3, 20])):
            self.engines.send(self.some(rng, far))

    async def odd_inner(self, rng: random.Random) -> None:
        far = self.far(rng)
        for _ in range(30):
            self.engines.send(self.sealed(far, odd(rng, FROM_FAR)))
        self.engines.send(self.sealed(far, rng.randbytes(rng.randrange(24))))

    async def replay(self, rng: random.Random) -> None:
        for datagram in rng.sample(list(self.log), min(len(self.log), 15)):
            self.engines.send(datagram, rng.randrange(SOCKETS))

    async def shuffle(self, rng: random.Random) -> None:
        far = self.far(rng)
        datagrams = [self.some(rng, far) for _ in range(rng.choice([2, 18, 40]))]
        rng.shuffle(datagrams)
        now = rng.randrange(len(datagrams) + 1)
        self.late = (self.late + datagrams[now:])[-200:]
        for datagram in datagrams[:now]:
            self.engines.send(datagram)

    async def come_late(self, rng: random.Random) -> None:
        rng.shuffle(self.late)
        for _ in range(min(len(self.late), 10)):
            self.engines.send(self.late.pop())

    async def lose(self, rng: random.Random) -> None:
        far = self.far(rng)
        self.late.append(self.some(rng, far))
        far.lose(rng.choice(LOST), self.engines.now)
        self.engines.send(self.some(rng, far))

    async def ahead(self, rng: random.Random) -> None:
        far = self.far(rng)
        self.late.append(self.some(rng, far))
        far.schedule.step_up_to(far.schedule.epoch + rng.choice([1, 1, 2, 3, 4, 5, 6]), self.engines.now)
        self.engines.send(self.some(rng, far))

    async def forge(self, rng: random.Random) -> None:
        far = self.far(rng)
        datagram = self.some(rng, far)
        forged = bytearray(datagram)
        at = rng.choice([rng.randrange(len(forged)), rng.randrange(2), rng.randrange(34, 40), -rng.randrange(1, 17)])
        forged[at] ^= 1 << rng.randrange(8)
        self.engines.send(bytes(forged), rng.randrange(SOCKETS))
        if rng.random() < 0.7:
            self.engines.send(datagram)

    async def cut(self, rng: random.Random) -> None:
        datagram = self.some(rng, self.far(rng))
        self.engines.send(datagram[: rng.choice([rng.randrange(len(datagram)), 56, 55, 2, 1, 0])])
        self.engines.send(datagram + rng.randbytes(rng.choice([1, 16, 4000])))

    async def index(self, rng: random.Random) -> None:
        tid = self.far(rng).tid
        for _ in range(4):
            epoch = rng.choice([0, 1, 2, 4, 5, 6, 65535, rng.randrange(65536)])
            counter = rng.choice([0, 17, 18, 600, RECEIVE_WINDOW - 1, RECEIVE_WINDOW, 2**32 - 1, rng.randrange(2**32)])
            self.engines.send(TUNNEL + tid + struct.pack("!HI", epoch, counter) + rng.randbytes(rng.choice([16, 80])))

    async def cookie(self, rng: random.Random) -> None:
        length = rng.choice([COOKIE_BYTES, COOKIE_BYTES, COOKIE_BYTES - 1, COOKIE_BYTES + 1, 8, 9])
        far = self.far(rng)
        self.engines.send(self.sealed(far, (COOKIE_PREFIX + rng.randbytes(200))[:length]))

    async def control(self, rng: random.Random) -> None:
        inner = p.cleared(p.ip(FAR_OWN, FAR_US, p.CONTROL, rng.randbytes(rng.choice([0, 1, 24, 300]))))
        if rng.random() < 0.3:  # the answer to an echo of ours, or a packet that only looks like one
            message = b"\x70\x71\0\0pqtunech" + rng.randbytes(rng.choice([7, 8, 300]))
            inner = p.cleared(p.ip(FAR_OWN, FAR_US, p.ICMP, p.icmp(rng.choice([0, 0, 8]), 0, message)))
        self.engines.send(self.sealed(self.far(rng), inner[: rng.choice([2000, 20, 19, 10])]))

    async def control_flood(self, rng: random.Random) -> None:
        """Looked at in between: what is not delivered yet is bounded, too."""
        far = self.far(rng)
        for _ in range(rng.choice([1, 5])):
            for _ in range(50):
                self.engines.send(self.sealed(far, p.cleared(p.ip(FAR_OWN, FAR_US, p.CONTROL, b""))))
            await self.compare()

    async def knock(self, rng: random.Random) -> None:
        """Handshakes, returned cookies and hints, of one kind or of all; some are no such thing."""
        kinds = [HANDSHAKE + bytes(HANDSHAKE_BYTES - 2), COOKIE_PREFIX + bytes(COOKIE_BYTES - 8), HANDSHAKE_FAILED]
        kinds = rng.choice([kinds, [rng.choice(kinds)]])
        for _ in range(rng.choice([1, 10, 40])):
            data = rng.choice(kinds)
            self.engines.send(data if rng.random() < 0.9 else data[:-1] + b"12", rng.randrange(SOCKETS))

    async def roam(self, rng: random.Random) -> None:
        far, number = self.far(rng), rng.randrange(SOCKETS)
        self.late.append(self.some(rng, far))
        self.engines.send(self.some(rng, far), number)
        self.engines.send(self.late.pop(), rng.randrange(SOCKETS))

    async def unknown(self, rng: random.Random) -> None:
        tid = rng.randbytes(32)
        for _ in range(rng.choice([1, 5, 70])):
            self.engines.send(TUNNEL + tid + rng.randbytes(rng.choice([22, 100, 100, 1400])))

    async def junk(self, rng: random.Random) -> None:
        for _ in range(4):
            length = rng.choice([0, 1, 2, 3, 144, 1299, 2047, 2048, 2049, 9000, 65507])
            data = rng.choice([TUNNEL, TUNNEL, b"\1\0", b"\3\0", b"\2\1", b"\0\2", COOKIE_PREFIX]) + rng.randbytes(
                length
            )
            self.engines.send(data[: length if data[:2] != TUNNEL else min(length, 55)], rng.randrange(SOCKETS))

    async def train(self, rng: random.Random) -> None:
        """Datagrams that come as one message: of several tunnels, with rubbish among them."""
        inner = p.cleared(p.udp_packet(FAR_OWN, FAR_US, rng.randbytes(rng.choice([1, 300, 1000]))))
        far = self.far(rng)
        datagrams = []
        for _ in range(rng.choice([2, 5, 40])):
            if rng.random() < 0.1:
                far = self.far(rng)
            datagrams.append(self.sealed(far, inner))
            if rng.random() < 0.1:
                rubbish = rng.choice([TUNNEL, b"\1\0", self.fars[1].tid]) + rng.randbytes(len(datagrams[0]))
                datagrams.append(rubbish[: len(datagrams[0])])
        short = self.sealed(far, p.cleared(p.udp_packet(FAR_OWN, FAR_US, b"")))
        last = rng.choice([[], [b"\0"], [TUNNEL], [short]])
        self.engines.send_train(datagrams + last, rng.randrange(SOCKETS))

    async def stream(self, rng: random.Random) -> None:
        """Packets that can be joined, of several flows and with others among them."""
        far = self.far(rng)
        rows = [flow(rng, port) for port in range(rng.choice([1, 1, 3]))]
        rows.append([part for _ in range(rng.choice([0, 0, 2])) for part in packet(rng, FROM_FAR)])
        order = [number for number, row in enumerate(rows) for _ in row]
        if rng.random() < 0.5:
            rng.shuffle(order)
        datagrams = [self.sealed(far, p.cleared(rows[number].pop(0))) for number in order]
        while datagrams:
            train = [datagrams.pop(0)]
            room = min(60000 // len(train[0]), 64)
            while datagrams and len(train) < room and len(train[-1]) == len(train[0]) >= len(datagrams[0]):
                train.append(datagrams.pop(0))
            self.engines.send_train(train)

    # -- the control plane ---------------------------------------------------------------------------

    def each(self, call: Callable[[int], None]) -> bool:
        """Call for both sides; they raise the same, or nothing. Says whether it was nothing."""
        raised = []
        for number in range(2):
            try:
                call(number)
            except ValueError as error:
                raised.append(str(error))
            else:
                raised.append("")
        assert raised[0] == raised[1]
        return not raised[0]

    async def add(self, rng: random.Random) -> None:
        number = rng.choice([1, 2, *TUNNELS])
        inner = rng.choice([*PEERS, *PEERS, *PEERS, rng.choice(NO_PEERS)])
        first = rng.choice([None, None, b"first", b"", bytes(1300)])
        epoch = rng.choice([0, 0, 0, 1, 7])
        how = {"confirmed": rng.random() < 0.4, "standby": rng.random() < 0.2}
        if self.add_tunnel(number, inner, rng.randrange(SOCKETS), first=first, epoch=epoch, **how) and epoch:
            self.fars[number] = Far(number, self.engines.now, epoch)

    def add_tunnel(self, number: int, inner: str, end: int, **rest: Any) -> bool:
        def call(side: int) -> None:
            ours, _ = session(number)
            twin = self.engines.both[side]
            twin.rig.engine.add_tunnel(ours, IPv4Address(inner), twin.endpoint(end), **rest)

        return self.each(call)

    async def remove(self, rng: random.Random) -> None:
        number = rng.choice(TUNNELS)
        self.each(lambda side: self.engines.both[side].rig.engine.remove_tunnel(self.fars[number].tid))
        self.fars[number] = Far(number, self.engines.now)

    async def move(self, rng: random.Random) -> None:
        tid, inner = self.far(rng).tid, IPv4Address(rng.choice([*PEERS, *PEERS, rng.choice(NO_PEERS)]))
        self.each(lambda side: self.engines.both[side].rig.engine.move_tunnel(tid, inner))

    async def put_aside(self, rng: random.Random) -> None:
        number = rng.choice(TUNNELS)
        tid, key, nonce, now = self.fars[number].tid, rng.randbytes(32), rng.randbytes(12), rng.randrange(2**40)
        self.each(lambda side: self.engines.both[side].rig.engine.put_aside(tid, key, nonce, now))
        self.fars[number] = Far(number, self.engines.now)

    async def confirm(self, rng: random.Random) -> None:
        tid, end = self.far(rng).tid, rng.randrange(SOCKETS)
        self.each(lambda side: self.engines.both[side].rig.engine.confirm(tid, self.engines.both[side].endpoint(end)))

    async def set_mtu(self, rng: random.Random) -> None:
        tid, mtu = self.far(rng).tid, rng.choice([100, 576, 1180, 1280, 1300, 1500, 9000])
        self.narrow = True
        self.each(lambda side: self.engines.both[side].rig.engine.set_mtu(tid, mtu))

    async def expect(self, rng: random.Random) -> None:
        host = rng.choice(["127.0.0.1", "::1", "127.0.0.77", "192.0.2.1", "2001:db8::1"])
        self.each(lambda side: self.engines.both[side].rig.engine.expect(host))

    async def hold(self, rng: random.Random) -> None:
        inner, report = IPv4Address(rng.choice([*PEERS, "10.43.9.9"])), rng.random() < 0.5
        self.each(lambda side: self.engines.both[side].rig.engine.hold(inner, report=report))

    async def drop_held(self, rng: random.Random) -> None:
        inner, unreachable = IPv4Address(rng.choice(PEERS)), rng.random() < 0.7
        self.each(lambda side: self.engines.both[side].rig.engine.drop_held(inner, unreachable=unreachable))

    async def send_inner(self, rng: random.Random) -> None:
        tid, data = rng.choice([self.far(rng).tid, self.far(rng).tid, bytes(32)]), rng.randbytes(size(rng))
        self.each(lambda side: self.engines.both[side].rig.engine.send_inner(tid, data))

    async def send_datagram(self, rng: random.Random) -> None:
        length, end = rng.choice([0, 1, 1299, 65507, 65508]), rng.randrange(SOCKETS)
        data, nowhere = rng.randbytes(length), rng.random() < 0.1

        def call(side: int) -> None:
            twin = self.engines.both[side]
            twin.rig.engine.send_datagram(data, ("127.0.0.1", 0) if nowhere else twin.endpoint(end))

        self.each(call)

    async def wait(self, rng: random.Random) -> None:
        self.engines.pass_time(rng.choice(TIMES))
        await self.compare()

    # -- the play --------------------------------------------------------------------------------------

    async def compare(self) -> None:
        seen = await self.engines.compare()
        self.seen.update(seen.stats["drops"], *(tunnel["drops"] for tunnel in seen.stats["tunnels"]))
        self.seen.update(type(event).__name__ for event in seen.events)
        for event in seen.events:
            if isinstance(event, Dead):
                number = next(number for number, far in self.fars.items() if far.tid == event.tid)
                self.fars[number] = Far(number, self.engines.now)

    async def play(self, actions: list[tuple[str, int]]) -> None:
        for number, inner in ((1, PEERS[0]), (2, PEERS[1])):
            self.add_tunnel(number, inner, number)
        used, count = None, 0
        for name, seed in actions:
            if name in SIDES and (SIDES[name] != used or count >= LOOK_EVERY):
                await self.compare()
                used, count = SIDES[name], 0
            count += 1
            if name in SIDES:
                action: Callable[[random.Random], Awaitable[None]] = getattr(self, name)
                await action(random.Random(seed))
        await self.compare()


PROGRAM = ["program", "odd_program", "row", "flood", "long_program", "large"]
NETWORK = ["good", "odd_inner", "replay", "shuffle", "come_late", "lose", "ahead", "forge", "cut", "index", "cookie"]
NETWORK += ["control", "control_flood", "knock", "roam", "unknown", "junk", "train", "stream", "stream"]
CONTROL = ["add", "add", "add", "add", "remove", "hold", "drop_held", "send_inner", "send_datagram", "wait", "wait"]
CONTROL += ["move", "move", "put_aside", "confirm", "set_mtu", "expect", "drop_held"]
SIDES = {name: side for side, names in enumerate((PROGRAM, NETWORK, CONTROL)) for name in names}

# Several actions of one side in a row, because each change of sides costs a look. An action without a name does
# nothing: this is what others shrink to.
ROW = 6
_SEEDS = st.integers(0, 2**32 - 1)
_ROWS = st.sampled_from([PROGRAM, NETWORK, NETWORK, CONTROL]).flatmap(
    lambda names: st.lists(st.tuples(st.sampled_from(["", *names]), _SEEDS), min_size=ROW, max_size=ROW)
)
SCRIPTS = st.lists(_ROWS, min_size=12, max_size=12).map(lambda rows: [action for row in rows for action in row])

# What scripts meet. The rest needs 2^32 packets, 65536 epochs, a thousand addresses, or a broken machine.
REASONS = {
    *("tun_not_ipv4", "tun_length", "tun_source", "tun_destination", "tun_too_big", "unconfirmed", "control_limit"),
    *("held_full", "held_timeout", "held_dropped", "early_full", "send_emsgsize", "send_unknown_tunnel"),
    *("datagram_unknown", "tunnel_short", "unknown_tunnel", "handshake_unwanted", "handshake_limit"),
    *("handshake_prefix_limit", "hint_limit", "hint_unwanted", "authentication", "replay", "counter_ahead"),
    *("epoch_ahead", "old_epoch", "cookie_length", "inner_short", "inner_not_ipv4", "inner_header_length"),
    *("inner_total_length", "inner_options", "inner_source_route", "inner_fragment", "inner_tcp_length"),
    *("inner_udp_length", "inner_icmp_quote", "inner_icmp_redirect", "inner6_short", "inner6_length"),
    *("inner6_hop_by_hop", "inner6_routing", "inner6_options", "inner6_fragment", "inner6_tcp_length"),
    *("inner6_udp_length", "inner6_icmp_type", "inner6_icmp_quote", "cookie_unwanted"),
}
EVENTS = {kind.__name__ for kind in (Alive, Control, Cookie, Datagram, Dead, Roamed, Wanted)}


# Of a server, so few that scripts meet them.
HANDSHAKES: Final = HandshakeLimits(per_second=80, per_prefix=8)


def run(actions: list[tuple[str, int]], *, virtio: bool, server: bool, deliver_to: str | None = None) -> Script:
    """``server``: it takes handshakes, and has a socket of both families."""
    handshakes = HANDSHAKES if server else None

    async def scene() -> Script:
        async with twins(virtio=virtio, deliver_to=deliver_to, handshakes=handshakes, dual=server) as engines:
            script = Script(engines, deliver_to or OWN)
            await script.play(actions)
            return script

    return asyncio.run(scene())


@pytest.mark.parametrize("virtio", [False, True], ids=["plain", "virtio"])
@settings(max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # add Phase.shrink to find a cause
@given(SCRIPTS, st.booleans(), st.sampled_from([None, None, DELIVER_TO]))
def test_both_engines_do_the_same(
    virtio: bool, actions: list[tuple[str, int]], server: bool, deliver_to: str | None
) -> None:
    run(actions, virtio=virtio, server=server, deliver_to=deliver_to)


@pytest.mark.parametrize("virtio", [False, True], ids=["plain", "virtio"])
def test_scripts_reach_everything(virtio: bool) -> None:
    rng, seen, joined, compared = random.Random(5), set(), Counter[int](), Counter[str]()
    for number in range(12):
        rows = [rng.choice([PROGRAM, NETWORK, NETWORK, CONTROL]) for _ in range(30)]
        actions = [(rng.choice(names), rng.randrange(2**32)) for names in rows for _ in range(ROW)]
        script = run(actions, virtio=virtio, server=number % 2 == 1)
        seen |= script.seen
        joined.update(gso.HEADER.unpack_from(message)[1] for message in script.engines.native.messages)
        compared += script.engines.compared
    assert seen >= REASONS | EVENTS
    assert compared["delivered"] > 1000
    assert compared["sent"] > 1000
    assert not virtio or min(joined[gso.TCPV4], joined[gso.TCPV6]) > 20
