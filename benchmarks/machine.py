"""What the machine spends: processor time of daemons and of everything, memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Bytes of a process and all its descendants; the sum of RSS counts shared pages once a process, PSS once."""

    rss: int
    pss: int


def memory(pid: int) -> Memory:
    """The memory of `pid` and its descendants now."""
    rss = pss = 0
    for member in _family(pid):
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
        sizes = dict(re.findall(r"^(Rss|Pss): +(\d+) kB$", text, re.MULTILINE))
        rss += int(sizes.get("Rss", 0)) * 1024
        pss += int(sizes.get("Pss", 0)) * 1024
    return Memory(rss, pss)


def cpu_seconds(pid: int) -> float:
    """Processor time that `pid` and its present descendants have used, user and system."""
    ticks = 0
    for member in _family(pid):
        try:
            stat = Path(f"/proc/{member}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = stat.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _HZ


@dataclass(frozen=True)
class Spent:
    """Seconds of all processors: work (not that of niced programs), work in soft interrupts, time taken by others."""

    busy: float
    softirq: float
    stolen: float
    daemons: float

    @staticmethod
    def now(pids: Iterable[int]) -> Spent:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, _nice, system, _idle, _wait, irq, softirq, stolen = (int(field) / _HZ for field in first)
        busy = user + system + irq + softirq
        return Spent(busy, softirq, stolen, sum(map(cpu_seconds, pids)))

    def since(self, before: Spent) -> Spent:
        """What was spent from `before` to this."""
        return Spent(
            self.busy - before.busy,
            self.softirq - before.softirq,
            self.stolen - before.stolen,
            self.daemons - before.daemons,
        )


def _family(pid: int) -> list[int]:
    found, queue = [], [pid]
    while queue:
        member = queue.pop()
        found.append(member)
        for listing in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                queue += map(int, listing.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
