"""An event loop that goes on while the program waits for a person to type."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_GLANCE: Final = 0.5  # seconds
PATIENCE: Final = 5.0  # seconds that what was interrupted has for its end


class LoopThread:
    """The loop runs in a thread, so that keepalives are answered; the main thread hands it coroutines and waits.

    ^C, which Python raises in the main thread, cancels what was waited for, not the loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    def foreground(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this thread, which may ask questions on the terminal; the loop's thread pauses."""
        self._pause()
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            self._loop.run_until_complete(asyncio.wait([task], timeout=PATIENCE))
            raise
        finally:
            self._resume()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop's thread and return its result.

        Raises what it raises; TimeoutError after `timeout` seconds; KeyboardInterrupt at ^C, when it has been cancelled
        and has ended, or at a second one.
        """
        ended = threading.Event()

        async def noticed() -> T:
            try:
                return await coroutine
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(noticed(), self._loop)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                # A ^C that comes just before the wait begins is only noticed after it.
                left = _GLANCE if deadline is None else min(_GLANCE, deadline - time.monotonic())
                concurrent.futures.wait([future], max(left, 0))
                if future.done():
                    return future.result()
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError
        except (KeyboardInterrupt, TimeoutError):
            if future.cancel():
                ended.wait(PATIENCE)
            raise

    def close(self) -> None:
        """End the loop."""
        self._pause()
        close_loop(self._loop)

    def _pause(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None

    def _resume(self) -> None:
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """End what still runs in a loop, and the loop. Unlike asyncio.run, also after a KeyboardInterrupt in a task."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    for _ in tasks:
        try:
            loop.run_until_complete(asyncio.wait(tasks, timeout=PATIENCE))
            break
        except KeyboardInterrupt:
            continue  # it comes out of each task that awaited the one in which it was raised
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # which has been told, or does not matter any more
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
