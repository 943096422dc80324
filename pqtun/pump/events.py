"""The queue between an engine and its listener."""

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Callable

from pqtun.pump.engine import Control, Cookie, Datagram, Event, Listener, Roamed
from pqtun.pump.limits import EVENT_BATCH, QUEUED_DATAGRAMS, QUEUED_EVENTS_PER_TUNNEL, QUEUED_PEER_EVENTS

log = logging.getLogger(__name__)

_PeerEvent = Control | Cookie


class EventQueue:
    """Delivers events in turns of the event loop of their own: first, in order, those of tunnels, then datagrams.

    Neither takes a whole turn, so that peers who talk much do not keep others from connecting.
    What anybody on the network can cause, what a peer can cause and what all peers together can cause is bounded, each
    by itself. The rest is bounded by the tables that it comes from. Of datagrams the expected go first, and nobody who
    floods the queue decides which of the others stay.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, datagram_seconds: float = 0.0) -> None:
        """``datagram_seconds``: in one turn datagrams are delivered for so long, one at least; the rest waits.

        So are the events of tunnels before them. Where packets move on the event loop too, they pass between two
        handshakes if that is 0; of the events of tunnels, which cost less, several are delivered then.
        """
        self._loop = loop
        self._datagram_seconds = datagram_seconds
        self._listener: Listener | None = None
        self._queue: deque[Event] = deque()
        self._expected: deque[Datagram] = deque()
        self._others: deque[Datagram] = deque()
        self._peer_events: Counter[bytes] = Counter()  # by the tunnel's id; how many there are in all
        self._all_peer_events = 0
        self._roamed: dict[bytes, Roamed] = {}  # where each peer is that one waits for: only the last place counts
        self._scheduled = False
        self.listener_errors = 0

    def start(self, listener: Listener) -> None:
        """Begin to deliver."""
        self._listener = listener
        self._schedule()

    def put(self, event: Event) -> bool:
        """Queue an event for delivery. False if there are too many of its kind, and it or one before it is lost."""
        kept = True
        if isinstance(event, Datagram):
            kept = self._put_datagram(event)
        elif isinstance(event, Roamed):
            if event.tid not in self._roamed:
                self._queue.append(event)
            self._roamed[event.tid] = event
        elif isinstance(event, _PeerEvent):
            half_full = self._all_peer_events >= QUEUED_PEER_EVENTS // 2
            if self._all_peer_events >= QUEUED_PEER_EVENTS:
                return False
            if self._peer_events[event.tid] >= (1 if half_full else QUEUED_EVENTS_PER_TUNNEL):
                return False
            self._peer_events[event.tid] += 1
            self._all_peer_events += 1
            self._queue.append(event)
        else:
            self._queue.append(event)
        self._schedule()
        return kept

    def close(self) -> None:
        """Deliver nothing more."""
        self._listener = None
        self._queue.clear()
        self._roamed.clear()
        self._expected.clear()
        self._others.clear()

    def _put_datagram(self, datagram: Datagram) -> bool:
        room = len(self._expected) + len(self._others) < QUEUED_DATAGRAMS
        if not room:
            if not self._others:
                return False
            del self._others[random.randrange(len(self._others))]
        (self._expected if datagram.expected else self._others).append(datagram)
        return room

    def _schedule(self) -> None:
        if (self._queue or self._expected or self._others) and not self._scheduled and self._listener is not None:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        self._deliver_some(len(self._queue), self._next_of_tunnels, 1 if self._datagram_seconds else EVENT_BATCH)
        self._deliver_some(len(self._expected) + len(self._others), self._next_datagram, 1)
        self._schedule()

    def _deliver_some(self, waiting: int, take: Callable[[], Event], least: int) -> None:
        """Deliver what waits, as far as the time goes, but so many at least."""
        end = self._loop.time() + self._datagram_seconds
        for number in range(1, waiting + 1):
            if self._listener is None:  # closed by the listener
                return
            self._tell(self._listener, take())
            if number >= least and self._loop.time() >= end:
                return

    def _next_datagram(self) -> Event:
        return (self._expected or self._others).popleft()

    def _next_of_tunnels(self) -> Event:
        event = self._queue.popleft()
        if isinstance(event, Roamed):
            return self._roamed.pop(event.tid)
        if isinstance(event, _PeerEvent):
            self._all_peer_events -= 1
            self._peer_events[event.tid] -= 1
            if not self._peer_events[event.tid]:
                del self._peer_events[event.tid]
        return event

    def _tell(self, listener: Listener, event: Event) -> None:
        try:
            listener(event)
        except Exception:
            self.listener_errors += 1
            if self.listener_errors == 1:  # once: the cause may be in what the network sends
                log.exception("a listener failed; further failures are only counted")
