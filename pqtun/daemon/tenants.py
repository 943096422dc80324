"""The private addresses that a server has given to its clients."""

from collections import deque
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from itertools import chain
from typing import Final

from pqtun.pump.engine import Endpoint
from pqtun.rates.buckets import source_prefix

# As many as PQConnect takes (its MAX_CONNS), and as the usual /16 has addresses.
MAX_TUNNELS: Final = 65_536

# Of all tunnels that there may be, live or gone, so many may come from one source prefix before those make room for
# others first, and as many again that only say so: a source can be forged by who wants others there to make room. A
# tunnel costs one handshake; without this, one network would in ten minutes put out all who are idle or asleep.
PREFIX_PART: Final = 16
PREFIX_LEAST: Final = 64  # in a small subnet: an office behind one address

_FIRST_HOST: Final = 2
_UNCONFIRMED: Final = b"?"
_CONFIRMED: Final = b"!"


@dataclass(slots=True)
class Tenant:
    """What is known of a live tunnel."""

    number: int  # of its address within the subnet: a third of the memory of an IPv4Address
    since: float
    source: Endpoint  # where its handshake came from
    group: bytes  # prefix of the source, and whether the peer was shown to be reached where it is
    heard: bool = False  # whether a packet of it has authenticated
    known: bool = False  # whether it, or one that it continues, was reached where it said that it was
    pqtun: bool = False  # whether it said Hello, as PQConnect does not
    resumed: bool = False  # whether its address is that of a tunnel which it continues


class Tenants:
    """Gives each tunnel an address of the subnet, in turn, so that one that was just freed is not reused at once.

    The address of a tunnel that is gone may be reserved for the tunnel's return. All times are seconds of one clock.
    """

    def __init__(self, own: IPv4Interface, limit: int = MAX_TUNNELS) -> None:
        """``limit``: of tunnels that are live or have an address reserved, if the subnet has more addresses."""
        network = own.network
        self._network = int(network.network_address)
        own_number = int(own.ip) - self._network
        self._limit = min(limit, network.num_addresses)
        self._prefix_limit = max(self._limit // PREFIX_PART, PREFIX_LEAST)
        self._by_group: dict[bytes, dict[bytes, None]] = {}  # tids, live or gone, oldest first
        self._crowds: dict[bytes, None] = {}  # the groups that have too many
        numbers = chain(range(_FIRST_HOST, network.num_addresses - 1), range(1, _FIRST_HOST))
        self._never_used = (number for number in numbers if number != own_number)
        self._freed: deque[int] = deque()
        self._tenants: dict[bytes, Tenant] = {}
        # Number and group by tid of the tunnel that is gone; longest gone first.
        self._reserved: dict[bytes, tuple[int, bytes]] = {}
        self._reserved_for: dict[int, bytes] = {}
        self._newcomers: deque[bytes] = deque()  # oldest first; the first one is not known, others may be, or gone

    def __len__(self) -> int:
        return len(self._tenants)

    def __contains__(self, tid: bytes) -> bool:
        return tid in self._tenants

    @property
    def reserved(self) -> int:
        """How many addresses are reserved."""
        return len(self._reserved)

    def tids(self) -> list[bytes]:
        """Return the ids of all live tunnels."""
        return list(self._tenants)

    def get(self, tid: bytes) -> Tenant | None:
        """Return what is known of a live tunnel."""
        return self._tenants.get(tid)

    def address(self, tid: bytes) -> IPv4Address | None:
        """Return the address of a live tunnel, or the one that is reserved for a tunnel that is gone."""
        tenant = self._tenants.get(tid)
        if tenant is not None:
            return IPv4Address(self._network + tenant.number)
        place = self._reserved.get(tid)
        return None if place is None else IPv4Address(self._network + place[0])

    def is_reserved(self, address: IPv4Address) -> bool:
        """Whether the address waits for the return of its tunnel."""
        return int(address) - self._network in self._reserved_for

    def take(self, tid: bytes, source: Endpoint, now: float) -> IPv4Address | None:
        """Give a new tunnel an address that nobody has a claim to; None if there is none, or too many have one."""
        if len(self._tenants) + len(self._reserved) >= self._limit:
            return None
        number = next(self._never_used, None)
        if number is None and self._freed:
            number = self._freed.popleft()
        return None if number is None else self._enter(tid, number, source, now)

    def take_back(self, tid: bytes, source: Endpoint, now: float) -> IPv4Address | None:
        """Give a tunnel that is back the address that was reserved for it; None if there is none."""
        number = self._unreserve(tid)
        return None if number is None else self._enter(tid, number, source, now)

    def longest_gone(self) -> bytes | None:
        """Return the tunnel whose address has been reserved for longest."""
        return next(iter(self._reserved), None)

    def crowding(self) -> bytes | None:
        """Return the oldest tunnel, live or gone, of a source prefix that has too many; None if there is none.

        Those of which the source may be forged are counted by themselves.
        """
        crowd = next(iter(self._crowds), None)
        return None if crowd is None else next(iter(self._by_group[crowd]))

    def heard(self, tid: bytes) -> None:
        """Take note that a packet of a tunnel has authenticated."""
        tenant = self._tenants.get(tid)
        if tenant is not None:
            tenant.heard = True

    def confirmed(self, tid: bytes, source: Endpoint) -> None:
        """Take note that the client of a live tunnel is reached at ``source``."""
        tenant = self._tenants.get(tid)
        if tenant is not None:
            self._leave(tid, tenant.group)
            tenant.group = _CONFIRMED + source_prefix(source[0])
            self._join(tid, tenant.group)
            tenant.known = True
            self._drop_newcomers()

    def succeed(self, tid: bytes, old: bytes) -> IPv4Address | None:
        """Give a live tunnel the address of the one that it continues, live or gone, and free its own.

        None if there is no such address: nothing has changed.
        """
        tenant = self._tenants.get(tid)
        if tenant is None or tid == old:
            return None
        before = self._tenants.pop(old, None)
        if before is None:
            number, known = self._unreserve(old), True
        else:
            number, known = before.number, before.known
            self._leave(old, before.group)
        if number is None:
            return None
        self._freed.append(tenant.number)  # behind all others: its last packets may still be on their way
        tenant.number = number
        tenant.resumed = True
        tenant.known |= known
        self._drop_newcomers()
        return IPv4Address(self._network + number)

    def reserve(self, tid: bytes) -> None:
        """A tunnel is gone and may come back: nobody else gets its address as long as there is another one."""
        tenant = self._tenants.pop(tid, None)
        if tenant is not None:
            self._reserved[tid] = tenant.number, tenant.group
            self._reserved_for[tenant.number] = tid
            self._drop_newcomers()

    def release(self, tid: bytes) -> None:
        """Free the address of a live tunnel that is gone for good."""
        tenant = self._tenants.pop(tid, None)
        if tenant is not None:
            self._leave(tid, tenant.group)
            self._freed.append(tenant.number)
            self._drop_newcomers()

    def give_up(self, tid: bytes) -> None:
        """Free the address that is reserved for a tunnel."""
        number = self._unreserve(tid)
        if number is not None:
            self._freed.append(number)

    def oldest_newcomer(self, before: float) -> bytes | None:
        """Return the oldest tunnel whose client is not known to be where it said, if it was made by that time."""
        if not self._newcomers or self._tenants[self._newcomers[0]].since > before:
            return None
        return self._newcomers[0]

    def _enter(self, tid: bytes, number: int, source: Endpoint, now: float) -> IPv4Address:
        group = _UNCONFIRMED + source_prefix(source[0])
        self._tenants[tid] = Tenant(number, now, source, group)
        self._newcomers.append(tid)
        self._join(tid, group)
        return IPv4Address(self._network + number)

    def _join(self, tid: bytes, group: bytes) -> None:
        neighbours = self._by_group.setdefault(group, {})
        neighbours[tid] = None
        if len(neighbours) > self._prefix_limit:
            self._crowds[group] = None

    def _leave(self, tid: bytes, group: bytes) -> None:
        neighbours = self._by_group[group]
        del neighbours[tid]
        if len(neighbours) <= self._prefix_limit:
            self._crowds.pop(group, None)
        if not neighbours:
            del self._by_group[group]

    def _unreserve(self, tid: bytes) -> int | None:
        place = self._reserved.pop(tid, None)
        if place is None:
            return None
        number, group = place
        del self._reserved_for[number]
        self._leave(tid, group)
        return number

    def _drop_newcomers(self) -> None:
        while self._newcomers:
            tenant = self._tenants.get(self._newcomers[0])
            if tenant is not None and not tenant.known:
                return
            self._newcomers.popleft()
