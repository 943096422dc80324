"""Paths that swallow large packets without a word."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from tests.net.lab import Conditions, Lab
from tests.net.pqtun import scaled
from tests.net.process import wait_until
from tests.net.stage import HOST, Stage, started, status, stopped

BYTES = 2_000_000
OUTER, INNER = 1400, 1400 - 84  # what passes, and the largest packet inside the tunnel then, over IPv4
ENGINES = ["native", "python"]


@pytest.fixture(params=ENGINES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "native":
        pytest.importorskip("pqtun.pump._native")
    with Lab() as lab:
        made = Stage(lab, Conditions())
        (made.files / "large").write_bytes(os.urandom(BYTES))
        made.server.environment = made.client.environment = scaled(made.server.environment)
        started(made.server, "--engine", request.param)
        started(made.client, "--engine", request.param)
        yield made
        for daemon in (made.client, made.server):
            assert stopped(daemon) == 0


def check_transfers(stage: Stage) -> None:
    """A file down and up, each over a connection of its own."""
    large = stage.files / "large"
    expected = hashlib.sha256(large.read_bytes()).hexdigest()
    curl = f"curl -sS --fail --max-time 30 http://{HOST}"
    down = stage.lab.run(stage.net.client, "sh", "-c", f"{curl}/large | sha256sum", timeout=40).stdout
    assert down.split()[0] == expected
    up = stage.lab.run(stage.net.client, *f"{curl}/ -H Expect: --data-binary @{large}".split(), timeout=40).stdout
    assert up == expected


def learnt(stage: Stage) -> bool:
    """Whether the client knows what passes."""
    return all(peer["mtu"] <= INNER for peer in status(stage.client)["peers"])


def test_from_the_beginning(stage: Stage) -> None:
    assert stage.net.wire is not None
    stage.net.wire.set(largest=OUTER)
    check_transfers(stage)
    wait_until(lambda: learnt(stage), 10, "what the path takes")


def test_from_some_time_on(stage: Stage) -> None:
    """A connection that was open before goes on."""
    assert stage.net.wire is not None
    stage.net.wire.set(rate=4e6)
    large = stage.files / "large"
    fetch = f"curl -sS --fail --max-time 60 http://{HOST}/large | sha256sum"
    fetching = stage.lab.spawn(stage.net.client, "sh", "-c", fetch)
    wire = stage.net.wire
    wait_until(lambda: wire.counters("a").get("bytes", 0) > BYTES / 4, 20, "a quarter of the file")
    wire.set(largest=OUTER)
    wait_until(lambda: wire.counters("a").get("too_large", 0) > 0, 5, "packets that are too large")
    assert fetching.wait(60) == 0
    assert fetching.output().split()[0] == hashlib.sha256(large.read_bytes()).hexdigest()
    check_transfers(stage)
    wait_until(lambda: learnt(stage), 10, "what the path takes")
