"""Which requests are under way, and which of them are lost (RFC 9002, section 6, with one request a node in flight)."""

from collections import deque

from pqtun.keyserver.limits import (
    GRANULARITY,
    PERSISTENT_TIMEOUTS,
    PROBES,
    REORDER_THRESHOLD,
    REORDER_THRESHOLD_MAX,
    TIME_THRESHOLD,
)
from pqtun.keyserver.pacing import Pacer, Snapshot
from pqtun.protocol.keytree import NodeId


class _Request:
    __slots__ = ("ambiguous", "node", "number", "open", "snapshot")

    def __init__(self, number: int, node: NodeId, ambiguous: bool, snapshot: Snapshot) -> None:
        self.number = number
        self.node = node
        self.ambiguous = ambiguous
        self.snapshot = snapshot
        self.open = True


class Flight:
    """Requests in flight. A repeated request replaces the one before it, so there is at most one for each node."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._open: dict[NodeId, _Request] = {}
        self._order: deque[_Request] = deque()
        self._asked: dict[NodeId, int] = {}
        self._number = 0
        self._largest_answered = -1
        self._threshold = REORDER_THRESHOLD
        self._backoff = 0
        self._idle_since = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def asked(self, node: NodeId) -> int:
        """How often the node was asked for."""
        return self._asked.get(node, 0)

    def sent(self, node: NodeId, limited: bool, now: float) -> None:
        """Notes a request for `node`; `limited`: there was less to ask than allowed."""
        before = self._open.pop(node, None)
        if before is not None:
            before.open = False
        snapshot = self._pacer.sent(len(self._open), limited, now)
        count = self._asked.get(node, 0) + 1
        self._asked[node] = count
        request = _Request(self._number, node, count > 1, snapshot)
        self._number += 1
        self._open[node] = request
        self._order.append(request)
        self._idle_since = now

    def answered(self, node: NodeId, now: float) -> None:
        """Notes the first answer for `node` that was asked for."""
        self._backoff = 0
        self._idle_since = now
        request = self._open.pop(node, None)
        if request is None:
            # Given up as lost before its answer came.
            self.repeated_in_vain()
            self._pacer.answered(None, len(self._open), now)
            return
        request.open = False
        elapsed = now - request.snapshot.sent_at
        if request.ambiguous and elapsed < self._pacer.round_trip.minimum:
            # Too early for the latest request: this answers one before it.
            self.repeated_in_vain()
            self._pacer.answered(None, len(self._open), now)
            return
        if not request.ambiguous:
            self._pacer.measured(elapsed)
        self._largest_answered = max(self._largest_answered, request.number)
        self._pacer.answered(request.snapshot, len(self._open), now)

    def repeated_in_vain(self) -> None:
        """A request was taken for lost and was not: the path reorders more than was thought."""
        self._threshold = min(self._threshold * 2, REORDER_THRESHOLD_MAX)

    def _patience(self) -> float:
        trip = self._pacer.round_trip
        return max(TIME_THRESHOLD * max(trip.smoothed, trip.latest), trip.smoothed + 4 * trip.variation, GRANULARITY)

    def _oldest(self) -> _Request | None:
        order = self._order
        while order and not order[0].open:
            order.popleft()
        return order[0] if order else None

    def lost(self, now: float) -> list[NodeId]:
        """Removes and returns what is lost: older than an answered request by enough numbers or enough time."""
        nodes: list[NodeId] = []
        patience = self._patience()
        # Both conditions hold for a prefix of the order, so the first that is not lost ends the search.
        while (request := self._oldest()) is not None and request.number < self._largest_answered:
            if self._largest_answered - request.number < self._threshold and now < request.snapshot.sent_at + patience:
                break
            self._drop(request)
            nodes.append(request.node)
        return nodes

    def _drop(self, request: _Request) -> None:
        request.open = False
        del self._open[request.node]

    def probes(self, now: float) -> tuple[list[NodeId], list[NodeId]]:
        """When the probe timeout has passed: (nodes to ask again at once, nodes that are lost); else both empty."""
        if not self._open or now < self._timeout_at():
            return [], []
        self._backoff += 1
        self._idle_since = now
        waiting = [request for request in self._order if request.open]
        lost: list[NodeId] = []
        if self._backoff == PERSISTENT_TIMEOUTS:
            self._pacer.congested(now)
            for request in waiting[PROBES:]:
                self._drop(request)
                lost.append(request.node)
        return [request.node for request in waiting[:PROBES]], lost

    def _timeout_at(self) -> float:
        return self._idle_since + self._pacer.round_trip.timeout(self._backoff)

    def next_timer(self) -> float | None:
        """When lost() or probes() will have something to say if nothing arrives until then."""
        request = self._oldest()
        if request is None:
            return None
        timeout = self._timeout_at()
        if request.number < self._largest_answered:
            return min(timeout, request.snapshot.sent_at + self._patience())
        return timeout
