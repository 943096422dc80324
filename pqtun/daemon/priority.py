"""Who gets a processor core first, where packets have threads of their own."""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from pqtun.pump.engine import Engine

# A tenth of the weight of a thread that moves packets, so that one of those gets the core within a fraction of a
# millisecond even from the middle of a handshake, and handshakes still go on where packets take all cores.
NICE: Final = 10
_NICE_ZERO: Final = 20  # how RLIMIT_NICE writes a niceness of 0 (getrlimit(2))

Place = Callable[[], AbstractContextManager[None]]


def allow_own_niceness() -> None:
    """Let this process, once it has no privileges, come back to the niceness that it has now."""
    wanted = _NICE_ZERO - os.getpriority(os.PRIO_PROCESS, 0)
    try:
        resource.setrlimit(resource.RLIMIT_NICE, (wanted, wanted))
    except (OSError, ValueError):
        pass  # root without CAP_SYS_RESOURCE, as in containers: a thread that steps back will have to stay there


def behind_packets(engine: Engine) -> Place:
    """Return what to do long computations in: meanwhile this thread waits whenever the engine's threads have work.

    It comes forward again for the rest, if the limits allow that; else it stays behind from the first time on. Where
    packets move on the event loop there is nobody to wait for, and nothing changes.
    """
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if engine.name != "native" or own >= NICE:
        return contextlib.nullcontext

    # setpriority(2): on Linux 0 is the calling thread alone. Threads that it starts inherit it; the engine's are there.
    def step_back() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)

    @contextlib.contextmanager
    def for_a_while() -> Iterator[None]:
        step_back()
        try:
            yield
        finally:
            os.setpriority(os.PRIO_PROCESS, 0, own)

    @contextlib.contextmanager
    def for_good() -> Iterator[None]:
        step_back()
        yield

    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    may_return = os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= _NICE_ZERO - own
    return for_a_while if may_return else for_good
