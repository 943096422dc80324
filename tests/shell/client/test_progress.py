"""The progress line: every width, rate and time; and drawn on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.client.printable import columns, fit, printable
from pqtun.shell.client.progress import Meter, ProgressBar, amount, clock_text, line, percent, rate_text

SIZES = st.integers(0, 1 << 63)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "   0B "),
        (9999, "9999B "),
        (10000, "  10KB"),
        (200 << 20, " 200MB"),
        (5 << 30, "5120MB"),
        (1 << 60, "1024PB"),
    ],
)
def test_amounts(size: int, text: str) -> None:
    assert amount(size) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "  0.0KB/s"),
        (1536, "  1.5KB/s"),
        (1023.99 * 1024, "  1.0MB/s"),
        (300 * 2**20, "300.0MB/s"),
        (1e30, "999.9EB/s"),
    ],
)
def test_rates(rate: float, text: str) -> None:
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "   --:--"),
        (0, "   00:00"),
        (59.4, "   00:59"),
        (59.6, "   01:00"),
        (3600, "01:00:00"),
        (1e9, "   --:--"),
        (-1, "   --:--"),
    ],
)
def test_clocks(seconds: float | None, text: str) -> None:
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "shown"), [(0, 0, 100), (0, 9, 0), (999, 1000, 99), (1000, 1000, 100), (11, 10, 100)]
)
def test_percents(done: int, total: int, shown: int) -> None:
    assert percent(done, total) == shown


@given(SIZES, st.floats(0, 1e25), st.floats(0, 1e12) | st.none())
def test_figures_keep_their_columns(size: int, rate: float, seconds: float | None) -> None:
    assert len(amount(size)) == 6
    assert len(rate_text(rate)) == 9
    assert len(clock_text(seconds)) == 8


@given(st.binary(max_size=60), SIZES, SIZES, st.floats(0, 1e15), st.integers(0, 200))
def test_a_line_fills_its_width(name: bytes, done: int, total: int, rate: float, width: int) -> None:
    text = line(printable(name), done, total, rate, "   --:-- ETA", width)
    assert text.isprintable()
    assert columns(text) == width


def test_a_line() -> None:
    text = line("some-file.iso", 50 << 20, 200 << 20, 10 << 20, "   00:15 ETA", 64)
    assert text.split() == ["some-file.iso", "25%", "50MB", "10.0MB/s", "00:15", "ETA"]


@given(st.text(), st.integers(0, 30))
def test_fit_is_exact(text: str, width: int) -> None:
    assert columns(fit(printable(text), width)) == width


@given(st.binary())
def test_printable_keeps_what_is_and_says_the_rest(name: bytes) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert shown == printable(os.fsdecode(name))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        ("grün".encode(), "grün"),
        (b"\x1b[2J", "\\033[2J"),
        (b"\xff", "\\377"),
        ("\u202egnp".encode(), "\\342\\200\\256gnp"),
        (b"a\nb", "a\\012b"),
    ],
)
def test_printable_names(name: bytes, shown: str) -> None:
    assert printable(name) == shown


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.floats(0, 100)), max_size=30))
def test_a_meter_never_goes_wrong(steps: list[tuple[int, float]]) -> None:
    meter = Meter(100, 1 << 40, 0.0)
    now, done = 0.0, 100
    for more, seconds in steps:
        now, done = now + seconds, done + more
        meter.update(done, now)
        rate = meter.sample(now)
        assert rate >= 0
        left = meter.remaining(rate)
        assert left is None or left >= 0
        assert meter.average(now) >= 0


def test_a_meter_with_an_even_rate() -> None:
    meter = Meter(1000, 11000, 0.0)
    for second in range(1, 6):
        meter.update(1000 + 1000 * second, second)
        assert meter.sample(second) == pytest.approx(1000)
    assert meter.remaining(1000) == pytest.approx(5)
    assert not meter.stalled(9.9)
    assert meter.stalled(10)


def resize(terminal: int, width: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))


def draw(steps: list[int], monkeypatch: pytest.MonkeyPatch, widths: tuple[int, int] = (60, 60)) -> str:
    master, slave = pty.openpty()
    monkeypatch.setattr(os, "tcgetpgrp", lambda terminal: os.getpgrp())  # a pty of the test has no foreground
    resize(slave, widths[0])

    async def run() -> None:
        bar = ProgressBar(slave, b"na\x1bme", 1000, 0)
        for done in steps:
            bar.update(done)
        resize(slave, widths[1])
        bar.close()
        bar.close()

    try:
        asyncio.run(run())
        drawn = b""
        while not drawn.endswith(b"\n"):  # what was written at once need not be there at once
            drawn += os.read(master, 4096)
        return drawn.decode()
    finally:
        os.close(master)
        os.close(slave)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw([500, 1000], monkeypatch).split("\r")
    assert [len(part) for part in drawn[1:3]] == [59, 59]
    assert drawn[1].startswith("na\\033me")
    assert "  0%" in drawn[1]
    assert "ETA" in drawn[1]
    assert "100%" in drawn[2]
    assert "ETA" not in drawn[2]
    assert drawn[3:] == ["\n"]


def test_a_bar_follows_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw([10], monkeypatch, (80, 40)).split("\r")
    assert [len(part) for part in drawn[1:3]] == [79, 39]


def test_nothing_is_drawn_from_the_background() -> None:
    master, slave = pty.openpty()

    async def run() -> None:
        ProgressBar(slave, b"name", 10, 0).close()

    try:
        asyncio.run(run())
        os.set_blocking(master, False)
        with pytest.raises(BlockingIOError):
            os.read(master, 10)
    finally:
        os.close(master)
        os.close(slave)
