"""What keeps a client's tunnel of use while it is up: pings, path MTU, and the introduction to each other."""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pqtun.daemon.connector import route_mtu
from pqtun.daemon.liveness import Liveness, Verdict
from pqtun.daemon.pathmtu import PathMtu
from pqtun.daemon.stalls import Stalls, Step
from pqtun.protocol import control
from pqtun.protocol.constants import TUNNEL_OVERHEAD
from pqtun.pump.engine import Endpoint, Engine, TunnelStats
from pqtun.pump.icmp import echo_request

PQCONNECT_MTU: Final = 1200  # bytes: what its TUN device takes, and answers to probes with
MAX_QUESTIONS: Final = 16  # to a peer, that wait for an answer
HELLOS: Final = 5  # so often a hello is sent that nothing answers; a PQConnect peer never does
HELLO_INTERVAL: Final = 1.0
# Anybody can send hints from the server's address. On a path that loses packets each may, with bad luck, end a tunnel.
HINT_INTERVAL: Final = 10.0
_TOKEN_BYTES: Final = 8
_OUTER_HEADERS: Final = {4: 20 + 8, 6: 40 + 8}  # bytes of IP and UDP


@dataclass(frozen=True, slots=True)
class Own:
    """What this host says of itself: TUN address, largest inner packet in bytes, feature bits."""

    address: IPv4Address
    mtu: int
    features: int

    def hello(self, resumptions: list[control.Resume] | None = None, mtu: int | None = None) -> bytes:
        """Return the control packet with a hello, ``mtu`` bytes in it instead of our own where a path takes less."""
        item = control.Hello(control.PROTOCOL_VERSION, self.features, mtu or self.mtu)
        return control.encode([item, *(resumptions or [])], self.address)


@dataclass(frozen=True, slots=True)
class _Question:
    asked: float
    size: int  # bytes, where the size is what is asked about
    endpoint: Endpoint | None  # where the peer has moved to, where that is


class Upkeep:
    """Watches one tunnel that is up."""

    def __init__(
        self, tid: bytes, address: IPv4Address | IPv6Address, engine: Engine, own: Own, clock: Callable[[], float]
    ) -> None:
        """``address``: the server's, outside."""
        self.tid = tid
        self.address = address
        self.hello: control.Hello | None = None  # the peer's; None: it is PQConnect, or has not said it yet
        self.rtt: float | None = None  # seconds
        self._engine = engine
        self._own = own
        self._clock = clock
        self._liveness = self._new_liveness()
        self._stalls = Stalls()
        self._hellos = HELLOS
        self._hello_at = clock() + HELLO_INTERVAL
        self._hint_at = clock()  # from then on a hint counts
        self._moved: Endpoint | None = None
        self._questions: OrderedDict[bytes, _Question] = OrderedDict()
        self._path = self._new_path()
        self._told: int | None = None  # the MTU that the engine and the peer know of
        self._answered: float | None = None  # when a question was sent, not of size, that was answered last

    @property
    def mtu(self) -> int:
        """Bytes of the largest inner packet for this peer."""
        return self._path.mtu

    def introduced(self, hello: control.Hello) -> bool:
        """Take what the peer says of itself, once; say whether that is news."""
        self._hellos = 0
        if self.hello is not None:
            return False
        self.hello = hello
        self._liveness = self._new_liveness()
        self._path = self._new_path()
        self._note_mtu(tell=False)
        return True

    def answered(self, token: bytes) -> None:
        """A pong or the answer to an echo has come."""
        if self._stalls.answered(token):
            return
        question = self._questions.pop(token, None)
        if question is None:
            return
        self.rtt = self._clock() - question.asked
        if not question.size:
            self._answered = question.asked
        if question.endpoint is not None:
            self._engine.confirm(self.tid, question.endpoint)
            if question.endpoint == self._moved:
                self._moved = None
        if question.size:
            self._path.answered(question.size, self._clock())
            self._note_mtu()

    def roamed(self, endpoint: Endpoint) -> None:
        """The peer's packets come from elsewhere: find out whether it is reached there."""
        self._moved = endpoint
        self._ask(endpoint=endpoint)

    def suspect(self, *, path: bool) -> None:
        """The peer may be out of reach: ask at once. ``path``: the way to it may be another one; else it is a hint."""
        now = self._clock()
        if not path:
            if now < self._hint_at:
                return
            self._hint_at = now + HINT_INTERVAL
        self._liveness.suspect()
        if path:
            self._path.check(now)

    def recovered(self) -> None:
        """The peer was taken to be out of reach, and is not."""
        self._liveness = self._new_liveness()
        self._path.check(self._clock())

    def tick(self, stats: TunnelStats, *, used: bool) -> bool:
        """Do what is due, about twice a second; say whether the tunnel is lost. ``used``: a program needs the peer."""
        now = self._clock()
        verdict = self._liveness.tick(now, last_sent=stats.last_sent, last_received=stats.last_received, used=used)
        stalled = self.hello is None and self._stalled(stats, now)
        if verdict is Verdict.LOST and not stalled:
            return True
        if verdict is not Verdict.NOTHING:
            self._ask()
        if self._moved is not None:
            self._ask(endpoint=self._moved)
        if self._hellos and now >= self._hello_at:
            self._hellos -= 1
            self._hello_at = now + HELLO_INTERVAL
            self._engine.send_inner(self.tid, self._own.hello(mtu=self._told))
        if used:
            size = self._path.tick(now, self._answered)
            self._note_mtu()
            if size is not None:
                self._ask(size=size)
                if self._path.doubtful:
                    self._ask()
        return False

    def _stalled(self, stats: TunnelStats, now: float) -> bool:
        """Do what a PQConnect peer needs that has lost too many packets; say whether its silence may be that."""
        step = self._stalls.tick(stats, now)
        if step is Step.NEXT_EPOCH:
            self._engine.next_epoch(self.tid)
        if step is not Step.NOTHING:
            self._engine.send_inner(self.tid, echo_request(self._own.address, self._stalls.token))
        return self._stalls.excuses(now)

    def _ask(self, *, size: int = 0, endpoint: Endpoint | None = None) -> None:
        """Send what is answered; with ``size`` bytes, there and back, if they are what is asked about."""
        token = os.urandom(_TOKEN_BYTES)
        self._questions[token] = _Question(self._clock(), size, endpoint)
        if len(self._questions) > MAX_QUESTIONS:
            self._questions.popitem(last=False)
        if self.hello is not None:
            packet = control.encode([control.Ping(token)], self._own.address, size)
        else:
            packet = echo_request(self._own.address, token, size)
        self._engine.send_inner(self.tid, packet, only=endpoint)

    def _new_liveness(self) -> Liveness:
        resumable = self.hello is not None and self.hello.features & control.FEATURE_RESUME
        return Liveness(self._clock(), patient=not resumable)

    def _new_path(self) -> PathMtu:
        wanted = self._own.mtu if self.hello is not None else min(self._own.mtu, PQCONNECT_MTU)
        if self.hello is not None and self.hello.mtu:
            wanted = min(wanted, self.hello.mtu)
        outer = route_mtu(self.address)
        if outer is not None:
            wanted = min(wanted, outer - _OUTER_HEADERS[self.address.version] - TUNNEL_OVERHEAD)
        return PathMtu(wanted, self._clock())

    def _note_mtu(self, *, tell: bool = True) -> None:
        """Have both ends keep to what the path takes. ``tell``: the peer does not know yet."""
        mtu = self._path.mtu
        if mtu == self._told or (self.hello is None and mtu == PQCONNECT_MTU and self._told is None):
            return
        self._engine.set_mtu(self.tid, mtu)
        if (tell or mtu != self._own.mtu) and self.hello is not None:
            self._hellos, self._hello_at = HELLOS, self._clock()
        self._told = mtu
