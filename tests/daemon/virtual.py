"""An event loop whose time passes as fast as nothing happens."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TURN_SECONDS = 1e-9


class _JumpingSelector(selectors.EpollSelector):
    """Instead of waiting it lets the time pass that the loop would have waited.

    Each turn takes a moment all the same, or who waits for the rest of a time, too short for a float, would for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.now += TURN_SECONDS
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        elif not ready and timeout is None:
            raise RuntimeError("the test waits for something that nothing will bring about")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sockets are real, time is not: timers fire in their order, at once. What comes over loopback arrives before."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._jumping.now


def play(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)


def now() -> float:
    """Seconds of the running loop."""
    return asyncio.get_running_loop().time()
