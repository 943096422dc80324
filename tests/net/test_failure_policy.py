"""What programs get of a server that announces a key and cannot be reached through a tunnel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.lab import SERVER4, SERVER6, Lab
from tests.net.pqtun import scaled
from tests.net.process import LabError, wait_until
from tests.net.stage import HOST, PAGE, Stage, started, status, stopped

OTHER = "other.example.net"
DIRECT = '[client]\ndirect_minutes = 1\n[client.failure]\n"other.*" = "block"\n"*.example.net" = "direct"\n'


@pytest.fixture
def stage() -> Iterator[Stage]:
    """No pqtun server runs; the web server does."""
    with Lab() as lab:
        made = Stage(lab)
        made.add_records(made.server.announce(OTHER, address=SERVER4))
        made.client.environment = scaled(made.client.environment)  # the minutes are 3 s each
        yield made
        assert stopped(made.client) == 0
        assert made.client.process is not None
        assert "Traceback" not in made.client.process.output()


def in_clear(stage: Stage, host: str) -> bool:
    try:
        fetched = stage.curl(host, timeout=5)
    except LabError:
        return False
    assert fetched.text == PAGE
    return not fetched.tunnelled


def test_never_in_clear_by_default(stage: Stage) -> None:
    started(stage.client)
    for _ in range(3):
        assert not in_clear(stage, HOST)
    assert "/page" not in stage.web.output()


def test_in_clear_where_that_is_allowed_and_in_the_tunnel_again_later(stage: Stage) -> None:
    config = stage.lab.directory / "pqtun.toml"
    config.write_text(DIRECT)
    started(stage.client, "--config", str(config))
    wait_until(lambda: in_clear(stage, HOST), 30, "the page in clear")
    assert stage.dig(HOST)[-1] == SERVER4
    assert SERVER6 in stage.dig(HOST, "AAAA")
    for _ in range(3):
        assert not in_clear(stage, OTHER)
    assert stage.client.process is not None
    assert "real addresses are given out" in stage.client.process.output()
    started(stage.server)
    wait_until(lambda: stage.curl(timeout=20).tunnelled, 20, "the tunnel")
    assert status(stage.client)["peers"][0]["state"] == "up"
