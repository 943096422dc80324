"""Which connections are let in: bounds on those that have not logged in, pauses after failures, bounds a user. Pure.

Whoever can reach the port has a tunnel, which costs a handshake, and an address in it that cannot be forged. So what
one address does is held against that address.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

LOGIN_SECONDS: Final = 10.0  # from the connection to its authentication
MAX_ATTEMPTS: Final = 6  # keys that may be refused in one connection, as in OpenSSH (MaxAuthTries)

FREE_FAILURES: Final = 5  # connections without a login, from one address, until it has to wait: people mistype
FIRST_PAUSE: Final = 1.0  # seconds; doubled with each further failure
LONGEST_PAUSE: Final = 60.0
FORGET_SECONDS: Final = 600.0  # of quiet, then an address begins anew
MAX_SOURCES: Final = (
    4096  # addresses that failures are remembered of; beyond it the one that was quiet for longest goes
)


@dataclass(slots=True)
class _Connection:
    source: IPv4Address
    user: str | None = None  # once it has logged in


@dataclass(slots=True)
class _Failures:
    count: int
    latest: float
    until: float


class Limits:
    """Counts connections by number. Times are seconds on a clock that never goes back."""

    def __init__(self, *, startups: int, startups_source: int, user: int) -> None:
        """At most so many connections that have not logged in yet, in all and of one address, and so many of a user."""
        self._startups = startups
        self._startups_source = startups_source
        self._user = user
        self._connections: dict[int, _Connection] = {}
        self._starting: OrderedDict[int, IPv4Address] = OrderedDict()  # oldest first
        self._of_source: Counter[IPv4Address] = Counter()
        self._of_user: Counter[str] = Counter()
        self._failures: OrderedDict[IPv4Address, _Failures] = OrderedDict()  # quiet for longest first
        self.counters: Counter[str] = Counter()

    @property
    def starting(self) -> int:
        """How many have not logged in yet."""
        return len(self._starting)

    @property
    def users(self) -> dict[str, int]:
        """Connections of each user."""
        return dict(self._of_user)

    def admit(self, source: IPv4Address, now: float) -> bool:
        """Whether a new connection from there may begin; one that may not is counted by reason."""
        failures = self._failures.get(source)
        if failures is not None and now < failures.until:
            self.counters["dropped_after_failures"] += 1
            return False
        if self._of_source[source] >= self._startups_source:
            self.counters["dropped_source_full"] += 1
            return False
        return True

    def begin(self, number: int, source: IPv4Address) -> int | None:
        """A connection that was admitted begins. Returns the one that has to end to make room for it, if any.

        That is the oldest of the address that has most of them, so nobody keeps others out by holding connections open.
        """
        victim = None
        if len(self._starting) >= self._startups:
            most = max(self._of_source.values())
            victim = next(other for other, held_by in self._starting.items() if self._of_source[held_by] == most)
            self.counters["dropped_for_others"] += 1
            self._leave_start(victim)
        self._connections[number] = _Connection(source)
        self._starting[number] = source
        self._of_source[source] += 1
        self.counters["connections"] += 1
        return victim

    def authenticate(self, number: int, user: str) -> bool:
        """A connection wants to be a user's. False if that user has too many, or it was to end."""
        connection = self._connections.get(number)
        if connection is None or connection.user is not None or number not in self._starting:
            return False
        if self._of_user[user] >= self._user:
            self.counters["refused_user_full"] += 1
            return False
        self._leave_start(number)
        self._failures.pop(connection.source, None)
        self.counters["logins"] += 1
        self._own(connection, user)
        return True

    def rejoin(self, number: int, source: IPv4Address, user: str) -> None:
        """A connection that logged in before this service was restarted; it stays, however many there are."""
        connection = self._connections[number] = _Connection(source)
        self._own(connection, user)

    def _own(self, connection: _Connection, user: str) -> None:
        connection.user = user
        self._of_user[user] += 1

    def _leave_start(self, number: int) -> None:
        source = self._starting.pop(number)
        self._of_source[source] -= 1
        if not self._of_source[source]:
            del self._of_source[source]

    def end(self, number: int, now: float, *, failed: bool = True) -> None:
        """A connection has ended. One that never logged in is a failure of its address, unless it was none's."""
        connection = self._connections.pop(number)
        if number in self._starting:
            self._leave_start(number)
        if connection.user is None:
            if failed:
                self.counters["ended_without_login"] += 1
                self._fail(connection.source, now)
            return
        self._of_user[connection.user] -= 1
        if not self._of_user[connection.user]:
            del self._of_user[connection.user]

    def _fail(self, source: IPv4Address, now: float) -> None:
        failures = self._failures.pop(source, None)
        if failures is None or now - failures.latest > FORGET_SECONDS:
            failures = _Failures(0, now, now)
        failures.count += 1
        failures.latest = now
        over = failures.count - FREE_FAILURES
        if over > 0:
            doubled = min(over - 1, 10)
            failures.until = max(failures.until, now + min(FIRST_PAUSE * 2**doubled, LONGEST_PAUSE))
        self._failures[source] = failures
        while len(self._failures) > MAX_SOURCES:
            self._failures.popitem(last=False)
