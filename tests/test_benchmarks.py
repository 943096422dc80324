"""The parts of the benchmarks that compute: search, statistics, tables, the page."""

from __future__ import annotations

import pytest

from benchmarks.generator import Trial, highest_rate
from benchmarks.measure import quantile
from benchmarks.publish import rewrite
from benchmarks.report import OURS, goals, table, verdicts
from benchmarks.samples import Samples, spread


def limited(limit: float) -> tuple[list[float], object]:
    asked: list[float] = []

    def trial(rate: float) -> Trial:
        asked.append(rate)
        sent = round(rate)
        got = sent if rate <= limit else round(sent * 0.9)
        return Trial(sent, got, got, 0, 1.0)

    return asked, trial


@pytest.mark.parametrize("limit", [900, 10_000, 12_345, 250_000])
def test_search_comes_close_from_below(limit: float) -> None:
    asked, trial = limited(limit)
    found = highest_rate(trial, 10_000)  # type: ignore[arg-type]
    assert limit / 1.04 <= found <= limit
    assert len(asked) < 60


def test_search_forgives_one_failure() -> None:
    failed = []

    def trial(rate: float) -> Trial:
        if rate == 1000 and not failed:
            failed.append(rate)
            return Trial(1000, 500, 500, 0, 1.0)
        return Trial(1000, 1000 if rate <= 1000 else 0, 0, 0, 1.0)

    assert highest_rate(trial, 1000) >= 1000


def test_search_gives_up() -> None:
    assert highest_rate(lambda rate: Trial(100, 0, 0, 0, 1.0), 10_000) == 0


def test_losses_of_a_thousandth_count() -> None:
    assert Trial(10_000, 9991, 0, 0, 1.0).lossless
    assert not Trial(10_000, 9990, 0, 0, 1.0).lossless
    assert not Trial(0, 0, 0, 0, 1.0).lossless


def test_quantile_and_spread() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([7], 0.99) == 7
    assert spread([5, 1, 3]) == (1, 5)
    assert spread([1, 2, 3, 4, 5]) == (1.5, 4.5)


def test_goals_are_ratios_of_medians() -> None:
    samples = Samples(
        {OURS: {"tcp_up": [3e9, 2e9, 4e9], "cpu_gb": [2]}, "wireguard-go": {"tcp_up": [1e9], "cpu_gb": [2]}}
    )
    up, cpu = verdicts(samples)
    assert (up.ratio, up.met) == (3, True)
    assert (cpu.ratio, cpu.met) == (1, False)
    text, all_met = goals(samples)
    assert "MISSED" in text
    assert not all_met
    assert "3000 (2000-4000)" in table(samples, [OURS])
    assert Samples.from_summary(samples.summary()).of(OURS, "tcp_up") == [3e9, 2e9, 4e9]


def test_only_marked_parts_of_the_page_change() -> None:
    page = "a\n<!-- bench one -->\nold\n<!-- end -->\nb\n<!-- bench two -->\nstays\n<!-- end -->\n"
    assert rewrite(page, {"one": "new"}) == page.replace("old", "new")
