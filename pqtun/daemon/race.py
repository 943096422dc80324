"""Which of a server's addresses answers first (RFC 8305, with requests to key servers for connection attempts)."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from itertools import chain, zip_longest
from typing import Any, Final, Generic, TypeVar

from pqtun.daemon.locate import Addresses, IPAddress

STAGGER_SECONDS: Final = 0.25  # before the next address is tried beside the ones before it (RFC 8305 section 5)
# When nobody has answered for so long, or all have failed before, addresses of which something is known to be amiss are
# tried too, and those that were known are looked up again, for they may be out of date.
PATIENCE_SECONDS: Final = 1.0
MAX_CANDIDATES: Final = 8  # addresses tried for one contact; whoever answers one DNS question can name any number

Result = TypeVar("Result")
Fault = TypeVar("Fault", bound=Exception)


class LostError(Exception, Generic[Fault]):
    """No address answered. ``faults``: what became of each that was tried, in the order of their ends."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(f"{len(faults)} addresses were tried in vain")
        self.faults = faults


def order(addresses: Iterable[IPAddress], good: IPAddress | None, avoid: Collection[IPAddress]) -> list[IPAddress]:
    """Return the addresses in the order in which to try them.

    First the one that was good last, then the families in turn, IPv6 before IPv4 (RFC 8305 section 4), at last those
    to ``avoid``, the latest in that list behind the ones before it.
    """
    avoided = {address: position for position, address in enumerate(avoid)}
    fresh = [address for address in addresses if address not in avoided]
    first = [address for address in fresh if address == good]
    version = 4 if first and first[0].version == 6 else 6  # the family whose turn it is
    rest = [address for address in fresh if address != good]
    turns = zip_longest(
        (address for address in rest if address.version == version),
        (address for address in rest if address.version != version),
    )
    last = sorted((address for address in addresses if address in avoided), key=lambda address: avoided[address])
    return [*first, *(address for address in chain.from_iterable(turns) if address is not None), *last]


async def race(
    addresses: Addresses,
    attempt: Callable[[IPAddress], Coroutine[Any, Any, Result]],
    fault: type[Fault],
    *,
    good: IPAddress | None,
    avoid: Collection[IPAddress],
    without: Collection[IPAddress] = (),
) -> tuple[IPAddress, Result]:
    """Return the address whose ``attempt`` is the first to succeed, and what it brought; all others are cancelled.

    ``good`` and ``avoid`` are as for ``order``; those ``without`` have lost already. Addresses that lookups bring join.
    An attempt fails with ``fault``. Raises LostError if all do.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    overdue = due + PATIENCE_SECONDS
    asked_again = False
    tried = set(without)
    running: dict[asyncio.Task[Result], IPAddress] = {}
    faults: list[Fault] = []
    try:
        while True:
            now = loop.time()
            lookups = addresses.pending
            waiting = [address for address in order(addresses.known, good, avoid) if address not in tried]
            waiting = waiting[: MAX_CANDIDATES - len(tried)]
            lost = not running and not lookups and not waiting
            if not asked_again and (lost or now >= overdue):
                asked_again = True
                if addresses.look_again():
                    continue
            if lost:
                raise LostError(faults)
            hope = lookups or any(address not in avoid for address in running.values())
            start = max(due, overdue) if waiting and waiting[0] in avoid and hope else due
            if waiting and (now >= start or not (running or lookups)):
                tried.add(waiting[0])
                running[asyncio.ensure_future(attempt(waiting[0]))] = waiting[0]
                due = now + STAGGER_SECONDS
                continue
            alarms = [start] * bool(waiting) + [overdue] * (not asked_again)
            timeout = min(alarms) - now if alarms else None
            done, _ = await asyncio.wait({*running, *lookups}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if task in done]:
                try:
                    return running[task], task.result()
                except fault as error:
                    faults.append(error)
                del running[task]
                due = loop.time()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
