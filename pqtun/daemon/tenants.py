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
        self._numbers: dict[bytes, int] = {}  # an IPv4Address takes three times the memory

    def __len__(self) -> int:
        return len(self._numbers)

    def tids(self) -> list[bytes]:
        """Return the ids of all tunnels that have an address."""
        return list(self._numbers)

    def take(self, tid: bytes) -> IPv4Address | None:
        """Return an address for a new tunnel, None if all are taken."""
        number = next(self._never_used, None)
        if number is None:
            if not self._freed:
                return None
            number = self._freed.popleft()
        self._numbers[tid] = number
        return IPv4Address(self._network + number)

    def release(self, tid: bytes) -> None:
        """Free the address of a tunnel that is gone."""
        number = self._numbers.pop(tid, None)
        if number is not None:
            self._freed.append(number)
