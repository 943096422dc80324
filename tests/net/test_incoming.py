"""What a server can begin towards a client through the tunnel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.lab import Lab
from tests.net.stage import PAGE, Stage, started, stopped

CLIENT_AT_SERVER = "10.42.0.2"  # the first client's private address
FETCH = ("curl", "-sS", "--max-time", "2", f"http://{CLIENT_AT_SERVER}:8080/page")


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        made = Stage(lab)
        lab.web_server(made.net.client, made.files, 8080)
        started(made.server)
        yield made


def ping(stage: Stage) -> int:
    return stage.lab.run(stage.net.server, "ping", "-q", "-c1", "-W5", CLIENT_AT_SERVER, check=False).returncode


def test_a_server_begins_no_connection_but_may_ping(stage: Stage) -> None:
    started(stage.client)
    assert stage.curl().tunnelled
    assert ping(stage) == 0
    refused = stage.lab.run(stage.net.server, *FETCH, check=False, timeout=10)
    assert refused.returncode == 28  # curl(1): timeout
    dropped = stage.lab.run(stage.net.client, "nft", "list", "chain", "inet", "pqtun_client", "input").stdout
    assert "counter packets 0 " not in dropped
    assert stage.curl().text == PAGE
    assert stopped(stage.client) == 0


def test_it_may_where_that_is_allowed(stage: Stage) -> None:
    started(stage.client, "--incoming", "allow")
    assert stage.curl().tunnelled
    assert ping(stage) == 0
    assert stage.lab.run(stage.net.server, *FETCH, timeout=10).stdout == PAGE
