"""`python -m benchmarks.pump_python`: the Python packet engine alone, with fixed keys and no control plane.

First the cost of its steps for one packet, then TCP streams between two engines in two namespaces.
"""

import argparse
import os
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from benchmarks.machine import cpu_seconds
from benchmarks.measure import ping
from benchmarks.report import write_json
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump.inner import Inbound, Outbound, clear_destination
from tests.net.lab import Lab
from tests.net.pump_host import CLIENT_OWN, CLIENT_PEER, SERVER_OWN, SERVER_PEER
from tests.pump import packets
from tests.pump.rig import session

ROOT = Path(__file__).resolve().parents[1]
CLIENT4, SERVER4 = "192.0.2.10", "192.0.2.20"
LOOPS = 20_000
HEADERS = 40  # IPv4 and TCP


def steps(size: int) -> dict[str, float]:
    """Microseconds that each step takes for a TCP packet of ``size`` bytes; the best of 5 runs."""
    packet = packets.tcp_packet(CLIENT_OWN, CLIENT_PEER, os.urandom(size - HEADERS))
    plaintext = packets.cleared(packet)
    inbound = Inbound(IPv4Address(SERVER_PEER), IPv4Address(SERVER_OWN))
    outbound = Outbound(IPv4Address(CLIENT_OWN), IPv4Network(f"{CLIENT_OWN}/16", strict=False), None)
    alone: dict[str, Callable[[], object]] = {
        "check destination": lambda: outbound.destination(packet),
        "clear destination": lambda: clear_destination(packet),
        "readdress": lambda: inbound.deliver(plaintext),
    }
    result = {name: min(timeit.repeat(step, number=LOOPS, repeat=5)) / LOOPS * 1e6 for name, step in alone.items()}
    seals, opens = [], []
    for _ in range(5):
        ours, theirs = session(1)
        sender = Tunnel(ours.tid, ours.send_root, ours.recv_root, 0.0)
        receiver = Tunnel(theirs.tid, theirs.send_root, theirs.recv_root, 0.0)
        begin = time.perf_counter()
        datagrams = [sender.seal(plaintext, 0.0) for _ in range(LOOPS)]
        middle = time.perf_counter()
        for datagram in datagrams:
            receiver.open(datagram, 0.0)
        seals.append((middle - begin) / LOOPS * 1e6)
        opens.append((time.perf_counter() - middle) / LOOPS * 1e6)
    return {**result, "seal": min(seals), "open": min(opens)}


def streams(mtu: int, seconds: float, repetitions: int) -> dict[str, list[float]]:
    """Mbit/s of one TCP stream each way, processor shares of both engines, and idle ping in ms."""
    found: dict[str, list[float]] = {}
    with Lab() as lab:
        client, server = lab.namespace("client"), lab.namespace("server")
        lab.link(((client, "eth0"), (server, "eth0")), ([f"{CLIENT4}/24"], [f"{SERVER4}/24"]))
        engines = []
        for ns, role, peer in ((client, "client", SERVER4), (server, "server", CLIENT4)):
            argv = (sys.executable, "-m", "tests.net.pump_host", role, peer, "--mtu", str(mtu))
            engines.append(lab.spawn(ns, *argv, env={"PYTHONPATH": str(ROOT)}))
            engines[-1].wait_output("ready", 20)
        found["ping_ms"] = [t * 1000 for t in ping(lab, client, CLIENT_PEER)]
        for _ in range(repetitions):
            for name, reverse in (("up", False), ("down", True)):
                before = [cpu_seconds(engine.pid) for engine in engines]
                rate = lab.iperf3(client, server, CLIENT_PEER, seconds=seconds, reverse=reverse)
                found.setdefault(f"{name}_mbit_per_second", []).append(rate / 1e6)
                for role, engine, used in zip(("client", "server"), engines, before, strict=True):
                    share = (cpu_seconds(engine.pid) - used) / seconds
                    found.setdefault(f"{name}_{role}_cpu", []).append(share)
    return found


def main() -> int:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pump_python", description=__doc__)
    parser.add_argument("--mtu", type=int, nargs="*", default=[1200, 1396], help="of the TUN devices")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args()
    costs = {str(size): steps(size) for size in (HEADERS, 1200, 1396)}
    for size, parts in costs.items():
        print(f"packet of {size} bytes: " + ", ".join(f"{name} {us:.1f} us" for name, us in parts.items()))
    if os.geteuid() != 0:
        print("no streams: network namespaces need root", file=sys.stderr)
        return 2
    rates = {}
    for mtu in options.mtu:
        rates[str(mtu)] = streams(mtu, options.seconds, options.repetitions)
        medians = {name: statistics.median(values) for name, values in rates[str(mtu)].items()}
        print(f"MTU {mtu}: " + ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))
    if not options.no_json:
        print(write_json("pump-python", {"steps_us": costs, "streams": rates}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
