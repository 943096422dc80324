"""Single measurements in a lab: each returns plain numbers in seconds, bit/s or bytes."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import Spent
from tests.net.lab import RESOLVER4, Lab
from tests.net.process import LabError, Process

_DNS_PROBE = str(Path(__file__).with_name("dns_probe.py"))
_IPERF_PORT = 5201


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


def ping(lab: Lab, ns: str, address: str, *, count: int = 100, interval: float = 0.02, lost: float = 0) -> list[float]:
    """Round-trip times of ICMP echoes; LabError if more than one and the share `lost` of them got no answer."""
    argv = ["ping", "-n", "-c", str(count + 1), "-i", str(interval), "-W", "2", address]
    said = lab.run(ns, *argv, timeout=count * interval + 20, check=False).stdout
    times = [float(found) / 1000 for found in re.findall(r"time=([\d.]+) ms", said)]
    if len(times) < count * (1 - lost):
        raise LabError(f"pings were lost\n{said}")
    return times[1:]  # the first one pays for neighbour discovery


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def dns_times(lab: Lab, ns: str, name: str, count: int = 300) -> list[float]:
    """Round-trip times of A questions to the resolver."""
    said = lab.run(ns, sys.executable, _DNS_PROBE, RESOLVER4, name, str(count), timeout=60).stdout
    times: list[float] = json.loads(said)
    return times


@dataclass(frozen=True)
class Stream:
    """What TCP streams brought: bit/s, bytes, and what was spent on them."""

    rate: float
    bytes: float
    spent: Spent


def tcp(
    lab: Lab,
    client: str,
    server: str,
    address: str,
    *,
    seconds: float,
    reverse: bool,
    streams: int = 1,
    daemons: Iterable[Process] = (),
) -> Stream:
    """iperf3 from namespace `client` to `server` (back if `reverse`)."""
    pids = [process.pid for process in daemons]
    sink = lab.spawn(server, "iperf3", "-s", "-1", "-p", str(_IPERF_PORT))
    try:
        lab.wait_listening(sink, server, _IPERF_PORT)
        argv = ["iperf3", "-c", address, "-p", str(_IPERF_PORT), "-t", str(seconds), "-P", str(streams), "-J"]
        argv += ["-R"] if reverse else []
        before = Spent.now(pids)
        said = lab.run(client, *argv, timeout=seconds + 30).stdout
        spent = Spent.now(pids).since(before)
        received = json.loads(said)["end"]["sum_received"]
    finally:
        sink.kill()
    return Stream(float(received["bits_per_second"]), float(received["bytes"]), spent)


def loaded_ping(lab: Lab, client: str, server: str, address: str, *, seconds: float) -> list[float]:
    """Round-trip times while one TCP stream from client to server takes what it can."""
    sink = lab.spawn(server, "iperf3", "-s", "-1", "-p", str(_IPERF_PORT))
    source = None
    try:
        lab.wait_listening(sink, server, _IPERF_PORT)
        argv = ["-c", address, "-p", str(_IPERF_PORT), "-t", str(seconds + 20), "-i", "0.1", "--forceflush"]
        source = lab.spawn(client, "iperf3", *argv)
        source.wait_output("0.30-", 10)
        return ping(lab, client, address, count=int(seconds / 0.01), interval=0.01, lost=0.2)
    finally:
        if source is not None:
            source.kill()
        sink.kill()


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"median": statistics.median(values), "p99": quantile(values, 0.99)}
