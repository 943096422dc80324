"""How one pqtun server does with more and more tunnels: what they share, memory each, processor time when idle."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.generator import Generator
from benchmarks.machine import cpu_seconds, memory
from benchmarks.swarm import FIRST
from tests.net.lab import SERVER4, Lab, Topology
from tests.net.pqtun import PqtunServer, environment
from tests.net.process import LabError, Process

STEPS = (1, 10, 100, 1000, 10000)
PYTHON_STEPS = (1, 10, 100, 1000)
PACKET = 1200
_HANDSHAKES_PER_SECOND = 100  # at the very least
_MOST_STREAMS = 1000
_SEGMENTS = 16
_WINDOW = 512


@dataclass(frozen=True)
class Pace:
    """Seconds of each measurement, and how often the ones of throughput are repeated."""

    idle: float
    stream: float
    flood: float
    repetitions: int


FULL = Pace(idle=5, stream=1.5, flood=0.7, repetitions=2)
QUICK = Pace(idle=1, stream=1, flood=0.5, repetitions=1)


@dataclass(frozen=True)
class Step:
    """What so many tunnels came to, at the server: bytes, and the share of one processor.

    bulk: bit/s that arrive of UDP packets, 16 of 1200 bytes to each tunnel in turn; single: packets/s when each goes
    into another tunnel than the one before. Both with a bound on what is on its way, so that nothing is sent in vain.
    tcp: bit/s in all of a connection in each tunnel (at most 1000), all sending at once.
    The names in _one are the same traffic in one tunnel, alternating with it; tcp_one is one connection.
    """

    tunnels: int
    handshakes_per_second: float
    handshakes_repeated: int
    server_rss: int
    server_pss: int
    idle_cpu: float
    bulk: list[float] = field(default_factory=list)
    bulk_one: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    single_one: list[float] = field(default_factory=list)
    tcp: list[float] = field(default_factory=list)
    tcp_as_many_in_one: list[float] = field(default_factory=list)
    tcp_one: list[float] = field(default_factory=list)


class _Clients:
    """benchmarks.swarm in a namespace."""

    def __init__(self, lab: Lab, ns: str, engine: str, keys: Path) -> None:
        argv = lab.argv(ns, sys.executable, "-m", "benchmarks.swarm", engine, str(keys), SERVER4)
        self._log = lab.directory / "swarm.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment()},
            )

    def grow(self, count: int) -> int:
        """Have so many tunnels; how many handshakes had to be made again until now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n".encode())
        self._process.stdin.flush()
        timeout = 20 + count / _HANDSHAKES_PER_SECOND
        line = b""
        if select.select([self._process.stdout], [], [], timeout)[0]:
            line = self._process.stdout.readline()
        if not line:
            raise LabError(f"no {count} tunnels in {timeout:g} s\n{self._log.read_text()}")
        return int(line.split()[1])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def growth(
    lab: Lab, net: Topology, generator: Generator, engine: str, pace: Pace, steps: Sequence[int] = STEPS
) -> list[Step]:
    """Start a server and clients, and add tunnels step by step."""
    server = PqtunServer(lab, net.server, lab.directory / "growth-server")
    # All clients come from one address.
    process = server.start(
        *("--engine", engine, "--handshakes-per-second", "1000000", "--handshakes-per-prefix", "1000000")
    )
    clients = _Clients(lab, net.client, engine, server.keys)
    found: list[Step] = []
    try:
        for count in steps:
            found.append(_step(process, clients, generator, count, found[-1].tunnels if found else 0, pace))
            print(f"        {count} tunnels", file=sys.stderr)
    finally:
        clients.close()
        server.stop()
    return found


def _step(server: Process, clients: _Clients, generator: Generator, count: int, before: int, pace: Pace) -> Step:
    began = time.monotonic()
    repeated = clients.grow(count)
    rate = (count - before) / (time.monotonic() - began)
    used = memory(server.pid)
    cpu, began = cpu_seconds(server.pid), time.monotonic()
    # The length of the measurement.
    time.sleep(pace.idle)
    idle = (cpu_seconds(server.pid) - cpu) / (time.monotonic() - began)
    step = Step(count, rate, repeated, used.rss, used.pss, idle)
    streams = min(count, _MOST_STREAMS)
    for _ in range(pace.repetitions):
        for addresses, bulk, single in ((1, step.bulk_one, step.single_one), (count, step.bulk, step.single)):
            options = {"window": _WINDOW, "addresses": addresses}
            packets = generator.udp(str(FIRST), PACKET, pace.flood, segments=_SEGMENTS, **options).rate
            bulk.append(packets * PACKET * 8)
            single.append(generator.udp(str(FIRST), PACKET, pace.flood, **options).rate)
        step.tcp_one.append(generator.tcp(str(FIRST), 1, pace.stream))
        step.tcp.append(generator.tcp(str(FIRST), streams, pace.stream, addresses=count))
        step.tcp_as_many_in_one.append(generator.tcp(str(FIRST), streams, pace.stream))
    return step
