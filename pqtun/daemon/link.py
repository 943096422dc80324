"""One peer's way to a working tunnel and to the next one, and its state for people."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from math import inf
from typing import Final

from pqtun.daemon.backoff import GIVE_UP_SECONDS, Backoff
from pqtun.daemon.connector import Address, ConnectError, Connector
from pqtun.daemon.peers import Peer
from pqtun.daemon.ticket import Ticket, Tickets
from pqtun.daemon.upkeep import Own, Upkeep
from pqtun.protocol import control
from pqtun.pump.engine import Endpoint, Engine, TunnelStats
from pqtun.pump.icmp import echo_request

log = logging.getLogger(__name__)

# A handshake has no answer of its own: without an authenticated packet within these seconds a fresh one is sent. Where
# round trips take longer, it gets more time, by what the key server has taken; and so does each later one.
CONFIRM_SECONDS: Final = (1.0, 1.0, 2.0, 4.0)
CONFIRM_ROUND_TRIPS: Final = 1.5
NUDGE_SECONDS: Final = 0.25  # between hellos and echoes while an answer is waited for
MIN_PAUSE: Final = 1.0  # between handshakes, however many packets wait for one, and however often a server ends tunnels
RETRY_PATIENCE: Final = 3.0  # seconds of a series of attempts at a peer that was out of reach before
DIRECT_PATIENCE: Final = 10.0  # the same where programs may go without a tunnel instead
QUIET_RETRY_SECONDS: Final = 60.0  # between attempts for connections that are open and silent
REMEMBER_SECONDS: Final = 300.0  # so long is it known, and shown, that there was no tunnel to be had
# A tunnel ends with epoch 65,535, after 22.7 days. It is replaced 4.5 hours before, 2 days before if nothing uses it.
REPLACE_EPOCH: Final = 65_000
REPLACE_IDLE_EPOCH: Final = 60_000


class _Attempt:
    """A handshake that was sent, and what came in its tunnel."""

    def __init__(self, ticket: Ticket, address: IPv4Address | IPv6Address, *, standby: bool) -> None:
        self.ticket = ticket
        self.tid = ticket.tid
        self.address = address
        self.standby = standby
        self.alive = False
        self.hello: control.Hello | None = None
        self.event = asyncio.Event()


class Link:
    """Connects to one peer whenever that is asked for, one attempt at a time, and watches what came of it."""

    def __init__(
        self,
        peer: Peer,
        engine: Engine,
        connector: Connector,
        own: Own,
        clock: Callable[[], float],
        *,
        index: dict[bytes, "Link"],
        failed: Callable[["Link"], None],
    ) -> None:
        """``index``: the link enters its tunnels there, by id.

        ``failed``: called when a series of attempts has, unless this host had no route to try them on.
        """
        self.peer = peer
        self.upkeep: Upkeep | None = None  # of the tunnel that is up, or was until it fell silent
        self.error: str | None = None
        self.progress: tuple[int, int] | None = None
        self.resolver: Address | None = None
        self.address: IPv4Address | IPv6Address | None = None  # the real one of the tunnel, or the one being tried
        self.allows_direct = False  # whether programs may go without a tunnel
        self._index = index
        self._failed = failed
        self._engine = engine
        self._connector = connector
        self._own = own
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._attempt: _Attempt | None = None
        self._kick = asyncio.Event()
        self._tickets = Tickets()
        self._ticket: Ticket | None = None  # of the tunnel that is up
        self._lost: float | None = None  # since when the tunnel is taken to be out of reach
        self._replacing = False
        self._failures = 0
        self._begun = -inf  # the latest attempt
        self._not_before = 0.0
        self._retry_at = 0.0

    @property
    def tid(self) -> bytes | None:
        """The tunnel that is up, or was until it fell silent."""
        return None if self.upkeep is None else self.upkeep.tid

    @property
    def state(self) -> str:
        """One word: up, connecting, failed or idle."""
        if self.tid is not None and self._lost is None:
            return "up"
        if self._task is not None:
            return "connecting"
        return "failed" if self.error else "idle"

    @property
    def idle(self) -> bool:
        """Whether there is no attempt, and no tunnel that serves."""
        return self._task is None and (self.tid is None or self._lost is not None or self._replacing)

    @property
    def refuses(self) -> bool:
        """Whether an attempt has failed just now, so that there is none yet."""
        return self._clock() < self._not_before

    def want(self) -> None:
        """Begin to connect unless there is a tunnel that serves. A packet that waits hurries an attempt under way."""
        if self._task is not None:
            self._kick.set()
        elif self.idle:
            if self.refuses:
                self.refuse()
                return
            if not self._replacing and (self.upkeep is None or self._tickets):
                self._engine.hold(self.peer.inner)
            self._task = asyncio.ensure_future(self._connect())
            self._task.add_done_callback(self._ended)

    def found(self, peer: Peer, resolver: Address) -> None:
        """Take what a lookup says of the peer. What is new is tried at once, and with patience."""
        if set(peer.addresses) != set(self.peer.addresses) or peer.announcement != self.peer.announcement:
            self._failures, self._not_before = 0, 0.0
            self._kick.set()
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
            self._fail(why)

    def forget(self) -> None:
        """Another peer has this private address now: end everything and erase the secrets."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._drop_attempt()
        self._drop_tunnel()
        self._forget_tickets()

    def rest(self) -> bool:
        """Erase what is out of date; say whether nothing is left that the next lookup or packet would need."""
        now = self._clock()
        self._tickets.expire(now)
        failed = self.error is not None and now - self._begun < REMEMBER_SECONDS
        return self._task is None and self.upkeep is None and not self._tickets and not failed

    async def close(self) -> None:
        """Stop an attempt under way; erase what could continue the tunnel."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._forget_tickets()

    # -- what the engine says --------------------------------------------------------------------

    def alive(self, tid: bytes) -> None:
        """Take note that a packet of this tunnel has authenticated."""
        if self._attempt is not None and tid == self._attempt.tid and not self._attempt.alive:
            self._attempt.alive = True
            self._attempt.event.set()

    def dead(self, tid: bytes) -> None:
        """The engine has removed this tunnel."""
        self._index.pop(tid, None)
        if tid == self.tid:
            self.upkeep, self._lost, self._replacing = None, None, False

    def ended(self, tid: bytes, *, resumable: bool) -> None:
        """The server has ended this tunnel."""
        if tid == self.tid:
            self._drop_tunnel()
            if resumable:  # there are too many: connections that are silent wait for another to become free
                self._retry_at = self._clock() + QUIET_RETRY_SECONDS
            else:
                self._forget_tickets()

    def introduced(self, tid: bytes, hello: control.Hello) -> bool:
        """Take what the peer says of itself in this tunnel, once; say whether that is news."""
        if self._attempt is not None and tid == self._attempt.tid:
            news, self._attempt.hello = self._attempt.hello is None, self._attempt.hello or hello
            self._attempt.event.set()
            return news
        if self.upkeep is None or tid != self.upkeep.tid or not self.upkeep.introduced(hello):
            return False
        self._keep_ticket(hello)
        return True

    def answered(self, tid: bytes, token: bytes) -> None:
        """A pong or the answer to an echo has come."""
        if self.upkeep is not None and tid == self.upkeep.tid:
            self.upkeep.answered(token)

    def roamed(self, tid: bytes, endpoint: Endpoint) -> None:
        """The peer's packets come from elsewhere."""
        if self.upkeep is not None and tid == self.upkeep.tid:
            self.upkeep.roamed(endpoint)

    # -- the tunnel that is up -------------------------------------------------------------------

    def suspect(self, *, path: bool) -> None:
        """The peer may be out of reach: look at once. ``path``: the way to it may be another one."""
        if self.upkeep is not None and self._lost is None:
            self.upkeep.suspect(path=path)
        elif path:
            self._retry_at = self._clock()
            self._kick.set()

    def tick(self, stats: TunnelStats | None, *, used: bool, connected: bool) -> bool:
        """Do what is due, about twice a second; say whether to connect (``want``).

        ``stats``: of the tunnel that is up. ``used``: whether a program needs the peer; ``connected``: whether one has
        a connection open.
        """
        now = self._clock()
        if self._task is not None:
            if self._attempt is None and stats is not None and self._heard_since_lost(stats):
                self._recover()
            return False
        if self.upkeep is None:
            return connected and bool(self._failures or self._tickets) and now >= self._retry_at
        if stats is None:  # the engine is about to say that it is dead
            return False
        due = max(stats.send_epoch, stats.recv_epoch) >= (REPLACE_EPOCH if used else REPLACE_IDLE_EPOCH)
        self._replacing = due and now >= self._retry_at
        if self._replacing:
            return True
        if not self.upkeep.tick(stats, used=used):
            return False
        if used:
            self._lost = now
        else:
            self._drop_tunnel()
        return used

    def _heard_since_lost(self, stats: TunnelStats) -> bool:
        return self._lost is not None and stats.last_received is not None and stats.last_received > self._lost

    def _recover(self) -> None:
        """The tunnel works again before the next attempt at another one."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._lost, self._failures = None, 0
        if self.upkeep is not None:
            self.upkeep.recovered()
            self._engine.move_tunnel(self.upkeep.tid, self.peer.inner)

    # -- attempts --------------------------------------------------------------------------------

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is not self._task:
            return  # given up
        self._task = None
        self.progress = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if not isinstance(error, ConnectError):
            log.error("connecting to %s failed", self.peer.name, exc_info=error)
        self._fail(str(error) if isinstance(error, ConnectError) else f"internal error ({type(error).__name__})")
        log.warning("no tunnel to %s: %s", self.peer.name, self.error)
        offline = isinstance(error, ConnectError) and error.reason == "no_route"
        if self.state == "failed" and not offline:  # else the tunnel to be replaced serves still
            self._failed(self)

    def _fail(self, why: str) -> None:
        self.progress = None
        self.error = why
        self._failures += 1
        self._not_before = self._clock() + MIN_PAUSE
        self._retry_at = self._clock() + QUIET_RETRY_SECONDS
        self._drop_attempt()
        if self._replacing and self._lost is None:
            return  # the old one serves still
        self._drop_tunnel()
        self.refuse()

    async def _connect(self) -> None:
        """Attempts until one comes to something. Raises ConnectError."""
        patience = DIRECT_PATIENCE if self.allows_direct else GIVE_UP_SECONDS
        backoff = Backoff(self._clock(), RETRY_PATIENCE if self._failures else patience)
        avoid: list[IPv4Address | IPv6Address] = []
        for number in count():
            await asyncio.sleep(max(self._begun + MIN_PAUSE - self._clock(), 0.0))
            self._begun = self._clock()
            try:
                await self._handshake(avoid, CONFIRM_SECONDS[min(number, len(CONFIRM_SECONDS) - 1)])
            except ConnectError as error:
                pause = backoff.pause(self._clock()) if self._worth_repeating(error) else None
                if pause is None:
                    raise
            else:
                return
            await self._wait(pause)

    def _worth_repeating(self, error: ConnectError) -> bool:
        """A handshake may be lost. All else may change where there was a tunnel once: a server that is being restarted.

        A server that was never there is asked for ten seconds: whoever answers a lookup has us send to whom he likes.
        """
        if error.reason == "handshake":
            return True
        return error.reason in ("no_answer", "network", "no_route") and self.peer.proven

    async def _wait(self, pause: float) -> None:
        """Wait until the next attempt, which a packet that a program sends brings forward."""
        self._kick.clear()
        if self.upkeep is None or self._tickets:
            self._engine.hold(self.peer.inner, report=True)
        try:
            async with asyncio.timeout(pause):
                await self._kick.wait()
        except TimeoutError:
            pass

    async def _handshake(self, avoid: list[IPv4Address | IPv6Address], seconds: float) -> None:
        """One handshake, and its tunnel if it is answered. Raises ConnectError."""
        contact = await self._connector.contact(self.peer, self.resolver, avoid=avoid, on_progress=self._note_progress)
        seconds = max(seconds, min(CONFIRM_ROUND_TRIPS * contact.round_trip, CONFIRM_SECONDS[-1]))
        session = contact.session
        ticket = Ticket(session, self._clock())
        attempt = _Attempt(ticket, contact.address, standby=self.upkeep is not None or bool(self._tickets))
        self._attempt = attempt
        self.address = contact.address
        hello = self._own.hello(self._tickets.resumptions(attempt.tid))
        try:
            self._engine.send_datagram(contact.datagram, contact.tunnel)
            self._index[attempt.tid] = self
            self._engine.add_tunnel(session, self.peer.inner, contact.tunnel, first=hello, standby=attempt.standby)
        finally:
            session.erase()
        try:
            answered = await self._answers(attempt, hello, seconds)
        except BaseException:
            self._drop_attempt()
            raise
        if not answered or self._stats(attempt.tid) is None:  # this host may have slept until the engine removed it
            self._drop_attempt()
            avoid.append(contact.address)
            raise ConnectError(
                "handshake", f"no answer to the handshake from {contact.address} port {contact.tunnel[1]}"
            )
        self._attempt = None
        self._take(attempt)

    async def _answers(self, attempt: _Attempt, hello: bytes, seconds: float) -> bool:
        """Wait for the peer's first packet, or where its tunnels can be continued for its hello.

        The server answers the hello once it has moved the tunnel to its old address; what programs send must not come
        there before. A PQConnect peer does not know the hello, but its kernel answers an echo; one that comes while it
        still works on the handshake is lost, so a few are sent.
        """
        resuming = bool(self._tickets)
        begin = self._clock()
        # One that answers echoes and no hello is no pqtun any more, or has lost several of them.
        while self._clock() - begin < seconds * (1 + (resuming and attempt.alive)):
            if attempt.hello is not None or (attempt.alive and not resuming):
                return True
            for tid in {attempt.tid, self.tid or attempt.tid}:
                self._engine.send_inner(tid, echo_request(self._own.address))
            if resuming and self._clock() > begin:
                self._engine.send_inner(attempt.tid, hello)
            attempt.event.clear()
            try:
                async with asyncio.timeout(NUDGE_SECONDS):
                    await attempt.event.wait()
            except TimeoutError:
                continue
        return attempt.alive

    def _take(self, attempt: _Attempt) -> None:
        """The new tunnel is up."""
        self.peer = replace(self.peer, good=attempt.address)
        self.error, self._failures = None, 0
        if self.upkeep is not None and not self._tickets and self._works_again(self.upkeep.tid):
            # The way there was interrupted, and connections live in the old tunnel only.
            self._remove(attempt.tid)
            attempt.ticket.erase()
            self._lost = None
            self.upkeep.recovered()
            return
        if attempt.standby:
            self._engine.move_tunnel(attempt.tid, self.peer.inner)
        continued = bool(self._tickets)
        self._drop_tunnel()
        self._forget_tickets()
        self._ticket = attempt.ticket
        self.upkeep = Upkeep(attempt.tid, attempt.address, self._engine, self._own, self._clock)
        if attempt.hello is not None:
            self.upkeep.introduced(attempt.hello)
            self._keep_ticket(attempt.hello)
        log.info("tunnel to %s (%s) is up%s", self.peer.name, attempt.address, " again" if continued else "")

    def _works_again(self, tid: bytes) -> bool:
        stats = self._stats(tid)
        return stats is not None and self._heard_since_lost(stats)

    def _stats(self, tid: bytes) -> TunnelStats | None:
        return next((tunnel for tunnel in self._engine.stats().tunnels if tunnel.tid == tid), None)

    def _keep_ticket(self, hello: control.Hello) -> None:
        if hello.features & control.FEATURE_RESUME and self._ticket is not None:
            self._tickets.keep(self._ticket)
            self._ticket = None

    def _forget_tickets(self) -> None:
        self._tickets.erase()
        if self._ticket is not None:
            self._ticket.erase()
            self._ticket = None

    def _drop_attempt(self) -> None:
        """Forget a handshake that nobody answered here; the server may have heard it all the same."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._remove(attempt.tid)
            if self._tickets:
                self._tickets.keep(attempt.ticket)
            else:
                attempt.ticket.erase()

    def _drop_tunnel(self) -> None:
        if self.upkeep is not None:
            self._remove(self.upkeep.tid)
        self.upkeep, self._lost, self._replacing = None, None, False

    def _remove(self, tid: bytes) -> None:
        self._engine.remove_tunnel(tid)
        self._index.pop(tid, None)

    def _note_progress(self, verified: int, total: int) -> None:
        self.progress = (verified, total)
