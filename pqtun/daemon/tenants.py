"""The private addresses that a server has given to its clients."""

from ipaddress import IPv4Address, IPv4Interface
from typing import Final

_FIRST_HOST: Final = 2


class Tenants:
    """Gives each tunnel an address of the subnet, in turn, so that one that was just freed is not reused at once."""

    def __init__(self, own: IPv4Interface) -> None:
        self._own = own
        self._next = _FIRST_HOST
        self._inner: dict[bytes, IPv4Address] = {}
        self._taken: set[int] = set()

    def __len__(self) -> int:
        return len(self._inner)

    def tids(self) -> list[bytes]:
        """Return the ids of all tunnels that have an address."""
        return list(self._inner)

    def take(self, tid: bytes) -> IPv4Address | None:
        """Return an address for a new tunnel, None if all are taken."""
        network = self._own.network
        last = network.num_addresses - 2
        own_number = int(self._own.ip) - int(network.network_address)
        for _ in range(last):
            number = self._next
            self._next = number + 1 if number < last else 1
            if number != own_number and number not in self._taken:
                inner = network.network_address + number
                self._inner[tid] = inner
                self._taken.add(number)
                return inner
        return None

    def release(self, tid: bytes) -> None:
        """Free the address of a tunnel that is gone."""
        inner = self._inner.pop(tid, None)
        if inner is not None:
            self._taken.discard(int(inner) - int(self._own.network.network_address))
