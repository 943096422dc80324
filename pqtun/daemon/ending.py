"""How a worker's life ends: it is told to stop, or a part of it cannot go on."""

import asyncio
from typing import Any


async def stopped_or_failed(stop: asyncio.Event, failed: asyncio.Future[None]) -> None:
    """Wait until ``stop`` is set. Raises the exception of ``failed`` if that comes first."""
    stopped = asyncio.ensure_future(stop.wait())
    futures: set[asyncio.Future[Any]] = {stopped, failed}
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
    finally:
        stopped.cancel()
