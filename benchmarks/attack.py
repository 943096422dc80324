"""A live tunnel and new clients while an attacker on the path sends all that he can think of.

A TCP stream fills the tunnel. Each attack (benchmarks/attacker.py) lasts some seconds; the bytes that the tunnel
carried meanwhile are compared with those of quiet seconds before and after. Attacker, router and hosts share
the machine's processors, so that the first line, of packets to a port where nothing listens, says what the packets
alone cost. During one attack new clients connect. A JSON line an attack.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.attacker import KINDS
from benchmarks.measure import first_byte
from benchmarks.report import write_json
from tests.net import pqtun
from tests.net.client_host import client_host
from tests.net.lab import SERVER4, Lab
from tests.net.process import LabError
from tests.net.stage import Daemon, Stage, started, status, stopped

HOST = "attacked.example.net"  # with an IPv4 address alone
GARBAGE = "garbage handshakes, all sources"  # the attack under which new clients connect
CONTACTS = 3  # new clients that know the server's key, and as many that do not
SHARE_GOAL, CONNECT_GOAL = 0.8, 2.0
EPOCH = 30.0
QUIET = 5.0  # seconds that are looked at between attacks
SETTLE = 0.5  # seconds after a change of what goes on that are not counted


class Attacker:
    """benchmarks/attacker.py in the router."""

    def __init__(self, stage: Stage) -> None:
        argv = [sys.executable, "-m", "benchmarks.attacker", "server0", SERVER4]
        self._process = subprocess.Popen(
            stage.lab.argv(stage.net.router, *argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=pqtun.ROOT,
        )

    def order(self, **order: Any) -> None:
        """Begin something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """The next line that it says; LabError if it is gone."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("the attacker has ended")
        return line.strip()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Attack:
    """What came of one; rates in bit/s of the tunnel, times in seconds."""

    kind: str
    sent: int
    packets_per_second: float
    quiet: list[float]  # before, between and after the repetitions
    under_attack: list[float]
    drops: dict[str, int]
    changes: list[str]  # of state, that the attacker brought about
    connect_key_cached: list[float] = field(default_factory=list)
    connect_first: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the quiet rate: the median of the repetitions, each beside the quiet times before and after it."""
        around = [(before + after) / 2 for before, after in pairwise(self.quiet)]
        return median(rate / quiet for rate, quiet in zip(self.under_attack, around, strict=True))

    @property
    def withstood(self) -> bool:
        connected = self.connect_first + self.connect_key_cached
        return self.share >= SHARE_GOAL and not self.changes and max(connected, default=0.0) <= CONNECT_GOAL

    def line(self) -> str:
        """As JSON."""
        return json.dumps({**vars(self), "share": round(self.share, 3), "withstood": self.withstood})


class Siege:
    """The stage with a tunnel that a stream fills, and the attacker."""

    def __init__(self, lab: Lab, engine: str) -> None:
        self.stage = Stage(lab)
        self._arguments = ("--engine", engine)
        self.stage.add_records(self.stage.server.announce(HOST, address=SERVER4))
        started(self.stage.server, *self._arguments)
        started(self.stage.client, *self._arguments)
        self._attacker = Attacker(self.stage)
        self._attacker.order(do="watch", seconds=3)
        time.sleep(0.5)  # until it watches
        self._address = first_byte(lab, self.stage.net.client, f"http://{HOST}/page").address
        if not json.loads(self._attacker.line())["handshakes"]:
            raise LabError("the attacker has seen no handshake")
        # Started before: what is measured is their way to the server, not Python's start.
        self._hosts = [client_host(self.stage, number) for number in range(1, 2 * CONTACTS + 1)]
        for number, host in enumerate(self._hosts):
            started(host.client, *self._arguments)
            if number >= CONTACTS:  # these know the key
                first_byte(lab, host.ns, f"http://{HOST}/page")
                stopped(host.client)
                started(host.client, *self._arguments)

    @contextmanager
    def stream(self, seconds: float) -> Iterator[None]:
        """A download by iperf3 through the tunnel meanwhile."""
        lab, net = self.stage.lab, self.stage.net
        sink = lab.spawn(net.server, "iperf3", "-s", "-1")
        lab.wait_listening(sink, net.server, 5201)
        source = lab.spawn(net.client, "iperf3", "-c", self._address, "-R", "-t", str(int(seconds)))
        try:
            time.sleep(2)  # until TCP has found its rate
            yield
            if not source.running:
                raise LabError(f"the stream has ended\n{source.output()[-500:]}")
        finally:
            source.kill()
            sink.kill()

    def attack(self, kind: str, seconds: float, rate: float, repetitions: int, *, connect: bool = False) -> Attack:
        """One of them, so many times; with `connect`, new clients connect meanwhile."""
        before, known = self._drops(), self._tunnel()
        made = Attack(kind, 0, 0.0, [self._rate(min(seconds, QUIET))], [], {}, [])
        spent = 0.0
        for _ in range(repetitions):
            self._attacker.order(do="watch", seconds=0.3)
            self._attacker.line()
            self._attacker.order(do=kind, seconds=seconds, rate=rate)
            self._attacker.line()
            with ThreadPoolExecutor(1) as pool:
                contacts = pool.submit(self._connect, seconds, made) if connect else None
                made.under_attack.append(self._rate(seconds - 2 * SETTLE))
                said = json.loads(self._attacker.line())
                if contacts is not None:
                    contacts.result()
            made.sent += said["sent"]
            spent += said["seconds"]
            made.quiet.append(self._rate(min(seconds, QUIET)))
        made.packets_per_second = made.sent / spent
        after = self._drops()
        made.drops = {reason: count - before.get(reason, 0) for reason, count in after.items()}
        made.drops = {reason: count for reason, count in made.drops.items() if count > 0}
        made.changes = self._changes(known)
        return made

    def close(self) -> None:
        """End the attacker and the daemons; LabError if one did not end well."""
        self._attacker.close()
        daemons: list[Daemon] = [*(host.client for host in self._hosts), self.stage.client, self.stage.server]
        for daemon in daemons:
            code = stopped(daemon)
            assert daemon.process is not None
            if code != 0 or "Traceback" in daemon.process.output():
                raise LabError(f"{daemon.role} ended with {code}\n{daemon.process.output()[-2000:]}")

    def _rate(self, seconds: float) -> float:
        """Bit/s of the tunnel in so many seconds from a moment on."""
        time.sleep(SETTLE)
        begin, first = time.monotonic(), self._peer(self.stage.client)["bytes"]["received"]
        time.sleep(seconds)
        last = self._peer(self.stage.client)["bytes"]["received"]
        return float(last - first) * 8 / (time.monotonic() - begin)

    def _peer(self, daemon: Daemon) -> dict[str, Any]:
        """The tunnel under attack."""
        known = status(daemon)["peers"]
        if daemon is self.stage.client:
            (peer,) = (peer for peer in known if peer["private_address"] == self._address)
        else:
            peer = min(known, key=lambda peer: int(peer["private_address"].rpartition(".")[2]))
        found: dict[str, Any] = peer
        return found

    def _tunnel(self) -> dict[str, Any]:
        """What must stay as it is."""
        keys = ("name", "private_address", "real_address", "port")
        return {
            f"{daemon.role} {key}": self._peer(daemon)[key]
            for daemon in (self.stage.client, self.stage.server)
            for key in keys
        }

    def _changes(self, known: Mapping[str, Any]) -> list[str]:
        now = self._tunnel()
        changes = [f"{key}: {known[key]} to {now[key]}" for key in known if known[key] != now[key]]
        for daemon in (self.stage.client, self.stage.server):
            peer = self._peer(daemon)
            for way, epoch in peer["epoch"].items():
                if epoch > peer["age"] / EPOCH + 1:
                    changes.append(f"{daemon.role} {way} epoch {epoch} after {peer['age']} s")
        return changes

    def _drops(self) -> dict[str, int]:
        """All counters of what was not taken, at both ends."""
        found: dict[str, int] = {}
        for daemon in (self.stage.client, self.stage.server):
            said = status(daemon)
            parts = [said["drops"], self._peer(daemon)["drops"], said.get("handshakes", {})]
            for part in parts:
                for reason, count in part.items():
                    name = f"{daemon.role} {reason}"
                    found[name] = found.get(name, 0) + count
        return found

    def _connect(self, seconds: float, made: Attack) -> None:
        """First contacts spread over so long, of clients that know nothing and of those that know the key."""
        for number, host in enumerate(self._hosts):
            time.sleep(seconds / (len(self._hosts) + 2))
            times = made.connect_first if number < CONTACTS else made.connect_key_cached
            times.append(first_byte(self.stage.lab, host.ns, f"http://{HOST}/page").first_byte)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, a JSON line an attack; 1 if one was not withstood."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=__doc__)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--kinds", help="semicolon between them; all: " + "; ".join(KINDS))
    parser.add_argument("--rate", type=float, default=20_000, help="packets a second (%(default)g)")
    parser.add_argument("--seconds", type=float, default=5, help="of each attack (%(default)g)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each attack (%(default)g)")
    parser.add_argument("--long", type=float, default=30, help=f"seconds of {GARBAGE!r} (%(default)g)")
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    kinds = options.kinds.split(";") if options.kinds else list(KINDS)
    found = []
    with Lab() as lab:
        siege = Siege(lab, options.engine)
        for kind in kinds:
            connect = kind == GARBAGE
            # New clients are new once only.
            seconds, repetitions = (options.long, 1) if connect else (options.seconds, options.repetitions)
            with siege.stream(repetitions * (seconds + 60) + 60):
                made = siege.attack(kind, seconds, options.rate, repetitions, connect=connect)
            print(made.line(), flush=True)
            found.append(made)
        siege.close()
    if not options.no_json:
        setting = {"engine": options.engine, "rate": options.rate}
        path = write_json("attack", {"setting": setting, "attacks": [json.loads(made.line()) for made in found]})
        print(f"all: {path}", file=sys.stderr)
    return 0 if all(made.withstood for made in found) else 1


if __name__ == "__main__":
    sys.exit(main())
