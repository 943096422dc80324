"""What a server can begin towards a client through the tunnel."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from pqtun.protocol.private6 import address6, prefix
from tests.net.lab import Lab
from tests.net.stage import PAGE, SERVER_SUBNET, Stage, started, stopped

CLIENT_AT_SERVER = "10.42.0.2"  # the first client's private address
CLIENT_AT_SERVER6 = str(address6(prefix(SERVER_SUBNET), ipaddress.IPv4Address(CLIENT_AT_SERVER)))
ADDRESSES = (CLIENT_AT_SERVER, CLIENT_AT_SERVER6)


def fetch(address: str) -> tuple[str, ...]:
    host = f"[{address}]" if ":" in address else address
    return ("curl", "-sS", "--max-time", "2", f"http://{host}:8080/page")


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        made = Stage(lab)
        lab.web_server(made.net.client, made.files, 8080)
        started(made.server)
        yield made


def ping(stage: Stage, address: str) -> int:
    return stage.lab.run(stage.net.server, "ping", "-q", "-c1", "-W5", address, check=False).returncode


def test_a_server_begins_no_connection_but_may_ping(stage: Stage) -> None:
    started(stage.client)
    assert stage.curl().tunnelled
    for address in ADDRESSES:
        assert ping(stage, address) == 0
        refused = stage.lab.run(stage.net.server, *fetch(address), check=False, timeout=10)
        assert refused.returncode == 28  # curl(1): timeout
    dropped = stage.lab.run(stage.net.client, "nft", "list", "chain", "inet", "pqtun_client", "input").stdout
    assert "counter packets 0 " not in dropped
    assert stage.curl().text == PAGE
    assert stopped(stage.client) == 0


def test_it_may_where_that_is_allowed(stage: Stage) -> None:
    started(stage.client, "--incoming", "allow")
    assert stage.curl().tunnelled
    for address in ADDRESSES:
        assert ping(stage, address) == 0
        assert stage.lab.run(stage.net.server, *fetch(address), timeout=10).stdout == PAGE
