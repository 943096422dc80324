"""pqtun beside other tunnels on the same namespaces: in each repetition every one is started, measured and stopped.

The order is another one in each repetition, so that a machine that becomes slower hurts all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import growth, report, tools
from benchmarks.contacts import PLAIN_RECORDS, contacts, serve_page
from benchmarks.contenders import MAKERS, Contender, Pqconnect, Pqtun, Tunnel, device_mtu
from benchmarks.generator import Generator, lossless_rate
from benchmarks.machine import memory
from benchmarks.measure import loaded_ping, ping, summary, tcp
from benchmarks.samples import Samples
from tests.interop.debian import Unavailable
from tests.net.lab import Lab, standard_topology
from tests.net.process import LabError

SOA = "$TTL 60\nexample.net. IN SOA ns.example.net. host.example.net. 1 60 60 60 60\n"
METRICS = ("tcp", "tcp4", "udp64", "udp1200", "ping", "loaded", "memory", "contact")
ALONE = ("growth", "handshakes")  # of pqtun alone, after the others
# PQConnect moves a thousand packets a second: the rest would only say that again.
FOR_PQCONNECT = ("tcp", "ping", "memory", "contact")
SLOW = ("pqtun-python", "pqconnect")  # not measured in every second repetition
BUSY = 0.7  # load above which something else runs
FOR_NULL = ("tcp", "tcp4", "udp64", "udp1200", "ping")


@dataclass(frozen=True)
class Pace:
    """How long each measurement takes, in seconds."""

    stream: float
    trial: float
    flood: float
    pings: int
    loaded: float


FULL = Pace(stream=3, trial=0.4, flood=1, pings=200, loaded=2)
QUICK = Pace(stream=1.5, trial=0.25, flood=0.5, pings=100, loaded=1)


class Bench:
    """The lab with its services, and the samples."""

    def __init__(self, lab: Lab, pace: Pace, metrics: Sequence[str]) -> None:
        self.lab, self.pace, self.metrics = lab, pace, metrics
        self.net = standard_topology(lab)
        self.samples = Samples()
        self.mtu: dict[str, int] = {}
        self.failures: list[str] = []
        if "contact" in metrics:
            serve_page(lab, self.net)

    def serve(self, contenders: Mapping[str, Contender]) -> None:
        """Start the resolver that knows all of them."""
        records = "".join(contender.records() for contender in contenders.values())
        self.lab.dns_server(self.net.resolver, SOA + PLAIN_RECORDS + records)

    def repetition(self, name: str, contender: Contender, generator: Generator) -> None:
        """Start, measure, stop; what goes wrong is noted, and the others go on."""
        try:
            if "contact" in self.metrics and isinstance(contender, Pqtun | Pqconnect):
                contacts(self.lab, self.net, name, contender, self.samples)
            self._measure(name, contender.start(), generator)
        except LabError as error:
            self.fail(f"{name}: {error}")
        finally:
            contender.stop()

    def fail(self, text: str) -> None:
        """Note what went wrong."""
        self.failures.append(text)
        print(text, file=sys.stderr)

    def _measure(self, name: str, tunnel: Tunnel, generator: Generator) -> None:
        self.mtu[name] = device_mtu(self.lab, self.net.client, tunnel.address)
        only = {"pqconnect": FOR_PQCONNECT, "pqtun-null": FOR_NULL}.get(name, METRICS)
        for metric in self.metrics:
            if metric in only:
                _HOW[metric](self, name, tunnel, generator)

    def tcp(self, name: str, tunnel: Tunnel, generator: Generator) -> None:
        spent = []
        for key, reverse in (("tcp_up", False), ("tcp_down", True)):
            stream = tcp(
                self.lab,
                self.net.client,
                self.net.server,
                tunnel.address,
                seconds=self.pace.stream,
                reverse=reverse,
                daemons=tunnel.daemons.values(),
            )
            self.samples.add(name, key, stream.rate)
            spent.append(stream)
            self.samples.add(name, f"{key}_cpu_gb", stream.spent.daemons / stream.bytes * 1e9)
            self.samples.add(name, f"{key}_stolen", stream.spent.stolen)
        gigabytes = sum(stream.bytes for stream in spent) / 1e9
        if tunnel.daemons:
            self.samples.add(name, "cpu_gb", sum(stream.spent.daemons for stream in spent) / gigabytes)
        self.samples.add(name, "busy_gb", sum(stream.spent.busy for stream in spent) / gigabytes)
        self.samples.add(name, "softirq_gb", sum(stream.spent.softirq for stream in spent) / gigabytes)

    def tcp4(self, name: str, tunnel: Tunnel, generator: Generator) -> None:
        for key, reverse in (("tcp4_up", False), ("tcp4_down", True)):
            client, server, seconds = self.net.client, self.net.server, self.pace.stream
            stream = tcp(self.lab, client, server, tunnel.address, seconds=seconds, reverse=reverse, streams=4)
            self.samples.add(name, key, stream.rate)

    def udp(self, name: str, tunnel: Tunnel, generator: Generator, size: int) -> None:
        flood = generator.udp(tunnel.address, size, self.pace.flood)
        self.samples.add(name, f"udp{size}_flood", flood.rate)
        rate = lossless_rate(generator, tunnel.address, size, max(flood.rate, 1000), self.pace.trial)
        self.samples.add(name, f"udp{size}", rate)

    def ping(self, name: str, tunnel: Tunnel, generator: Generator) -> None:
        times = summary(ping(self.lab, self.net.client, tunnel.address, count=self.pace.pings, interval=0.01))
        self.samples.add(name, "ping", times["median"])
        self.samples.add(name, "ping_p99", times["p99"])

    def loaded(self, name: str, tunnel: Tunnel, generator: Generator) -> None:
        found = loaded_ping(self.lab, self.net.client, self.net.server, tunnel.address, seconds=self.pace.loaded)
        times = summary(found)
        self.samples.add(name, "loaded_ping", times["median"])
        self.samples.add(name, "loaded_ping_p99", times["p99"])

    def memory(self, name: str, tunnel: Tunnel, generator: Generator) -> None:
        for role, process in tunnel.daemons.items():
            used = memory(process.pid)
            self.samples.add(name, f"{role}_rss", used.rss)
            self.samples.add(name, f"{role}_pss", used.pss)


_HOW: Mapping[str, Callable[[Bench, str, Tunnel, Generator], None]] = {
    "tcp": Bench.tcp,
    "tcp4": Bench.tcp4,
    "udp64": lambda bench, name, tunnel, generator: bench.udp(name, tunnel, generator, 64),
    "udp1200": lambda bench, name, tunnel, generator: bench.udp(name, tunnel, generator, 1200),
    "ping": Bench.ping,
    "loaded": Bench.loaded,
    "memory": Bench.memory,
    **dict.fromkeys(("contact", *ALONE), lambda bench, name, tunnel, generator: None),  # with daemons of their own
}


def make(bench: Bench, names: Sequence[str]) -> dict[str, Contender]:
    """Those of the contenders that can be had here; the others are named with the reason."""
    made = {}
    for name in names:
        try:
            made[name] = MAKERS[name](bench.lab, bench.net, name)
        except Unavailable as reason:
            print(f"without {name}: {reason}", file=sys.stderr)
    return made


def turns(names: Sequence[str], repetitions: int) -> Iterator[tuple[str, str]]:
    """Whose turn it is, and in which repetition: another order in each, always the same ones."""
    chance = random.Random(1)
    for number in range(repetitions):
        for name in chance.sample(names, len(names)):
            if name not in SLOW or number % 2 == 0:
                yield name, f"{number + 1}/{repetitions}"


def alone(bench: Bench, generator: Generator, quick: bool) -> dict[str, Any]:
    """Growth and handshakes, with the native engine if it is there."""
    found: dict[str, Any] = {}
    engine = "native" if find_spec("pqtun.pump._native") else "python"
    if "growth" in bench.metrics:
        steps = growth.STEPS if engine == "native" else growth.PYTHON_STEPS
        pace = growth.QUICK if quick else growth.FULL
        try:
            grown = growth.growth(bench.lab, bench.net, generator, engine, pace, steps)
            found["growth"] = {"engine": engine, "steps": [asdict(step) for step in grown]}
        except LabError as error:
            bench.fail(f"growth: {error}")
    if "handshakes" in bench.metrics:
        try:
            found["handshakes"] = handshakes(engine, quick)
        except LabError as error:
            bench.fail(str(error))
    return found


def handshakes(engine: str, quick: bool) -> dict[str, Any]:
    """What benchmarks.handshakes finds, in a process of its own: it keeps itself to one core."""
    argv = [sys.executable, "-m", "benchmarks.handshakes", "--engine", engine, "--json"]
    argv += ["--count", "1000", "--repetitions", "2", "--seconds", "1"] if quick else []
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False, cwd=report.ROOT)
    if done.returncode:
        raise LabError(f"handshakes: {done.stderr[-2000:]}")
    path = Path(done.stdout.split()[-1])
    said: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return said


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    def names(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            for name in chosen:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
            return chosen

        return parse

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=names(list(MAKERS)), default=list(MAKERS), metavar="NAME,...")
    parser.add_argument("--metrics", type=names(METRICS + ALONE), default=list(METRICS + ALONE), metavar="NAME,...")
    parser.add_argument("--repetitions", type=int, metavar="N", help="5, or 2 with --quick")
    parser.add_argument("--seconds", type=float, help="length of each TCP stream: 3, or 1.5 with --quick")
    parser.add_argument("--quick", action="store_true", help="short measurements, and no file in benchmarks/results")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON file; 1 with --check if a goal was missed."""
    options = _parse(arguments)
    if os.geteuid() != 0:
        print("the benchmarks make network namespaces: run them as root", file=sys.stderr)
        return 2
    pace = QUICK if options.quick else FULL
    if options.seconds:
        pace = Pace(options.seconds, pace.trial, pace.flood, pace.pings, pace.loaded)
    repetitions = options.repetitions or (2 if options.quick else 5)
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"other programs run here (load {load:.1f}): figures will be lower than they could be", file=sys.stderr)
    began = time.monotonic()
    with Lab() as lab:
        bench = Bench(lab, pace, options.metrics)
        contenders = make(bench, options.only)
        bench.serve(contenders)
        with Generator(tools.load_tool(), bench.net.client, bench.net.server) as generator:
            try:
                for name, text in turns(list(contenders), repetitions):
                    print(f"{time.monotonic() - began:4.0f} s  {text}  {name}", file=sys.stderr)
                    bench.repetition(name, contenders[name], generator)
                more = alone(bench, generator, options.quick)
            except KeyboardInterrupt:
                bench.fail("interrupted")
                more = {}
    samples = bench.samples
    if samples.names():
        print(report.table(samples, [name for name in contenders if name in samples.names()]))
        print("medians, in parentheses the quartiles (extremes of fewer than four samples)")
    if "growth" in more:
        print(f"\n{report.growth_table(more['growth']['steps'])}")
    text, met = report.goals(samples, more)
    if text:
        print(f"\n{text}\nratios of the medians, in parentheses the spread of the ratios of the repetitions")
    if not (options.quick or options.no_json):
        setting = {"repetitions": repetitions, "pace": asdict(pace), "mtu": bench.mtu, "load_before": load}
        results = {"contenders": samples.summary(), **more}
        path = report.write_json("bench", {"setting": setting, "failures": bench.failures, **results})
        print(f"all samples: {path}\nfor doc/performance.md: .venv/bin/python -m benchmarks.publish {path}")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
