"""The queue between an engine and its listener."""

import asyncio
import logging
from collections import deque

from pqtun.pump.engine import Control, Cookie, Datagram, Event, Listener, Roamed
from pqtun.pump.limits import QUEUED_DATAGRAMS, QUEUED_PEER_EVENTS

log = logging.getLogger(__name__)


class EventQueue:
    """Delivers events in order, in turns of the event loop of their own.

    What anybody on the network can cause and what a peer can cause is bounded, each by itself, so that a flood of
    datagrams displaces neither a peer's events nor our own. The rest is bounded by the tables that it comes from.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, datagram_seconds: float = 0.0) -> None:
        """``datagram_seconds``: in one turn datagrams are delivered for so long, one at least; the rest waits.

        Where packets move on the event loop too, they pass between two handshakes if that is 0.
        """
        self._loop = loop
        self._datagram_seconds = datagram_seconds
        self._listener: Listener | None = None
        self._queue: deque[Event] = deque()
        self._datagrams = 0
        self._peer_events = 0
        self._scheduled = False
        self.listener_errors = 0

    def start(self, listener: Listener) -> None:
        """Begin to deliver."""
        self._listener = listener
        self._schedule()

    def put(self, event: Event) -> bool:
        """Queue an event for delivery. False if there are too many of its kind, and it is lost."""
        if isinstance(event, Datagram):
            if self._datagrams >= QUEUED_DATAGRAMS:
                return False
            self._datagrams += 1
        elif isinstance(event, Control | Cookie | Roamed):
            if self._peer_events >= QUEUED_PEER_EVENTS:
                return False
            self._peer_events += 1
        self._queue.append(event)
        self._schedule()
        return True

    def close(self) -> None:
        """Deliver nothing more."""
        self._listener = None
        self._queue.clear()

    def _schedule(self) -> None:
        if self._queue and not self._scheduled and self._listener is not None:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        end = self._loop.time() + self._datagram_seconds
        for _ in range(len(self._queue)):
            if self._listener is None:  # closed by the listener
                return
            event = self._queue.popleft()
            if isinstance(event, Datagram):
                self._datagrams -= 1
            elif isinstance(event, Control | Cookie | Roamed):
                self._peer_events -= 1
            try:
                self._listener(event)
            except Exception:
                self.listener_errors += 1
                if self.listener_errors == 1:  # once: the cause may be in what the network sends
                    log.exception("a listener failed; further failures are only counted")
            if isinstance(event, Datagram) and self._loop.time() >= end:
                break
        self._schedule()
