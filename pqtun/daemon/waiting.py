"""For which absent clients the server's engine holds packets, and when it is to stop. Pure. ``now`` is in seconds."""

from ipaddress import IPv4Address

from pqtun.pump.limits import HELD_SECONDS


class Waiting:
    """Addresses that programs send to while their clients are away.

    The engine holds for an address until told otherwise, and for a bounded number of them: those to which nothing is
    sent any more must not keep it from holding for others.
    """

    def __init__(self) -> None:
        self._since: dict[IPv4Address, float] = {}  # when a packet was last reported
        self._asked: dict[IPv4Address, float] = {}  # since when the next packet is to be reported

    def __len__(self) -> int:
        return len(self._since) + len(self._asked)

    def wanted(self, inner: IPv4Address, now: float) -> None:
        """A packet to the address was reported, and is held."""
        self._asked.pop(inner, None)
        self._since[inner] = now

    def ended(self, inner: IPv4Address) -> bool:
        """The engine holds no more for the address; say whether it did."""
        since, asked = self._since.pop(inner, None), self._asked.pop(inner, None)
        return since is not None or asked is not None

    def quiet(self, now: float) -> list[IPv4Address]:
        """Return the addresses to which nothing has come for so long that nothing is held; they are forgotten."""
        return self._forget(self._asked, now)

    def unsure(self, now: float) -> list[IPv4Address]:
        """Return those of which that is to be found out: the next packet to each has to be reported."""
        unsure = self._forget(self._since, now)
        self._asked.update(dict.fromkeys(unsure, now))
        return unsure

    @staticmethod
    def _forget(times: dict[IPv4Address, float], now: float) -> list[IPv4Address]:
        old = [inner for inner, since in times.items() if since + HELD_SECONDS <= now]
        for inner in old:
            del times[inner]
        return old
