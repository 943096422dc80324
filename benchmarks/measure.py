"""Single measurements in a lab: each returns plain numbers in seconds, bit/s or bytes."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.net.lab import RESOLVER4, Lab
from tests.net.process import LabError

_DNS_PROBE = str(Path(__file__).with_name("dns_probe.py"))


@dataclass(frozen=True)
class FirstByte:
    """What curl says about one page: the address it connected to, and seconds from its start."""

    address: str
    lookup: float
    first_byte: float


def first_byte(lab: Lab, ns: str, url: str) -> FirstByte:
    """Time from the DNS question to the first byte of the answer to `url`."""
    form = "%{remote_ip} %{time_namelookup} %{time_starttransfer}"
    argv = ["curl", "-sS", "--fail", "--max-time", "30", "-4", "-o", "/dev/null", "-w", form, url]
    address, lookup, first = lab.run(ns, *argv, timeout=40).stdout.split()
    return FirstByte(address, float(lookup), float(first))


def ping(lab: Lab, ns: str, address: str, *, count: int = 100, interval: float = 0.02) -> list[float]:
    """Round-trip times of ICMP echoes, one at a time; LabError if more than one is lost."""
    argv = ["ping", "-n", "-c", str(count + 1), "-i", str(interval), "-W", "2", address]
    said = lab.run(ns, *argv, timeout=count * interval + 20, check=False).stdout
    times = [float(found) / 1000 for found in re.findall(r"time=([\d.]+) ms", said)]
    if len(times) < count:
        raise LabError(f"pings were lost\n{said}")
    return times[1:]  # the first one pays for neighbour discovery


def dns_times(lab: Lab, ns: str, name: str, count: int = 300) -> list[float]:
    """Round-trip times of A questions to the resolver."""
    said = lab.run(ns, sys.executable, _DNS_PROBE, RESOLVER4, name, str(count), timeout=60).stdout
    times: list[float] = json.loads(said)
    return times


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
    return ticks / 100  # USER_HZ, the same on every Linux


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
