"""Pauses between attempts."""

from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import backoff
from pqtun.daemon.backoff import Backoff


@given(st.floats(0, 1e6), st.floats(0, 200), st.floats(0, 5))
def test_pauses_grow_and_end(now: float, patience: float, attempt: float) -> None:
    """``attempt``: seconds that each attempt takes."""
    waits = Backoff(now, patience)
    begin, pauses = now, []
    while (pause := waits.pause(now)) is not None:
        pauses.append(pause)
        now += pause + attempt + 0.001
        assert len(pauses) < 200
    assert now - begin <= patience + attempt + 0.002 or patience == 0
    low, high = 1 - backoff.JITTER, 1 + backoff.JITTER
    for at, pause in enumerate(pauses[:-1]):
        wanted = min(backoff.FIRST_PAUSE * 2**at, backoff.LONGEST_PAUSE)
        assert low * wanted <= pause <= high * wanted


def test_pauses_differ() -> None:
    assert len({Backoff(0.0).pause(0.0) for _ in range(10)}) > 1
