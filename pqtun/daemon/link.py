"""One peer's way to a working tunnel, and its state for people."""

import asyncio
import logging
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

from pqtun.daemon.connector import Address, ConnectError, Connector, find_ports
from pqtun.daemon.peers import Peer
from pqtun.protocol import control
from pqtun.pump.engine import Engine
from pqtun.pump.icmp import echo_request

log = logging.getLogger(__name__)

# A handshake has no answer of its own: without an authenticated packet within these seconds a fresh one is sent.
CONFIRM_SECONDS: Final = (1.0, 2.0, 4.0)
ECHO_SECONDS: Final = 0.25  # between echoes while an answer is waited for
RETRY_SECONDS: Final = (1.0, 30.0)  # pause after a failure, doubled up to the second figure


class Link:
    """Connects to one peer whenever that is asked for, one attempt at a time."""

    def __init__(
        self, peer: Peer, engine: Engine, connector: Connector, own: IPv4Address, mtu: int, clock: Callable[[], float]
    ) -> None:
        self.peer = peer
        self.tid: bytes | None = None
        self.error: str | None = None
        self.progress: tuple[int, int] | None = None
        self.resolver: Address | None = None
        self.address: IPv4Address | None = None  # the real one of the tunnel, or the one being tried
        self._engine = engine
        self._connector = connector
        self._own = own
        self._mtu = mtu
        self._clock = clock
        self._alive = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pause = RETRY_SECONDS[0]
        self._not_before = 0.0

    @property
    def state(self) -> str:
        """One word: up, connecting, failed or idle."""
        if self.tid is not None and self._alive.is_set():
            return "up"
        if self._task is not None:
            return "connecting"
        return "failed" if self.error else "idle"

    @property
    def idle(self) -> bool:
        """Whether there is neither a tunnel nor an attempt."""
        return self.tid is None and self._task is None

    def want(self) -> None:
        """Begin to connect unless there is a tunnel or an attempt. Held packets fail at once right after a failure."""
        if not self.idle:
            return
        if self._clock() < self._not_before:
            self.refuse()
            return
        self._engine.hold(self.peer.inner)
        self._task = asyncio.ensure_future(self._connect())
        self._task.add_done_callback(self._ended)

    def found(self, peer: Peer, resolver: Address) -> None:
        """Take what a lookup says of the peer. New addresses or ports are tried at once, whatever failed before."""
        if (peer.addresses, peer.announcement) != (self.peer.addresses, self.peer.announcement):
            self._not_before = 0.0
        self.peer = peer
        self.resolver = resolver

    def refuse(self) -> None:
        """Do not connect now: the senders of held packets are told."""
        self._engine.drop_held(self.peer.inner, unreachable=True)

    def give_up(self, why: str) -> None:
        """End an attempt under way; ``why`` is one line for people."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self.progress = None
            self.error = why
            self._drop_tunnel()
            self.refuse()

    def alive(self, tid: bytes) -> bool:
        """Take note that a packet of a tunnel has authenticated; say whether it is this link's."""
        if tid != self.tid:
            return False
        self._alive.set()
        return True

    def dead(self, tid: bytes) -> None:
        """The engine has removed this tunnel."""
        if tid == self.tid:
            self.tid = None
            self._alive.clear()

    async def close(self) -> None:
        """Stop an attempt under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is not self._task:
            return  # given up
        self._task = None
        self.progress = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self.error = None
            self._pause = RETRY_SECONDS[0]
            return
        self.error = str(error) if isinstance(error, ConnectError) else f"internal error ({type(error).__name__})"
        if not isinstance(error, ConnectError):
            log.error("connecting to %s failed", self.peer.name, exc_info=error)
        self._not_before = self._clock() + self._pause
        self._pause = min(2 * self._pause, RETRY_SECONDS[1])
        self.refuse()
        log.warning("no tunnel to %s: %s", self.peer.name, self.error)

    async def _connect(self) -> None:
        failure: ConnectError | None = None
        for address in self.peer.candidates:
            try:
                await self._connect_to(address)
            except ConnectError as error:
                failure = error
                continue
            log.info("tunnel to %s (%s) is up", self.peer.name, address)
            return
        raise failure or ConnectError("no_address", "its DNS answer had no IPv4 address")

    async def _connect_to(self, address: IPv4Address) -> None:
        ports = await find_ports(self.peer, address, self.resolver)
        self.address = address
        for seconds in CONFIRM_SECONDS:
            datagram, session = await self._connector.session(self.peer, ports, self._note_progress)
            self._drop_tunnel()
            self._alive.clear()
            self._engine.send_datagram(datagram, ports.tunnel)
            self.tid = session.tid
            hello = control.encode([control.Hello(control.PROTOCOL_VERSION, 0, self._mtu)], self._own)
            try:
                self._engine.add_tunnel(session, self.peer.inner, ports.tunnel, first=hello)
            finally:
                session.erase()
            if await self._answers(session.tid, seconds):
                return
        self._drop_tunnel()
        raise ConnectError("handshake", f"no answer to the handshake from {address} port {ports.tunnel[1]}")

    async def _answers(self, tid: bytes, seconds: float) -> bool:
        """Wait until a packet of the tunnel authenticates.

        A PQConnect peer does not know the hello, but its kernel answers an echo; one that comes while it still works
        on the handshake is lost, so a few are sent.
        """
        deadline = self._clock() + seconds
        while (left := deadline - self._clock()) > 0:
            self._engine.send_inner(tid, echo_request(self._own))
            try:
                await asyncio.wait_for(self._alive.wait(), min(left, ECHO_SECONDS))
            except TimeoutError:
                continue
            return True
        return False

    def _drop_tunnel(self) -> None:
        if self.tid is not None:
            self._engine.remove_tunnel(self.tid)
            self.tid = None

    def _note_progress(self, verified: int, total: int) -> None:
        self.progress = (verified, total)
