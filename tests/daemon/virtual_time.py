"""An event loop whose time passes as soon as nothing is left to do, so that tests of timers take no time."""

import asyncio
import selectors


class _Selector(selectors.SelectSelector):
    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise AssertionError("everybody waits, and nothing will happen any more")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self):
        return self._virtual.now


def run(main):
    """Run a coroutine to its end, like ``asyncio.run``, in virtual time; no task may be left over."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:

        async def body():
            try:
                return await main
            finally:
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return runner.run(body())
