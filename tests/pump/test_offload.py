"""pqtun.pump.offload: names and forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.pump.offload import ALL, NAMES, NONE, Offload, parse


def test_names() -> None:
    assert NAMES == ("tun-tso", "tun-uso", "tun-gro", "udp-gso", "udp-gro", "multi-queue")
    assert parse(["auto"]) == ALL == Offload(True, True, True, True, True, True)
    assert parse(["off"]) == NONE == Offload(False, False, False, False, False, False)


def test_only_these_or_all_but_these() -> None:
    assert parse(["udp-gso", "tun-tso"]) == Offload(True, False, False, True, False, False)
    assert parse(["-udp-gso", "-tun-tso"]) == Offload(False, True, True, False, True, True)


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_both_forms_and_their_text(names: set[str]) -> None:
    chosen = parse(names)
    assert set(chosen.names) == names
    assert {name for name in NAMES if getattr(chosen, name.replace("-", "_"))} == names
    assert parse(str(chosen).split(",")) == chosen
    rest = [f"-{name}" for name in NAMES if name not in names]
    assert parse(rest or ["auto"]) == chosen


@pytest.mark.parametrize(
    "words",
    [
        [],
        [""],
        ["auto", "udp-gso"],
        ["off", "udp-gso"],
        ["-off"],
        ["--udp-gso"],
        ["gso"],
        ["udp_gso"],
        ["udp-gso", "-udp-gro"],
    ],
)
def test_what_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"choose auto, off|name either"):
        parse(words)


@pytest.mark.parametrize("name", ["tun-tso", "tun-uso", "tun-gro"])
def test_what_takes_a_virtio_header(name: str) -> None:
    assert parse([name]).vnet_header
    assert not parse(["udp-gso", "udp-gro", "multi-queue"]).vnet_header
