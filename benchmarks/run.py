"""pqtun and PQConnect side by side on the same two namespaces, in turn: rates, delays, memory.

Each repetition starts one pair of daemons, measures, stops it, and does the same with the other pair, so that a machine
that becomes slower hurts both. `direct` is the same network without any tunnel.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import cpu_seconds, dns_times, first_byte, memory, ping
from benchmarks.report import Samples, table, write_json
from tests.interop.debian import Unavailable, pqconnect_root
from tests.interop.pqconnect import PqconnectClient, PqconnectServer
from tests.net.lab import SERVER4, DnsServer, Lab, Topology, standard_topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import LabError, Process

PLAIN = "plain.example.net"
SOA = "$TTL 60\nexample.net. IN SOA ns.example.net. host.example.net. 1 60 60 60 60\n"
PAGE = "small"


@dataclass
class Pair:
    """One implementation's server and client, to be started and stopped in turn."""

    side: str
    host: str
    start_server: Callable[[], Process]
    stop_server: Callable[[], object]
    start_client: Callable[[bool], Process]  # True: with nothing remembered of earlier runs
    stop_client: Callable[[], object]
    remembers_key: bool


def pqtun_pair(lab: Lab, net: Topology) -> tuple[Pair, str]:
    """pqtun with the Python engine, and its records for the zone."""
    host = "pqtun.example.net"
    server = PqtunServer(lab, net.server, lab.directory / "pqtun-server")
    client = PqtunClient(lab, net.client, lab.directory / "pqtun-client")
    serial = iter(range(1_000_000))

    def start_client(fresh: bool) -> Process:
        if fresh:
            client.directory = lab.directory / f"pqtun-client-{next(serial)}"
            client.directory.mkdir()
        return client.start("--engine", "python")

    records = server.announce(host, address=SERVER4)
    pair = Pair("pqtun", host, lambda: server.start("--engine", "python"), server.stop, start_client, client.stop, True)
    return pair, records


def pqconnect_pair(lab: Lab, net: Topology, root: Path) -> tuple[Pair, str]:
    """PQConnect, and its records for the zone. It keeps no key on disk."""
    host = "pqconnect.example.net"
    server = PqconnectServer(lab, net.server, root, lab.directory / "pqconnect-server")
    client = PqconnectClient(lab, net.client, root, lab.directory / "pqconnect-client")
    name = f"{server.name}.example.net."
    records = f"{host}. IN CNAME {name}\n{name} IN A {SERVER4}\n"
    pair = Pair("pqconnect", host, server.start, server.stop, lambda fresh: client.start(), client.stop, False)
    return pair, records


class Bench:
    """The lab with its services, and the samples."""

    def __init__(self, lab: Lab, seconds: float) -> None:
        self.lab, self.seconds = lab, seconds
        self.net = standard_topology(lab)
        self.samples = Samples()
        www = lab.directory / "www"
        www.mkdir()
        (www / PAGE).write_bytes(os.urandom(1000))
        lab.web_server(self.net.server, www)
        self.dns: DnsServer | None = None

    def serve_zone(self, records: str) -> None:
        """Start the resolver with these records and the unannounced host."""
        self.dns = self.lab.dns_server(self.net.resolver, f"{SOA}{PLAIN}. IN A {SERVER4}\n{records}")

    def direct(self) -> None:
        """The network itself."""
        self._streams("direct", SERVER4)
        self.samples.add("direct", "ping", ping(self.lab, self.net.client, SERVER4))
        page = first_byte(self.lab, self.net.client, f"http://{PLAIN}/{PAGE}")
        self.samples.add("direct", "first_contact", page.first_byte)

    def contacts(self, pair: Pair, times: int) -> None:
        """First bytes: nothing known, then key known but no tunnel, then tunnel up; the server runs."""
        url = f"http://{pair.host}/{PAGE}"
        for _ in range(times):
            for key in ("first_contact", "key_cached") if pair.remembers_key else ("first_contact",):
                pair.start_client(key == "first_contact")
                try:
                    page = first_byte(self.lab, self.net.client, url)
                    self.samples.add(pair.side, key, page.first_byte)
                    again = first_byte(self.lab, self.net.client, url)
                    self.samples.add(pair.side, "tunnel_up", again.first_byte)
                finally:
                    pair.stop_client()

    def repetition(self, pair: Pair) -> None:
        """DNS delay, streams, ping and memory of one pair, started for it."""
        without = dns_times(self.lab, self.net.client, PLAIN)
        server = pair.start_server()
        try:
            self.contacts(pair, 2)
            client = pair.start_client(False)
            try:
                delayed = dns_times(self.lab, self.net.client, PLAIN)
                page = first_byte(self.lab, self.net.client, f"http://{pair.host}/{PAGE}")
                if page.address == SERVER4:
                    raise LabError(f"{pair.side}: the page did not come through the tunnel")
                self.samples.add(pair.side, "ping", ping(self.lab, self.net.client, page.address))
                self._streams(pair.side, page.address, client, server)
                for role, process in (("client", client), ("server", server)):
                    used = memory(process.pid)
                    self.samples.add(pair.side, f"{role}_rss", used.rss)
                    self.samples.add(pair.side, f"{role}_pss", used.pss)
            finally:
                pair.stop_client()
        finally:
            pair.stop_server()
        # The two series are as long; the nth values of the sorted ones differ by what is added at that quantile.
        added = [b - a for a, b in zip(sorted(without), sorted(delayed), strict=True)]
        self.samples.add(pair.side, "dns_delay", added[len(added) // 2])

    def _streams(self, side: str, address: str, *daemons: Process) -> None:
        for key, reverse in (("download", True), ("upload", False)):
            before = sum(cpu_seconds(process.pid) for process in daemons)
            rate = self.lab.iperf3(self.net.client, self.net.server, address, seconds=self.seconds, reverse=reverse)
            self.samples.add(side, key, rate)
            used = sum(cpu_seconds(process.pid) for process in daemons) - before
            if daemons:
                self.samples.add(side, f"{key}_cpu_seconds_per_second", used / self.seconds)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON file; 1 with --check if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=5, help="length of each TCP stream")
    parser.add_argument("--only", choices=["pqtun", "pqconnect"], help="measure this one alone")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("the benchmarks make network namespaces: run them as root", file=sys.stderr)
        return 2
    with Lab() as lab:
        bench = Bench(lab, options.seconds)
        pairs, records = [], ""
        if options.only != "pqconnect":
            pair, lines = pqtun_pair(lab, bench.net)
            pairs.append(pair)
            records += lines
        if options.only != "pqtun":
            try:
                pair, lines = pqconnect_pair(lab, bench.net, pqconnect_root())
                pairs.append(pair)
                records += lines
            except Unavailable as reason:
                print(f"without PQConnect: {reason}", file=sys.stderr)
        bench.serve_zone(records)
        for repetition in range(options.repetitions):
            print(f"repetition {repetition + 1} of {options.repetitions}", file=sys.stderr)
            bench.direct()
            for pair in pairs:
                bench.repetition(pair)
    text, met = table(bench.samples, [*(pair.side for pair in pairs), "direct"])
    print(text)
    if not options.no_json:
        setting = {"repetitions": options.repetitions, "stream_seconds": options.seconds, "engine": "python"}
        path = write_json("bench", {"setting": setting, "sides": bench.samples.summary()})
        print(f"all samples: {path}")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
