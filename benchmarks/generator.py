"""The load generator (benchmarks/load), one end in each of two namespaces; the search for a rate without loss."""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.net.process import LabError

PORT = 5301
LOSS = 0.001  # "without loss": less than that


@dataclass(frozen=True)
class Trial:
    """What one row of packets came to; in_time are those that arrived before the last one was sent."""

    sent: int
    received: int
    in_time: int
    reordered: int
    seconds: float

    @property
    def lossless(self) -> bool:
        return self.sent > 0 and self.sent - self.received < LOSS * self.sent

    @property
    def rate(self) -> float:
        """Packets a second that arrived."""
        return (self.received if self.lossless else self.in_time) / self.seconds


class Generator:
    """A running load generator from one namespace to another."""

    def __init__(self, program: Path, from_ns: str, to_ns: str) -> None:
        self._process = subprocess.Popen(
            [str(program), from_ns, to_ns, str(PORT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def udp(
        self,
        address: str,
        size: int,
        seconds: float,
        *,
        rate: float = 0,
        window: int = 0,
        segments: int = 1,
        addresses: int = 1,
    ) -> Trial:
        """Send packets of `size` bytes in all to the addresses in turn, `segments` at once to each (UDP_SEGMENT).

        With `rate` so many a second; with `window` so that at most so many are on their way.
        """
        order = f"udp {address} {addresses} {size} {segments} {rate} {window} {seconds}"
        said = self._ask(order, seconds + 10)
        sent, received, in_time, reordered = (int(said[key]) for key in ("sent", "received", "in_time", "reordered"))
        return Trial(sent, received, in_time, reordered, said["seconds"])

    def tcp(self, address: str, streams: int, seconds: float, *, addresses: int = 1) -> float:
        """Bit/s that arrive by so many connections, spread over the addresses."""
        said = self._ask(f"tcp {address} {addresses} {streams} {seconds}", 2 * seconds + 60)
        return float(said["bytes"]) * 8 / float(said["seconds"])

    def _ask(self, order: str, timeout: float) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said of its end is read below
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise LabError(f"the load generator did not finish {order!r} in {timeout:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"{order}: {self._process.stderr.read().decode().strip()}")
        said: dict[str, float] = json.loads(line)
        return said


def highest_rate(trial: Callable[[float], Trial], start: float, *, step: float = 1.3, precision: float = 0.04) -> float:
    """The highest rate, as sent, that passes, up to `precision`; 0 if none from start / 100 on does.

    A rate has failed when it failed twice: one late wake-up among other programs is no limit.
    """

    def passes(rate: float) -> bool:
        return trial(rate).lossless or trial(rate).lossless

    low = high = start
    if passes(start):
        while passes(high := low * step):
            low = high
    else:
        while not passes(low := high / step):
            high = low
            if low < start / 100:
                return 0.0
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def lossless_rate(generator: Generator, address: str, size: int, start: float, seconds: float) -> float:
    """Packets of `size` bytes a second that a tunnel takes without loss."""

    def trial(rate: float) -> Trial:
        made = generator.udp(address, size, seconds, rate=rate)
        _settle(generator, address)
        # A generator that does not keep up has not sent at this rate.
        return made if made.sent >= 0.98 * rate * made.seconds else Trial(made.sent, 0, 0, 0, made.seconds)

    return highest_rate(trial, start)


def _settle(generator: Generator, address: str) -> None:
    """Wait until a few packets come through, that is until the queues of the trial before are empty."""
    deadline = time.monotonic() + 5
    while generator.udp(address, 64, 0.005, rate=1000).received == 0 and time.monotonic() < deadline:
        pass
