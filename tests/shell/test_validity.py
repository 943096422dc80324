import os
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell.validity import FOREVER, describe, duration, interval, moment

NOW = 1_800_000_030


@pytest.fixture
def far_zone(monkeypatch):
    monkeypatch.setenv("TZ", "XYZ-05:30")  # east of Greenwich
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1w2D", 777600),
        ("1W", 604800),
    ],
)
def test_duration(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1y", "-1", "1.5h", "1 h", "٣h", "1h\n", "9" * 40])
def test_no_duration(text):
    with pytest.raises(ValueError, match="duration"):
        duration(text)


def test_moments(far_zone):
    assert moment("+1h", NOW) == NOW + 3600
    assert moment("-1d", NOW) == NOW - 86400
    assert moment("-9999w", 5) == 0
    assert moment("0x10", NOW) == 16
    assert moment("20260102Z", NOW) == datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    assert moment("202601020304Z", NOW) == datetime(2026, 1, 2, 3, 4, tzinfo=UTC).timestamp()
    assert moment("20260102030405Z", NOW) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert moment("20260102", NOW) == datetime(2026, 1, 1, 18, 30, tzinfo=UTC).timestamp()


def test_intervals():
    assert interval("+1h", NOW) == (NOW - 90, NOW + 3600)
    assert interval("always:forever", NOW) == (0, FOREVER)
    assert interval("-5m:+1w", NOW) == (NOW - 300, NOW + 604800)
    assert interval(":+1w", NOW) == (NOW - 90, NOW + 604800)
    assert interval("20260101Z:0xffffffffffffffff", NOW) == (1767225600, FOREVER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1h",
        "-1h",
        "20260101",
        "forever",
        "+1h:",
        ":",
        "forever:always",
        "20270101Z:20260101Z",
        "-1h:-2h",
        "20261301Z:forever",
        "0x1:0x11111111111111111",
        "2026010١Z:forever",
        "00010101Z:forever",
        "a:b:c",
        "20260101Z:20260101Z",
        "+99999999999999999w",
    ],
)
def test_no_interval(text):
    with pytest.raises(UserError, match="validity"):
        interval(text, NOW)


@given(st.text(alphabet="+-:0123456789smhdwxZalwysforev", max_size=30) | st.text(max_size=20))
def test_any_text(text):
    try:
        first, last = interval(text, NOW)
    except UserError:
        return
    assert 0 <= first < last <= FOREVER


def test_description():
    os.environ.pop("TZ", None)
    assert describe(0, FOREVER) == "forever"
    assert describe(0, NOW).startswith("before 2027-01-1")
    assert describe(NOW, FOREVER).startswith("after 2027-01-1")
    assert describe(NOW, NOW + 86400).startswith("from 2027-01-1")
    assert "second" in describe(NOW, FOREVER - 1)
