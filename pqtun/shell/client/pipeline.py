"""One file's bytes from here to there, with many reads and writes under way at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pqtun.shell.client.faults import FILE_FAULTS, CopyFault
from pqtun.shell.client.store import File

DEPTH: Final = 24
"""Requests under way: with blocks of 255 KiB 6 MiB, which is 60 ms at 100 MB/s."""

HEAD: Final = 64 << 10
"""Bytes at the beginning that are compared before a transfer goes on."""
TAIL: Final = 1 << 20
"""Bytes before the point where a transfer goes on that are compared."""

_SMALLEST_BLOCK: Final = 1 << 10
_BLOCKS_A_SECOND: Final = 8  # at least, so that a limited transfer moves evenly
_DEPTH_LIMITED: Final = 2  # requests under way: 250 ms at the limit


class Throttle:
    """Keeps transfers below a rate, on average since the last pause."""

    def __init__(self, rate: float) -> None:
        """`rate` in bytes a second."""
        self.rate = rate
        self._free_at = 0.0

    def block_size(self, largest: int) -> int:
        """Return the block size that fits the rate."""
        return max(min(largest, int(self.rate / _BLOCKS_A_SECOND)), _SMALLEST_BLOCK)

    def delay(self, size: int, now: float) -> float:
        """Return how many seconds to wait before `size` bytes go, which are then taken for gone."""
        begin = max(self._free_at, now)
        self._free_at = begin + size / self.rate
        return begin - now

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may go."""
        await asyncio.sleep(self.delay(size, time.monotonic()))


@dataclass(frozen=True)
class Flow:
    """How bytes are moved: ``block_size`` in bytes, ``depth`` requests at once, and a limit, if any."""

    block_size: int
    depth: int = DEPTH
    throttle: Throttle | None = None


async def copy(
    source: File, target: File, start: int, end: int | None, flow: Flow, on_progress: Callable[[int], None]
) -> int:
    """Copy the bytes from offset `start` to `end` (None: to the end of the file); return where it ended.

    The bytes are written in order, so what is there after a failure is a beginning of the whole, up to the last value
    given to `on_progress`. Raises CopyFault if the source ends before `end`, and what the files raise.
    """
    block_size, depth = flow.block_size, flow.depth
    if flow.throttle is not None:
        # What is asked for comes in spite of the limit, so little is asked for ahead.
        block_size, depth = flow.throttle.block_size(block_size), min(depth, _DEPTH_LIMITED)
    reads: deque[tuple[int, int, asyncio.Task[bytes]]] = deque()
    writes: deque[tuple[int, asyncio.Task[None]]] = deque()
    asked = written = start
    try:
        while True:
            while len(reads) < depth and (end is None or asked < end):
                size = block_size if end is None else min(block_size, end - asked)
                if flow.throttle is not None:
                    await flow.throttle.take(size)
                reads.append((asked, size, asyncio.ensure_future(source.read(size, asked))))
                asked += size
            if not reads:
                break
            offset, size, read = reads.popleft()
            data = await read
            if not data:
                if end is not None:
                    raise CopyFault(f"it ended after {offset} of {end} bytes: something shortened it meanwhile")
                break
            if len(data) < size:
                # What is missing comes next, before what was asked for behind it.
                rest = (offset + len(data), size - len(data))
                reads.appendleft((*rest, asyncio.ensure_future(source.read(rest[1], rest[0]))))
            writes.append((offset + len(data), asyncio.ensure_future(target.write(data, offset))))
            while len(writes) >= depth or (writes and writes[0][1].done()):
                written = await _finish(writes)
                on_progress(written)
        while writes:
            written = await _finish(writes)
            on_progress(written)
        return written
    finally:
        await _abandon([read for _, _, read in reads] + [write for _, write in writes])


async def _finish(writes: deque[tuple[int, asyncio.Task[None]]]) -> int:
    offset, write = writes.popleft()
    await write
    return offset


async def _abandon(tasks: list[asyncio.Task[bytes] | asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


async def check_beginning(source: File, target: File, length: int, block_size: int) -> None:
    """Raise CopyFault unless the `length` bytes of `target` look like the beginning of `source`.

    The first HEAD and the last TAIL bytes of them are read from both and compared.
    """
    ranges = [(0, min(HEAD, length)), (max(length - TAIL, min(HEAD, length)), length)]
    for begin, end in ranges:
        for offset in range(begin, end, block_size):
            size = min(block_size, end - offset)
            ours, theirs = await asyncio.gather(_read_all(source, size, offset), _read_all(target, size, offset))
            if ours != theirs:
                raise CopyFault(f"what is there differs from the source after byte {offset}: it is no part of it")


async def _read_all(file: File, size: int, offset: int) -> bytes:
    parts = []
    while size and (part := await file.read(size, offset)):
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


async def close_quietly(*files: File | None) -> None:
    """Close files after a failure that is already being reported."""
    for file in files:
        if file is not None:
            try:
                await file.close()
            except FILE_FAULTS:
                pass
