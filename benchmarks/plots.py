"""Pictures of a run's JSON document, for doc/performance.md. Needs matplotlib (benchmarks/requirements.lock)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.samples import Samples, spread

_COLOURS = {
    "pqtun-native": "#1b6ca8",
    "pqtun-null": "#9cc5e3",
    "pqtun-python": "#5b8c5a",
    "wireguard-go": "#c8553d",
    "boringtun": "#e0a458",
    "pqconnect": "#7d5ba6",
    "veth": "#9a9a9a",
}
_SIZE = (9, 4)


def draw(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write the pictures of what was measured; their paths."""
    mpl.rcParams["svg.hashsalt"] = "pqtun"
    samples = Samples.from_summary(document["contenders"])
    names = [name for name in _COLOURS if name in samples.names()]
    inner = [name for name in names if name != "veth"]
    made = []
    for file, title, unit, factor, logarithmic, shown, keys in (
        ("streams", "TCP", "Mbit/s", 1e-6, True, names, _STREAMS),
        ("packets", "UDP packets a second", "1000/s", 1e-3, False, names, _PACKETS),
        ("pings", "Round-trip time of a ping", "us", 1e6, True, names, _PINGS),
        ("processor", "Processor time a gigabyte of TCP", "s", 1, True, inner, _PROCESSOR),
    ):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        if _bars(axes, samples, shown, keys, factor):
            axes.set_title(title)
            axes.set_ylabel(unit)
            if logarithmic:
                axes.set_yscale("log")
            made.append(_save(figure, directory / f"{file}.png"))
    steps = document.get("growth", {}).get("steps", [])
    if len(steps) > 1:
        made.append(_save(_growth(steps), directory / "growth.png"))
    return made


_STREAMS = {"tcp_up": "one, up", "tcp_down": "one, down", "tcp4_up": "four, up", "tcp4_down": "four, down"}
_PACKETS = {
    "udp64": "64 bytes,\nwithout loss",
    "udp64_flood": "64 bytes,\nof a flood",
    "udp1200": "1200 bytes,\nwithout loss",
    "udp1200_flood": "1200 bytes,\nof a flood",
}
_PINGS = {
    "ping": "idle,\nmedian",
    "ping_p99": "idle,\n99 %",
    "loaded_ping": "beside TCP,\nmedian",
    "loaded_ping_p99": "beside TCP,\n99 %",
}
_PROCESSOR = {"cpu_gb": "both daemons", "busy_gb": "whole machine"}


def _bars(axes: Axes, samples: Samples, names: Sequence[str], keys: Mapping[str, str], factor: float) -> bool:
    """A group of bars each key, with the quartiles; whether there was anything to draw."""
    keys = {key: label for key, label in keys.items() if any(samples.of(name, key) for name in names)}
    if not keys:
        return False
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        places, heights, below, above = [], [], [], []
        for group, key in enumerate(keys):
            values = [value * factor for value in samples.of(name, key)]
            if not values:
                continue
            middle, (low, high) = statistics.median(values), spread(values)
            places.append(group - 0.4 + width * (at + 0.5))
            heights.append(middle)
            below.append(middle - low)
            above.append(high - middle)
        if places:
            axes.bar(places, heights, width, yerr=[below, above], label=name, color=_COLOURS[name], capsize=2)
    axes.set_xticks(range(len(keys)), list(keys.values()))
    axes.legend(fontsize="small")
    axes.grid(axis="y", alpha=0.3)
    return True


def _growth(steps: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=_SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    tunnels = [step["tunnels"] for step in steps]
    for key, label, line in (
        ("bulk", "UDP, 16 packets each", "-"),
        ("bulk_one", "the same in one tunnel", "--"),
        ("tcp", "TCP, a stream each", "-"),
        ("tcp_as_many_in_one", "as many streams in one tunnel", "--"),
    ):
        colour = "#1b6ca8" if key.startswith("bulk") else "#c8553d"
        rates = [statistics.median(step[key]) / 1e6 for step in steps]
        left.plot(tunnels, rates, line, marker="o", color=colour, label=label)
    left.set_ylim(bottom=0)
    left.set_ylabel("Mbit/s in all")
    left.set_title("Throughput shared by all tunnels")
    left.legend(fontsize="small", loc="best")
    right.plot(tunnels, [step["server_pss"] / 1e6 for step in steps], marker="o", color="#1b6ca8")
    right.set_ylim(bottom=0)
    right.set_ylabel("MB")
    right.set_title("Memory of the server")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("tunnels")
        axes.grid(alpha=0.3)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path
