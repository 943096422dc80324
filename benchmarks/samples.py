"""Numbers by contender and measure, one each repetition."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


class Samples:
    """Numbers by (contender, key)."""

    def __init__(self, values: Mapping[str, Mapping[str, Sequence[float]]] | None = None) -> None:
        self._values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name, by_key in (values or {}).items():
            for key, numbers in by_key.items():
                self._values[name][key] = list(numbers)

    def add(self, name: str, key: str, value: float) -> None:
        """Keep one number."""
        self._values[name][key].append(value)

    def names(self) -> list[str]:
        """The contenders of which there is a number."""
        return list(self._values)

    def of(self, name: str, key: str) -> list[float]:
        """All numbers, none if it was not measured."""
        return list(self._values[name][key]) if name in self._values else []

    def median(self, name: str, key: str) -> float | None:
        """The median, None without samples."""
        values = self.of(name, key)
        return statistics.median(values) if values else None

    def ratio(self, name: str, other: str, key: str) -> float | None:
        """One median by the other."""
        ours, theirs = self.median(name, key), self.median(other, key)
        return None if ours is None or not theirs else ours / theirs

    def summary(self) -> dict[str, dict[str, dict[str, Any]]]:
        """For the JSON file: median, quartiles, extremes, and the samples themselves."""
        return {
            name: {key: _describe(values) for key, values in by_key.items() if values}
            for name, by_key in self._values.items()
        }

    @staticmethod
    def from_summary(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Samples:
        """What summary() was made of."""
        return Samples({n: {k: v["samples"] for k, v in by_key.items()} for n, by_key in summary.items()})


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles, or the extremes of fewer than four samples."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def _describe(values: Sequence[float]) -> dict[str, Any]:
    low, high = spread(values)
    described = {"median": statistics.median(values), "low": low, "high": high, "min": min(values), "max": max(values)}
    return {**described, "count": len(values), "samples": list(values)}
