"""Samples gathered by name, their medians, the goals that they are held to, the table and the JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Measure:
    """One line of the table: factor turns the samples' unit into `unit`."""

    key: str
    title: str
    unit: str
    factor: float
    at_least: float | None = None
    at_most: float | None = None
    times_pqconnect: float | None = None


# The goals are those that doc/design.md states.
MEASURES = (
    Measure("download", "TCP stream, server to client", "Mbit/s", 1e-6, at_least=150, times_pqconnect=10),
    Measure("upload", "TCP stream, client to server", "Mbit/s", 1e-6, at_least=150, times_pqconnect=10),
    Measure("ping", "idle ping", "ms", 1e3, at_most=1.5),
    Measure("first_contact", "DNS question to first byte, first contact", "ms", 1e3, at_most=250),
    Measure("key_cached", "DNS question to first byte, key cached", "ms", 1e3, at_most=40),
    Measure("tunnel_up", "DNS question to first byte, tunnel up", "ms", 1e3),
    Measure("dns_delay", "added to a DNS answer that is not ours", "ms", 1e3, at_most=0.5),
    Measure("client_rss", "memory of the client, sum of RSS", "MB", 1e-6, at_most=150),
    Measure("client_pss", "memory of the client, PSS", "MB", 1e-6),
    Measure("server_rss", "memory of the server, sum of RSS", "MB", 1e-6, at_most=150),
    Measure("server_pss", "memory of the server, PSS", "MB", 1e-6),
)


class Samples:
    """Numbers by (side, measure key)."""

    def __init__(self) -> None:
        self._values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, side: str, key: str, values: float | Iterable[float]) -> None:
        """Keep one number or several."""
        self._values[side][key] += [values] if isinstance(values, int | float) else list(values)

    def median(self, side: str, key: str) -> float | None:
        """The median, None without samples."""
        values = self._values[side][key]
        return statistics.median(values) if values else None

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """For the JSON file: median, quartiles, extremes, and the samples themselves."""
        return {
            side: {key: _describe(values) for key, values in by_key.items() if values}
            for side, by_key in self._values.items()
        }

    def spread(self, side: str, key: str) -> tuple[float, float]:
        """The quartiles, or the extremes of fewer than four samples."""
        return _spread(self._values[side][key])


def _spread(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def _describe(values: Sequence[float]) -> dict[str, Any]:
    low, high = _spread(values)
    described = {"median": statistics.median(values), "low": low, "high": high, "min": min(values), "max": max(values)}
    return {**described, "count": len(values), "samples": list(values)}


def table(samples: Samples, sides: Sequence[str]) -> tuple[str, bool]:
    """The printed table, and whether pqtun reached every goal that was measured."""
    head = ["", *sides, "ratio", "goal", ""]
    rows, all_met = [], True
    for measure in MEASURES:
        cells = [f"{measure.title} [{measure.unit}]"]
        for side in sides:
            cells.append(_cell(samples, side, measure))
        ours, theirs = samples.median("pqtun", measure.key), samples.median("pqconnect", measure.key)
        ratio = ours / theirs if ours is not None and theirs else None
        cells.append("" if ratio is None else f"{ratio:.2f}x")
        goals, met = _judge(measure, ours, ratio)
        all_met &= met is not False
        cells += [goals, {True: "met", False: "MISSED", None: ""}[met]]
        rows.append(cells)
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = []
    for row in [head, *rows]:
        padded = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    lines.append(
        "medians, in parentheses the quartiles (extremes of fewer than four samples); ratio: pqtun to pqconnect"
    )
    return "\n".join(lines), all_met


def _cell(samples: Samples, side: str, measure: Measure) -> str:
    middle = samples.median(side, measure.key)
    if middle is None:
        return "-"
    low, high = samples.spread(side, measure.key)
    digits = 2 if abs(middle * measure.factor) < 10 else 0 if abs(middle * measure.factor) >= 100 else 1
    middle, low, high = (value * measure.factor for value in (middle, low, high))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _judge(measure: Measure, ours: float | None, ratio: float | None) -> tuple[str, bool | None]:
    goals, verdicts = [], []
    value = None if ours is None else ours * measure.factor
    if measure.at_least is not None:
        goals.append(f">= {measure.at_least:g}")
        verdicts += [] if value is None else [value >= measure.at_least]
    if measure.at_most is not None:
        goals.append(f"<= {measure.at_most:g}")
        verdicts += [] if value is None else [value <= measure.at_most]
    if measure.times_pqconnect is not None:
        goals.append(f">= {measure.times_pqconnect:g}x")
        verdicts += [] if ratio is None else [ratio >= measure.times_pqconnect]
    return ", ".join(goals), all(verdicts) if verdicts else None


def write_json(kind: str, content: dict[str, Any]) -> Path:
    """benchmarks/results/KIND-DATE.json with `content` and what it was measured on."""
    now = datetime.datetime.now(datetime.UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}-{now:%Y%m%dT%H%M%SZ}.json"
    document = {"measured": now.isoformat(timespec="seconds"), "machine": _machine(), **content}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _machine() -> dict[str, Any]:
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
        "load_before": os.getloadavg()[0],
    }
