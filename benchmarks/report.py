"""The measures, the goals that they are held to, and the tables, as text or for doc/performance.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.samples import Samples, spread

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")

OURS = "pqtun-native"


@dataclass(frozen=True)
class Measure:
    """One line of the table: factor turns the samples' unit into `unit`."""

    key: str
    title: str
    unit: str
    factor: float
    at_most: float | None = None


# The goals are those that doc/design.md states.
MEASURES = (
    Measure("tcp_up", "one TCP stream up", "Mbit/s", 1e-6),
    Measure("tcp_down", "one TCP stream down", "Mbit/s", 1e-6),
    Measure("tcp4_up", "4 TCP streams up", "Mbit/s", 1e-6),
    Measure("tcp4_down", "4 TCP streams down", "Mbit/s", 1e-6),
    Measure("udp64", "64-byte packets without loss", "1000/s", 1e-3),
    Measure("udp64_flood", "64-byte packets, what arrives of a flood", "1000/s", 1e-3),
    Measure("udp1200", "1200-byte packets without loss", "1000/s", 1e-3),
    Measure("udp1200_flood", "1200-byte packets, what arrives of a flood", "1000/s", 1e-3),
    Measure("ping", "idle ping, median", "us", 1e6),
    Measure("ping_p99", "idle ping, 99 %", "us", 1e6),
    Measure("loaded_ping", "ping beside a TCP stream, median", "us", 1e6),
    Measure("loaded_ping_p99", "ping beside a TCP stream, 99 %", "us", 1e6),
    Measure("cpu_gb", "CPU of both daemons a GB, up and down", "s", 1),
    Measure("busy_gb", "CPU of the whole machine a GB", "s", 1),
    Measure("softirq_gb", "of it, in soft interrupts", "s", 1),
    Measure("client_rss", "memory of the client, sum of RSS", "MB", 1e-6),
    Measure("client_pss", "memory of the client, PSS", "MB", 1e-6),
    Measure("server_rss", "memory of the server, sum of RSS", "MB", 1e-6),
    Measure("server_pss", "memory of the server, PSS", "MB", 1e-6),
    Measure("first_contact", "DNS question to first byte, first contact", "ms", 1e3, at_most=250),
    Measure("key_cached", "DNS question to first byte, key cached", "ms", 1e3, at_most=40),
    Measure("tunnel_up", "DNS question to first byte, tunnel up", "ms", 1e3),
    Measure("dns_delay", "added to a DNS answer that is not ours", "ms", 1e3, at_most=0.5),
)


@dataclass(frozen=True)
class Goal:
    """How our median must compare with another's."""

    key: str
    other: str
    ratio: float
    at_least: bool = True

    def met(self, found: float) -> bool:
        return found >= self.ratio if self.at_least else found <= self.ratio

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.ratio:g} x {self.other}"


GOALS = (
    *(Goal(key, "wireguard-go", 1.5) for key in ("tcp_up", "tcp_down")),
    *(Goal(key, "boringtun", 2) for key in ("tcp_up", "tcp_down")),
    *(Goal(key, "pqconnect", 150) for key in ("tcp_up", "tcp_down")),
    *(Goal(key, "wireguard-go", 1.3) for key in ("tcp4_up", "tcp4_down")),
    Goal("udp64", "wireguard-go", 1),
    Goal("ping", "wireguard-go", 1, at_least=False),
    Goal("cpu_gb", "wireguard-go", 0.7, at_least=False),
    *(Goal(key, "pqtun-null", 0.6) for key in ("tcp_up", "tcp_down", "tcp4_up", "tcp4_down", "udp64", "udp1200")),
)


@dataclass(frozen=True)
class Verdict:
    """A goal beside what was found; per repetition the ratio lay between `low` and `high`."""

    goal: Goal
    ratio: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        return self.goal.met(self.ratio)


def verdicts(samples: Samples) -> list[Verdict]:
    """All goals of which both sides were measured."""
    found = []
    for goal in GOALS:
        ratio = samples.ratio(OURS, goal.other, goal.key)
        if ratio is None:
            continue
        ours, theirs = samples.of(OURS, goal.key), samples.of(goal.other, goal.key)
        if len(ours) != len(theirs):  # not measured in every repetition
            theirs = [statistics.median(theirs)] * len(ours)
        low, high = spread([one / other for one, other in zip(ours, theirs, strict=True) if other] or [ratio])
        found.append(Verdict(goal, ratio, low, high))
    return found


def table(samples: Samples, names: Sequence[str], *, markdown: bool = False) -> str:
    """Every measure of which there is a sample, a column each contender."""
    rows = [["", *names]]
    for measure in MEASURES:
        if any(samples.of(name, measure.key) for name in names):
            cells = [_cell(samples.of(name, measure.key), measure) for name in names]
            rows.append([f"{measure.title}, {measure.unit}", *cells])
    return _lines(rows, markdown)


_GROWTH = (
    *(("bulk", 1e6), ("bulk_one", 1e6), ("single", 1e3), ("single_one", 1e3)),
    *(("tcp", 1e6), ("tcp_as_many_in_one", 1e6), ("tcp_one", 1e6)),
)


def growth_table(steps: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """A line each number of tunnels."""
    head = ["tunnels", "handshakes/s", "bulk, Mbit/s", "in one", "packets, 1000/s", "in one"]
    head += ["TCP, Mbit/s", "as many in one", "one stream", "idle, % of a core", "server, PSS, MB"]
    rows = [head]
    for step in steps:
        cells = [str(step["tunnels"]), _short(step["handshakes_per_second"])]
        for key, unit in _GROWTH:
            cells.append(_short(statistics.median(step[key]) / unit))
        rows.append([*cells, f"{step['idle_cpu'] * 100:.2f}", _short(step["server_pss"] / 1e6)])
    return _lines(rows, markdown)


def bytes_per_tunnel(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """What a tunnel adds to the server's memory, from the first step to the last."""
    if len(steps) < 2:
        return None
    first, last = steps[0], steps[-1]
    return float(last["server_pss"] - first["server_pss"]) / float(last["tunnels"] - first["tunnels"])


def _more_goals(more: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Title, goal, what was found, and whether it is met, of what only pqtun is asked for."""
    found = []
    steps = {step["tunnels"]: step for step in more.get("growth", {}).get("steps", ())}
    if 10_000 in steps:
        each = bytes_per_tunnel(list(steps.values())) or 0.0
        idle = steps[10_000]["idle_cpu"]
        found.append(("memory of an idle tunnel of 10,000", "<= 4096 bytes", _short(each), each <= 4096))
        found.append(("10,000 idle tunnels", "< 1 % of a core", f"{idle * 100:.2f}", idle < 0.01))
    if 1000 in steps:
        step = steps[1000]
        for title, key, other in (
            ("1,000 active tunnels, bulk", "bulk", "bulk_one"),
            ("1,000 active tunnels, TCP, to as many streams in one", "tcp", "tcp_as_many_in_one"),
        ):
            ratio = statistics.median(step[key]) / statistics.median(step[other])
            found.append((title, ">= 0.8 x one tunnel", _short(ratio), ratio >= 0.8))
    if "handshakes" in more:
        made = more["handshakes"]
        rate = statistics.median(path["per_cpu_second"] for path in made["path"])
        found.append(("handshakes a second on one core", ">= 4000", _short(rate), rate >= 4000))
        delay = made["flooded"]["p99.9"]
        found.append(("delay of packets beside handshakes, 99.9 %", "<= 2000 us", _short(delay), delay <= 2000))
    return found


def goals(samples: Samples, more: Mapping[str, Any] | None = None, *, markdown: bool = False) -> tuple[str, bool]:
    """The goals with what was reached, and whether all were."""
    titles = {measure.key: measure.title for measure in MEASURES}
    rows, all_met = [["", "goal", "found", ""]], True
    for verdict in verdicts(samples):
        found = f"{_short(verdict.ratio)} ({_short(verdict.low)}-{_short(verdict.high)})"
        rows.append([titles[verdict.goal.key], str(verdict.goal), found, "met" if verdict.met else "MISSED"])
        all_met &= verdict.met
    for measure in MEASURES:
        value = samples.median(OURS, measure.key)
        if measure.at_most is not None and value is not None:
            met = value * measure.factor <= measure.at_most
            limit = f"<= {measure.at_most:g} {measure.unit}"
            rows.append([measure.title, limit, _short(value * measure.factor), "met" if met else "MISSED"])
            all_met &= met
    for title, goal, number, met in _more_goals(more or {}):
        rows.append([title, goal, number, "met" if met else "MISSED"])
        all_met &= met
    return (_lines(rows, markdown) if len(rows) > 1 else ""), all_met


def _cell(values: Sequence[float], measure: Measure) -> str:
    if not values:
        return "-"
    scaled = [value * measure.factor for value in values]
    low, high = spread(scaled)
    middle = Samples({"": {"": scaled}}).median("", "")
    assert middle is not None
    return f"{_short(middle)} ({_short(low)}-{_short(high)})"


def _short(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _lines(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    if markdown:
        head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        padded = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def write_json(kind: str, content: Mapping[str, Any]) -> Path:
    """benchmarks/results/KIND-DATE.json with `content` and what it was measured on."""
    now = datetime.datetime.now(datetime.UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}-{now:%Y%m%dT%H%M%SZ}.json"
    document = {"measured": now.isoformat(timespec="seconds"), "machine": machine(), **content}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What it is measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    head = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": head.stdout.strip(),
    }
