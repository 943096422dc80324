"""The private addresses that a server has given to its clients."""

from collections import deque
from ipaddress import IPv4Address, IPv4Interface
from itertools import chain
from typing import Final

_FIRST_HOST: Final = 2


class Tenants:
    """Gives each tunnel an address of the subnet, in turn, so that one that was just freed is not reused at once."""

    def __init__(self, own: IPv4Interface) -> None:
        network = own.network
        self._network = int(network.network_address)
        own_number = int(own.ip) - self._network
        numbers = chain(range(_FIRST_HOST, network.num_addresses - 1), range(1, _FIRST_HOST))
        self._never_used = (number for number in numbers if number != own_number)
        self._freed: deque[int] = deque()
        # By tid; a number within the subnet takes a third of the memory of an IPv4Address.
        self._silent: dict[bytes, int] = {}
        self._heard: dict[bytes, int] = {}
        self._newcomers: deque[bytes] = deque()  # oldest first; the first one is silent, others may be heard or gone

    def __len__(self) -> int:
        return len(self._silent) + len(self._heard)

    def tids(self) -> list[bytes]:
        """Return the ids of all tunnels that have an address."""
        return [*self._heard, *self._silent]

    def take(self, tid: bytes) -> IPv4Address | None:
        """Return an address for a new tunnel, None if all are taken."""
        number = next(self._never_used, None)
        if number is None:
            if not self._freed:
                return None
            number = self._freed.popleft()
        self._silent[tid] = number
        self._newcomers.append(tid)
        return IPv4Address(self._network + number)

    def heard(self, tid: bytes) -> None:
        """Take note that a packet of a tunnel has authenticated."""
        number = self._silent.pop(tid, None)
        if number is not None:
            self._heard[tid] = number
            self._drop_newcomers()

    def release(self, tid: bytes) -> None:
        """Free the address of a tunnel that is gone."""
        number = self._silent.pop(tid, None)
        if number is None:
            number = self._heard.pop(tid, None)
        if number is not None:
            self._freed.append(number)
            self._drop_newcomers()

    def oldest_silent(self, part: int) -> bytes | None:
        """Return the oldest tunnel that nothing was heard in, None if such are less than 1 / ``part`` of all."""
        if not self._silent or len(self._silent) < len(self) // part:
            return None
        return self._newcomers[0]

    def _drop_newcomers(self) -> None:
        while self._newcomers and self._newcomers[0] not in self._silent:
            self._newcomers.popleft()
