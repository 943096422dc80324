"""The download of a server's long-term key by its hash: a sans-IO core. fetch.py runs it over a socket.

Every node may be asked for at once. What comes before its parent is held, and asked for again if it then turns out
wrong.
"""

from collections import Counter, deque

from pqtun.keyserver.flight import Flight
from pqtun.keyserver.limits import (
    NO_ANSWER_TIMEOUT,
    REFUSED_TIMEOUT,
    SAME_WRONG_LIMIT,
    STALL_TIMEOUT,
    TOTAL_TIMEOUT,
    WRONG_LIMIT,
)
from pqtun.keyserver.pacing import Pacer
from pqtun.protocol.errors import MessageError
from pqtun.protocol.keydatagram import StaticResponse, parse_response, static_request
from pqtun.protocol.keytree import NODES, NodeId, PartialTree, ServerPublicKey
from pqtun.protocol.primitives import hash32


class DownloadError(Exception):
    """A download failed. `reason` is one of no_answer, wrong_key, timeout, network; the text says it to a person."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Download:
    """Downloads the key with the given hash (32 bytes; ValueError otherwise). All times are seconds of one clock.

    The caller sends what requests_to_send() returns, calls it again after receive() and at `next_timer`, and ends when
    `done` or `failure` says so. Counters are in `counters`: answers by what became of them, requests by kind.
    """

    def __init__(self, keyhash: bytes, now: float) -> None:
        self.counters: Counter[str] = Counter()
        self.failure: DownloadError | None = None
        self._tree = PartialTree(keyhash)
        self._pacer = Pacer(now)
        self._flight = Flight(self._pacer)
        self._unasked = deque(node for node in NODES if not self._tree.is_verified(node))
        self._again: deque[NodeId] = deque()
        self._started = now
        self._progress_at: float | None = None
        self._refused_at: float | None = None
        self._wrong: dict[NodeId, Counter[bytes]] = {}
        self._welcome: set[NodeId] = set()

    @property
    def done(self) -> bool:
        """Whether the whole key is there and verified."""
        return self._tree.complete

    @property
    def progress(self) -> tuple[int, int]:
        """Nodes verified, nodes altogether. The root counts: it is the hash that was known from the start."""
        return self._tree.verified_count, len(NODES)

    @property
    def pacer(self) -> Pacer:
        """The congestion control, for measurements."""
        return self._pacer

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer."""
        return len(self._flight)

    def public_key(self) -> ServerPublicKey:
        """The verified key. Raises ValueError before `done`."""
        return self._tree.public_key()

    def requests_to_send(self, now: float) -> list[bytes]:
        """Does what is due at `now` and returns the datagrams to send at once (empty once done or failed)."""
        self._check_deadlines(now)
        if self.done or self.failure is not None:
            return []
        requests: list[bytes] = []
        self._give_up(self._flight.lost(now), "lost")
        probes, lost = self._flight.probes(now)
        self._give_up(lost, "lost")
        for node in probes:
            self.counters["probes"] += 1
            requests.append(self._ask(node, now, limited=True))
        allowance = self._pacer.allowance(len(self._flight), now)
        while allowance > 0 and (node_or_none := self._next_node()) is not None:
            allowance -= 1
            limited = allowance > 0 and not self._unasked and not self._again
            requests.append(self._ask(node_or_none, now, limited=limited))
        return requests

    def _ask(self, node: NodeId, now: float, *, limited: bool) -> bytes:
        self.counters["requests"] += 1
        if self._flight.asked(node):
            self.counters["repeated"] += 1
        self._welcome.add(node)
        self._flight.sent(node, limited, now)
        return static_request(node)

    def _next_node(self) -> NodeId | None:
        while self._again:
            node = self._again.popleft()
            if not self._has(node):
                return node
        return self._unasked.popleft() if self._unasked else None

    def _has(self, node: NodeId) -> bool:
        return self._tree.is_verified(node) or self._tree.is_held(node)

    def _give_up(self, nodes: list[NodeId], counter: str) -> None:
        self.counters[counter] += len(nodes)
        self._again.extend(nodes)

    def receive(self, datagram: bytes, now: float) -> None:
        """Takes one datagram from the server. Whatever is no answer to a request is dropped and counted."""
        try:
            response = parse_response(datagram)
        except MessageError as error:
            self.counters[f"dropped_{error.reason}"] += 1
            return
        if not isinstance(response, StaticResponse):
            self.counters["dropped_type"] += 1
            return
        node = response.node
        if self._has(node):
            self.counters["duplicate"] += 1
            # Two requests, two answers: the second request was for nothing.
            if self._flight.asked(node) > 1:
                self._flight.repeated_in_vain()
            return
        if node not in self._welcome:
            self.counters["dropped_unasked"] += 1
            return
        self.counters["answers"] += 1
        self._refused_at = None
        if node not in self._wrong:
            self._progress_at = now
        self._flight.answered(node, now)
        added = self._tree.add(node, response.data)
        for wrong in added.rejected:
            self._reject(wrong, response.data if wrong == node else None)

    def _reject(self, node: NodeId, data: bytes | None) -> None:
        self.counters["rejected"] += 1
        self._welcome.discard(node)
        self._again.append(node)
        wrong = self._wrong.setdefault(node, Counter())
        wrong[hash32(data) if data is not None else b"held"] += 1
        if max(wrong.values()) >= SAME_WRONG_LIMIT or wrong.total() >= WRONG_LIMIT:
            self._fail("wrong_key", "the key server serves another key than the one that the name announces")

    def refused(self, text: str, now: float) -> None:
        """The network refused a datagram, in the words of `text`. Fails if it still does after REFUSED_TIMEOUT."""
        self.counters["refused"] += 1
        if self._refused_at is None:
            self._refused_at = now
        elif now - self._refused_at >= REFUSED_TIMEOUT:
            self._fail("network", f"the key server cannot be reached: {text}")

    @property
    def next_timer(self) -> float | None:
        """When to call requests_to_send() although nothing arrived; None once done or failed."""
        if self.done or self.failure is not None:
            return None
        timer = self._deadline()[0]
        flight_timer = self._flight.next_timer()
        if flight_timer is not None:
            timer = min(timer, flight_timer)
        if self._again or self._unasked:
            send_at = self._pacer.next_send(len(self._flight))
            if send_at is not None:
                timer = min(timer, send_at)
        return timer

    def _fail(self, reason: str, text: str) -> None:
        if self.failure is None:
            self.failure = DownloadError(reason, text)

    def _check_deadlines(self, now: float) -> None:
        deadline, reason = self._deadline()
        if self.done or now < deadline:
            return
        have, total = self.progress
        if reason == "timeout":
            self._fail(reason, f"the key server is too slow or went away: {have} of {total} parts of its key arrived")
        elif self.counters.keys() - {"requests", "repeated", "probes", "lost", "refused"}:
            self._fail(reason, "the key server sent nothing but datagrams that are no answers")
        else:
            self._fail(reason, f"no answer from the key server in {NO_ANSWER_TIMEOUT:.0f} s")

    def _deadline(self) -> tuple[float, str]:
        if self._progress_at is None:
            return self._started + NO_ANSWER_TIMEOUT, "no_answer"
        return min(self._progress_at + STALL_TIMEOUT, self._started + TOTAL_TIMEOUT), "timeout"
