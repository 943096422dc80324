"""What the other end knows when one end stops in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.lab import Lab
from tests.net.process import LabError, wait_until
from tests.net.stage import HOST, Stage, started, status, stopped


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        made = Stage(lab)
        started(made.server)
        started(made.client)
        assert made.curl().tunnelled
        yield made


def reached(stage: Stage) -> bool:
    try:
        return stage.curl(timeout=1).tunnelled
    except LabError:
        return False


def test_a_server_that_is_restarted_is_reached_again(stage: Stage) -> None:
    assert stopped(stage.server) == 0
    wait_until(lambda: status(stage.client)["peers"][0]["state"] == "idle", 5, "the farewell of the server")
    started(stage.server)
    wait_until(lambda: reached(stage), 20, "a new tunnel")


def test_a_client_that_stops_leaves_no_tunnel_at_the_server(stage: Stage) -> None:
    assert len(status(stage.server)["peers"]) == 1
    assert stopped(stage.client) == 0
    wait_until(lambda: not status(stage.server)["peers"], 5, "the farewell of the client")


def test_check_leaves_no_tunnel_at_the_server(stage: Stage) -> None:
    assert stopped(stage.client) == 0
    stage.client.command("check", HOST)
    wait_until(lambda: not status(stage.server)["peers"], 5, "the farewell of check")
