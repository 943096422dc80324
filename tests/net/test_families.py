"""IPv4 and IPv6, outside and inside the tunnel, and ways that only one of them has."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

import pytest

from tests.net.lab import SERVER4, SERVER6, Lab
from tests.net.stage import CLIENT_SUBNET, HOST, SERVER_SUBNET, Stage, is_private, started, status, stopped

V6_HOST = "six.example.net"
ENGINES = ["native", "python"]
SECONDS = 15.0  # a family that does not answer costs less than a user waits


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A server, also under a name with an IPv6 address alone."""
    if request.param == "native":
        pytest.importorskip("pqtun.pump._native")
    with Lab() as lab:
        made = Stage(lab)
        made.announce(V6_HOST, made.keyhash, SERVER6)
        started(made.server, "--engine", request.param)
        yield made


@pytest.fixture
def stage(served: Stage) -> Iterator[Stage]:
    """With a running client that remembers nothing."""
    client = served.fresh_client()
    started(client, "--engine", status(served.server)["engine"])
    yield served
    assert stopped(client) == 0
    assert client.process is not None
    assert "Traceback" not in client.process.output()


def real_address(stage: Stage) -> str:
    (peer,) = status(stage.client)["peers"]
    return str(peer["real_address"])


def test_a_server_with_an_ipv6_address_alone(stage: Stage) -> None:
    """Programs that speak IPv4 alone reach it too."""
    assert is_private(stage.private_address(V6_HOST), CLIENT_SUBNET)
    fetched = stage.curl(V6_HOST, family=4)
    assert fetched.tunnelled
    assert ipaddress.ip_address(fetched.address).version == 4
    assert real_address(stage) == SERVER6


@pytest.mark.parametrize(("hole", "left"), [(SERVER6, SERVER4), (SERVER4, SERVER6)])
def test_a_family_that_leads_nowhere(stage: Stage, hole: str, left: str) -> None:
    """Packets to one of the two addresses vanish: the other one is used, and remembered."""
    family = "ip6" if ":" in hole else "ip"
    stage.lab.lose(stage.net.router, 100, match=f"{family} daddr {hole}")
    try:
        assert stage.curl(timeout=SECONDS).tunnelled
        assert real_address(stage) == left
        assert stopped(stage.client) == 0
        started(stage.client, "--engine", status(stage.server)["engine"])
        assert stage.curl(timeout=SECONDS).tunnelled
        assert real_address(stage) == left
    finally:
        stage.lab.stop_losing(stage.net.router)


def test_a_family_that_ceases_to_work(stage: Stage) -> None:
    """A tunnel over it is taken over by one over the other family; what was being fetched is fetched to its end."""
    assert stage.curl().tunnelled
    hole = real_address(stage)
    family = "ip6" if ":" in hole else "ip"
    stage.lab.lose(stage.net.router, 100, match=f"{family} daddr {hole}")
    try:
        assert stage.curl(timeout=60).tunnelled
        assert real_address(stage) != hole
    finally:
        stage.lab.stop_losing(stage.net.router)


def test_ipv6_inside(stage: Stage) -> None:
    """From the first contact on, which shows that the server knows of it, and after a restart."""
    assert stage.dig(HOST, "AAAA") == [f"{stage.label}."]
    assert stage.curl(family=4).tunnelled
    for _ in range(2):
        address = stage.dig(HOST, "AAAA")[-1]
        assert address.startswith("fd")
        fetched = stage.curl(family=6)
        assert fetched.tunnelled
        assert fetched.address == address
        assert ipaddress.ip_address(fetched.seen).version == 6
        said = stage.lab.run(stage.net.client, "ping", "-q", "-c3", "-i0.01", "-s", "1300", address).stdout
        assert re.search(r"3 received", said)
        assert stopped(stage.client) == 0
        started(stage.client, "--engine", status(stage.server)["engine"])


def test_both_families_inside_at_once(stage: Stage) -> None:
    assert stage.curl(family=4).tunnelled
    seen = {stage.curl(family=family).seen for family in (4, 6, 4, 6)}
    assert len(seen) == 2
    assert all(is_private(address, SERVER_SUBNET) for address in seen)
    assert len(status(stage.server)["peers"]) == 1
