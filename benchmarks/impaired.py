"""Downloads over bad paths, through the tunnel and without it: how much longer the tunnel takes.

All go over the same wire of the lab, 2 ms each way and at most 100 Mbit/s besides what the case does to it; the two
ways take turns. The tunnel is up before. Both use TCP as the kernel has it, without its memory of earlier connections.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import write_json
from benchmarks.run import SOA
from benchmarks.samples import Samples, spread
from tests.net.lab import SERVER4, Conditions, Lab, Topology, standard_topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import LabError
from tests.net.wire import Wire

HOST = "impaired.example.net"
BASE = Conditions(delay=0.002, rate=100e6)
GOAL = 1.15  # times the time of plain TCP
SECONDS = 1800.0
WAYS = ("plain", "pqtun")

CASES: Mapping[str, Mapping[str, float]] = {
    "no loss": {},
    "1 % loss": {"loss": 0.01},
    "5 % loss": {"loss": 0.05},
    "10 % loss": {"loss": 0.10},
    "5 % reordered by 3 ms": {"reorder": 0.05, "reorder_by": 0.003},
    "1 % duplicated": {"duplicate": 0.01},
    "500 lost after each 10000": {"burst": 500, "burst_every": 10_000},
    "100 ms": {"delay": 0.05},
    "10 Mbit/s": {"rate": 10e6},
    "50 Mbit/s": {"rate": 50e6},
}


@dataclass(frozen=True)
class Paths:
    """The two ways to the same file."""

    lab: Lab
    net: Topology
    wire: Wire
    digest: bytes

    def fetch(self, way: str) -> float:
        """Seconds that a download took; LabError if it failed or something else arrived."""
        got = self.lab.directory / "got"
        address = SERVER4 if way == "plain" else HOST
        argv = ["curl", "-sSf", "-4", "-o", str(got), "-w", "%{time_total} %{remote_ip}", f"http://{address}/large"]
        seconds, peer = self.lab.run(self.net.client, *argv, timeout=SECONDS).stdout.split()
        if (peer == SERVER4) != (way == "plain"):
            raise LabError(f"{way} went to {peer}")
        with got.open("rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != self.digest:
                raise LabError(f"{way}: what arrived has another digest")
        return float(seconds)


def prepare(lab: Lab, engine: str, size: int, congestion_control: str) -> Paths:
    """The lab with both daemons, a tunnel that is up, and the file."""
    net = standard_topology(lab, Conditions())
    assert net.wire is not None
    for ns in (net.client, net.server):
        lab.run(ns, "sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1")
    www = lab.directory / "www"
    www.mkdir()
    content = os.urandom(size)
    (www / "large").write_bytes(content)
    (www / "page").write_bytes(b"up")
    lab.web_server(net.server, www, congestion_control=congestion_control)
    server = PqtunServer(lab, net.server, lab.directory / "server")
    client = PqtunClient(lab, net.client, lab.directory / "client")
    lab.dns_server(net.resolver, SOA + server.announce(HOST, address=SERVER4))
    server.start("--engine", engine)
    client.start("--engine", engine)
    lab.run(net.client, "curl", "-sSf", "-4", f"http://{HOST}/page", timeout=60)
    return Paths(lab, net, net.wire, hashlib.sha256(content).digest())


def measure(paths: Paths, case: str, repetitions: int, samples: Samples, failures: list[str]) -> None:
    """All repetitions of one case, the two ways in turn."""
    paths.wire.set(**vars(BASE))
    paths.wire.set(**CASES[case])
    for repetition in range(repetitions):
        order = list(WAYS)
        random.Random(f"{case} {repetition}").shuffle(order)
        for way in order:
            try:
                samples.add(way, case, paths.fetch(way))
            except LabError as error:
                failures.append(f"{case}: {error}")
                print(failures[-1], file=sys.stderr)
    paths.wire.set(**vars(Conditions()))


def ratio(samples: Samples, case: str) -> float | None:
    """Median time of the tunnel by that of plain TCP; None if one was not measured."""
    times = [samples.of(way, case) for way in WAYS]
    return statistics.median(times[1]) / statistics.median(times[0]) if all(times) else None


def row(samples: Samples, case: str) -> str:
    """One line of the table."""
    found = ratio(samples, case)
    if found is None:
        return f"| {case} | | | not measured |"
    cells = []
    for way in WAYS:
        low, high = spread(samples.of(way, case))
        cells.append(f"{statistics.median(samples.of(way, case)):.2f} ({low:.2f}-{high:.2f})")
    return f"| {case} | {' | '.join(cells)} | {found:.2f}{'' if found <= GOAL else ' MISSED'} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file; 1 if a download failed or, with --check, took too long."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.impaired", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="comma between them (%(default)s)")
    parser.add_argument("--engine", default="native")
    parser.add_argument(
        "--tcp", default="cubic", help="congestion control: Linux's default, or bbr, which minds no loss"
    )
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--check", action="store_true", help=f"fail where the tunnel takes over {GOAL} times as long")
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    cases = options.cases.split(",")
    samples, failures = Samples(), list[str]()
    print("| case | plain TCP, s | pqtun, s | ratio |\n|---|---|---|---|")
    with Lab() as lab:
        paths = prepare(lab, options.engine, int(options.megabytes * 1e6), options.tcp)
        for case in cases:
            measure(paths, case, options.repetitions, samples, failures)
            print(row(samples, case), flush=True)
    if not options.no_json:
        setting = {"engine": options.engine, "megabytes": options.megabytes, "tcp": options.tcp}
        path: Path = write_json("impaired", {"setting": setting, "failures": failures, **samples.summary()})
        print(f"all samples: {path}")
    met = all((found := ratio(samples, case)) is not None and found <= GOAL for case in cases)
    return 1 if failures or (options.check and not met) else 0


if __name__ == "__main__":
    sys.exit(main())
