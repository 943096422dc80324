"""Ten minutes of traffic through one tunnel, across 20 epochs: no connection is lost and memory stays flat.

An ssh session echoes a line a second, an iperf3 stream of 20 Mbit/s is one TCP connection for the whole time, and a
page of 1 MB is fetched every five seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, field

from benchmarks.machine import memory
from benchmarks.measure import first_byte
from benchmarks.report import write_json
from benchmarks.run import SOA
from tests.net.lab import SERVER4, Lab, standard_topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import LabError
from tests.net.ssh import EchoSession, SshServer

HOST = "www.example.net"
EPOCH = 30.0
RATE = 20_000_000
MEMORY_LIMIT = 150_000_000
PAGE_BYTES = 1_000_000
PERIOD, PAGE_PERIOD, MEMORY_PERIOD = 1.0, 5.0, 10.0


@dataclass
class Course:
    """What happened: times in seconds, memory in bytes, one entry a sample."""

    echo: list[float] = field(default_factory=list)
    page: list[float] = field(default_factory=list)
    memory: dict[str, list[int]] = field(default_factory=lambda: {"client": [], "server": []})
    stream_bits_per_second: list[float] = field(default_factory=list)
    stream_retransmits: int = 0


def soak(lab: Lab, seconds: float) -> tuple[Course, dict[str, object]]:
    """Run it; LabError names the first thing that went wrong."""
    net = standard_topology(lab)
    server = PqtunServer(lab, net.server, lab.directory / "server")
    client = PqtunClient(lab, net.client, lab.directory / "client")
    lab.dns_server(net.resolver, SOA + server.announce(HOST, address=SERVER4))
    www = lab.directory / "www"
    www.mkdir()
    content = os.urandom(PAGE_BYTES)
    digest = hashlib.sha256(content).digest()
    (www / "page").write_bytes(content)
    lab.web_server(net.server, www)
    sshd = SshServer(lab, net.server)
    server_process = server.start()
    client_process = client.start()
    address = first_byte(lab, net.client, f"http://{HOST}/page").address

    sink = lab.spawn(net.server, "iperf3", "-s", "-1")
    lab.wait_listening(sink, net.server, 5201)
    rate = ["-b", str(RATE), "-t", str(int(seconds)), "-i", "5", "-J"]
    stream = lab.spawn(net.client, "iperf3", "-c", address, *rate)
    shell = EchoSession(lab.argv(net.client, *sshd.client_argv(HOST, EchoSession.COMMAND)))
    course = Course()
    got = lab.directory / "got"
    begin = time.monotonic()
    next_page = next_memory = 0.0
    try:
        while (now := time.monotonic() - begin) < seconds:
            course.echo.append(shell.echo(f"line {len(course.echo)}"))
            if now >= next_page:
                next_page += PAGE_PERIOD
                asked = time.monotonic()
                lab.run(net.client, "curl", "-sSf", "-o", str(got), f"http://{HOST}/page", timeout=30)
                course.page.append(time.monotonic() - asked)
                if hashlib.sha256(got.read_bytes()).digest() != digest:
                    raise LabError("a page arrived with another digest")
            if now >= next_memory:
                next_memory += MEMORY_PERIOD
                for role, process in (("client", client_process), ("server", server_process)):
                    course.memory[role].append(memory(process.pid).rss)
                if not stream.running:
                    raise LabError(f"the TCP stream ended early\n{stream.output()}")
                print(f"{now:5.0f} s  memory {_megabytes(course)}", file=sys.stderr)
            # The pace of the traffic, not a wait for an outcome.
            time.sleep(max(0.0, begin + len(course.echo) * PERIOD - time.monotonic()))
        if stream.wait(60) != 0:
            raise LabError(f"the TCP stream failed\n{stream.output()[-2000:]}")
    finally:
        shell.close()
    report = json.loads(stream.output())
    course.stream_bits_per_second = [part["sum"]["bits_per_second"] for part in report["intervals"]]
    course.stream_retransmits = report["end"]["sum_sent"]["retransmits"]
    if min(course.stream_bits_per_second[:-1]) == 0:
        raise LabError("the TCP stream stood still for 5 s")
    states: dict[str, object] = {"client": client.status(), "server": server.status()}
    for daemon in (client, server):
        if daemon.stop() != 0:
            raise LabError(f"pqtun {daemon.role} ended with an error")
    return course, states


def _megabytes(course: Course) -> str:
    return ", ".join(f"{role} {values[-1] / 1e6:.0f} MB" for role, values in course.memory.items())


def main(arguments: list[str] | None = None) -> int:
    """Run, print a summary, write the JSON file; 1 if a connection was lost or memory grew too large."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.5)
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    seconds = options.minutes * 60
    try:
        with Lab() as lab:
            course, states = soak(lab, seconds)
    except LabError as error:
        print(f"lost: {error}", file=sys.stderr)
        return 1
    largest = {role: max(values) for role, values in course.memory.items()}
    ok = max(largest.values()) < MEMORY_LIMIT
    print(
        f"{seconds / EPOCH:.0f} epochs, {len(course.echo)} echoes by ssh, {len(course.page)} pages, no connection lost"
    )
    print(f"slowest echo {max(course.echo) * 1000:.0f} ms, slowest page {max(course.page):.2f} s")
    print(f"largest memory: client {largest['client'] / 1e6:.0f} MB, server {largest['server'] / 1e6:.0f} MB")
    if not options.no_json:
        path = write_json("soak", {"seconds": seconds, "course": vars(course), "status": states})
        print(f"all samples: {path}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
