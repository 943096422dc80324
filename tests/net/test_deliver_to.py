"""`pqtun server --deliver-to`: which addresses it takes, and where packets arrive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.lab import SERVER4, Lab
from tests.net.stage import HOST, PAGE, Stage, refused, start_python, started, stopped


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        yield Stage(lab)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.77", "10.42.0.9"])
def test_an_address_that_is_not_the_hosts_is_refused(stage: Stage, address: str) -> None:
    said = refused(stage.server, "--deliver-to", address)
    assert f"--deliver-to {address}: name an address that one of this host's network interfaces has" in said


def test_packets_arrive_at_the_address(stage: Stage) -> None:
    started(stage.server, "--deliver-to", SERVER4)
    started(stage.client)
    only_there = ("-m", "http.server", "8081", "--bind", SERVER4, "--directory", str(stage.files))
    web = start_python(stage.lab, stage.net.server, *only_there)
    stage.lab.wait_listening(web, stage.net.server, 8081)
    argv = ("curl", "-sS", "--fail", "--max-time", "10", "-w", " %{remote_ip}", f"http://{HOST}:8081/page")
    text, address = stage.lab.run(stage.net.client, *argv, timeout=15).stdout.rsplit(" ", 1)
    assert text == PAGE
    assert address == stage.private_address()
    assert stopped(stage.client) == 0
    assert stopped(stage.server) == 0
