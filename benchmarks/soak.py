"""Half an hour of traffic and faults (`make soak`): nothing hangs, keys do not grow old, memory stays flat.

On one pair of hosts ssh echoes a line a second and files go both ways, while every few seconds the path becomes bad, is
cut, the client gets other addresses or is stopped, or a daemon's worker is killed and restarted as systemd would. On
another, idle ssh sessions live through ten minutes of silence, a cut of five minutes and more (tests/net/fates.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.faults import Daemon, Faults
from benchmarks.machine import memory
from benchmarks.report import write_json
from benchmarks.traffic import Download, Pattern, Shell, Site, Upload
from tests.net.fates import ANSWER_SECONDS, FATES, Fate, clock
from tests.net.lab import SERVER4, Conditions, Lab
from tests.net.process import LabError
from tests.net.ssh import SshServer
from tests.net.stage import HOST, Stage, started, status, stopped

IPV4_HOST = "four.example.net"
KEY_SECONDS = 120.0
MEMORY_LIMIT = 150_000_000
GROWTH_LIMIT = 10_000_000  # bytes that one process may grow from its second minute on
LOOK_PERIOD = 10.0
WARM_UP = 60.0
FATES_MINUTES = 12.0  # what the idle sessions take


class Watch:
    """Looks at both daemons now and then: memory, and how old the keys in use are."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self.failures: list[str] = []
        self.epochs = 0
        self.oldest = 0.0
        # (role, process id) -> (seconds since it was first seen, bytes)
        self.memory: dict[str, list[tuple[float, int]]] = {}
        self._daemons = daemons
        self._first: dict[str, float] = {}
        # (role, peer, way) -> epoch, since when it has been seen, age of the tunnel. An epoch of the receiving side
        # comes up with its first packet, so that its number alone does not tell how old its keys are.
        self._seen: dict[tuple[str, str, str], tuple[int, float, float]] = {}

    def look(self) -> None:
        """One look; a daemon that is being restarted is left out."""
        for daemon in self._daemons:
            process = daemon.process
            if process is None or not process.running:
                continue
            key = f"{daemon.role} {process.pid}"
            now = time.monotonic()
            age = now - self._first.setdefault(key, now)
            self.memory.setdefault(key, []).append((age, memory(process.pid).rss))
            try:
                peers = status(daemon)["peers"]
            except LabError:  # it has been killed between the two looks
                continue
            for peer in peers:
                self._look_at(daemon.role, peer)

    def _look_at(self, role: str, peer: dict[str, Any]) -> None:
        for way, epoch in peer.get("epoch", {}).items():
            self.epochs = max(self.epochs, epoch)
            place, now = (role, peer["name"], way), time.monotonic()
            seen, since, age = self._seen.get(place, (epoch, now, 0.0))
            if seen != epoch or age > peer["age"]:  # the next epoch, or another tunnel
                since = now
            self._seen[place] = epoch, since, peer["age"]
            self.oldest = max(self.oldest, now - since)
            if now - since > KEY_SECONDS + 1:
                self.failures.append(f"{role}: the {way} epoch {epoch} has been in use for {now - since:.0f} s")

    def check_memory(self) -> None:
        """Of all processes, at the end."""
        for key, samples in self.memory.items():
            largest = max(size for _, size in samples)
            if largest > MEMORY_LIMIT:
                self.failures.append(f"{key}: {largest / 1e6:.0f} MB")
            warm = [size for age, size in samples if age >= WARM_UP]
            if len(warm) >= 12:
                quarter = len(warm) // 4
                grown = statistics.median(warm[-quarter:]) - statistics.median(warm[:quarter])
                if grown > GROWTH_LIMIT:
                    self.failures.append(f"{key}: grew by {grown / 1e6:.1f} MB")


def soak(lab: Lab, seconds: float, arguments: tuple[str, ...], seed: str, kills: bool) -> dict[str, Any]:
    """Run it; the document of what happened, with everything that was wrong under "failures"."""
    stage = Stage(lab, Conditions())
    for name, size in (("small", 10_000), ("large", 1_000_000), ("huge", 10_000_000)):
        (stage.files / name).write_bytes(os.urandom(size))
    site = Site(lab, stage.net.client, HOST, stage.files, SshServer(lab, stage.net.server))
    started(stage.server, *arguments)
    started(stage.client, *arguments)
    stage.curl()
    patterns: list[Pattern] = [
        Shell(site),
        Download("page", site, "large", 5.0),
        Download("page over IPv4", site, "small", 1.0, 0, "-4"),
        Download("slow download", site, "huge", 1.0, 500_000),
        Upload(site, "large", 5.0),
    ]
    faults = Faults(site, stage.net, stage.client, stage.server, arguments, seed)
    if not kills:
        faults.spare_daemons()
    watch = Watch([stage.client, stage.server])
    for thread in (*patterns, faults):
        thread.start()
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < seconds:
        watch.look()
        print(f"{now:5.0f} s  {dict(faults.counts)}", file=sys.stderr)
        time.sleep(min(LOOK_PERIOD, max(0.0, seconds - now)))
    faults.end()
    faults.join(60)
    failures = [f"{thread.name} hangs" for thread in (faults,) if thread.is_alive()]
    failures += _last_successes(patterns)
    for pattern in patterns:
        pattern.end()
    for pattern in patterns:
        pattern.join(150)
        failures += [f"{pattern.name} hangs"] if pattern.is_alive() else []
    states = {"client": status(stage.client), "server": status(stage.server)}
    for daemon in (stage.client, stage.server):
        code = stopped(daemon)
        failures += [f"pqtun {daemon.role} ended with {code}"] if code else []
    for log in lab.directory.glob("*.log"):
        if "Traceback" in log.read_text(errors="replace"):
            failures.append(f"an exception: {log.read_text(errors='replace')[-1500:]}")
    watch.check_memory()
    failures += [f"{p.name}: {failure}" for p in patterns for failure in p.course.failures]
    failures += faults.failures + watch.failures
    return {
        "failures": failures,
        "faults": dict(faults.counts),
        "courses": [vars(pattern.course) for pattern in patterns],
        "newest_epoch": watch.epochs,
        "oldest_key": watch.oldest,
        "memory": watch.memory,
        "status": states,
    }


def _last_successes(patterns: Sequence[Pattern]) -> list[str]:
    """The path is good now: each pattern must succeed once more."""
    begin = time.monotonic()
    waiting = list(patterns)
    while waiting and (passed := time.monotonic() - begin) < max(pattern.patience for pattern in waiting):
        waiting = [pattern for pattern in waiting if pattern.since_success > passed]
        time.sleep(0.1)
    return [f"{pattern.name} did not recover" for pattern in waiting]


def idle_sessions(arguments: tuple[str, ...]) -> dict[str, Any]:
    """What befalls idle sessions, by the real clock: seconds to each shell's answer, or what went wrong."""
    found: dict[str, Any] = {}
    with Lab() as lab:
        stage = Stage(lab)
        stage.add_records(stage.server.announce(IPV4_HOST, address=SERVER4))
        started(stage.server, *arguments)
        ssh = SshServer(lab, stage.net.server)
        fates = {befall.__name__: Fate(stage, ssh, IPV4_HOST, n, befall) for n, befall in enumerate(FATES, 1)}
        with ThreadPoolExecutor(len(fates)) as pool:
            courses = {name: pool.submit(fate.run, clock(1)) for name, fate in fates.items()}
            for name, course in courses.items():
                try:
                    found[name] = course.result()[0]
                except LabError as error:
                    found[name] = str(error)
        for fate in fates.values():
            fate.close()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a summary, write the JSON file; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--seed", default="1", help="of the faults")
    parser.add_argument("--no-kills", action="store_true", help="no daemon is killed: one tunnel lasts all the time")
    parser.add_argument("--no-idle", action="store_true", help=f"without the idle sessions ({FATES_MINUTES:g} minutes)")
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    engine = ("--engine", options.engine)
    with Lab() as lab, ThreadPoolExecutor(1) as pool:
        idle = None if options.no_idle else pool.submit(idle_sessions, engine)
        found = soak(lab, options.minutes * 60, engine, options.seed, not options.no_kills)
        found["idle_sessions"] = {} if idle is None else idle.result()
    failures = found["failures"]
    for name, took in found["idle_sessions"].items():
        if not isinstance(took, float) or took > ANSWER_SECONDS:
            failures.append(f"idle session, {name}: {took}")
        else:
            print(f"idle session, {name}: the shell answered after {took:.2f} s")
    for course in found["courses"]:
        slowest = max(course["took"], default=0.0)
        print(
            f"{course['name']}: {len(course['took'])} times, slowest {slowest:.1f} s, longest gap "
            f"{course['longest_gap']:.1f} s, {course['misses']} repeated, {course['lost_to_kills']} lost to kills"
        )
    print(f"faults: {found['faults']}; newest epoch {found['newest_epoch']}, oldest key {found['oldest_key']:.0f} s")
    largest = max(size for samples in found["memory"].values() for _, size in samples)
    print(f"largest memory of a daemon: {largest / 1e6:.0f} MB")
    for failure in failures:
        print(f"FAILED {failure}")
    if not options.no_json:
        path = write_json("soak", {"minutes": options.minutes, "engine": options.engine, **found})
        print(f"all samples: {path}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
