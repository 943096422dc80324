"""Tunnels over bad paths, with each engine: what is fetched arrives whole, and the tunnel stays the same one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.net.lab import Conditions, Lab
from tests.net.pqtun import PqtunClient
from tests.net.process import LabError, wait_until
from tests.net.stage import HOST, PAGE, Stage, started, status, stopped
from tests.net.wire import Wire

BYTES = 3_000_000
SECONDS = 60.0  # a tenth of the packets lost makes TCP very slow, tunnel or not
HANDSHAKE = 20 + 8 + 1299  # bytes with the IPv4 and UDP headers: the largest packet of a first contact
ENGINES = ["native", "python"]

# What the path does, and the counters of the wire and of the receiving tunnel that show that it did.
PATHS: dict[str, tuple[dict[str, float], str, str]] = {
    "1 % loss": ({"loss": 0.01}, "lost", ""),
    "5 % loss": ({"loss": 0.05}, "lost", ""),
    "10 % loss": ({"loss": 0.10}, "lost", ""),
    "5 % reordering": ({"reorder": 0.05, "reorder_by": 0.003}, "reordered", ""),
    "1 % duplication": ({"duplicate": 0.01}, "duplicated", "replay"),
    "1 % corruption": ({"corrupt": 0.01}, "corrupted", ""),  # the kernel finds the UDP checksum wrong
    "bursts of 500": ({"burst": 500, "burst_every": 1000}, "burst", ""),
    "100 ms": ({"delay": 0.05}, "delivered", ""),
    "10 Mbit/s": ({"rate": 10e6}, "delivered", ""),
    "50 Mbit/s": ({"rate": 50e6}, "delivered", ""),
    "all of it": (
        {"loss": 0.01, "reorder": 0.05, "duplicate": 0.01, "corrupt": 0.01, "delay": 0.005, "rate": 50e6},
        "corrupted",
        "replay",
    ),
}


@pytest.fixture(scope="module", params=ENGINES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "native":
        pytest.importorskip("pqtun.pump._native")
    with Lab() as lab:
        made = Stage(lab, Conditions())
        (made.files / "large").write_bytes(os.urandom(BYTES))
        started(made.server, "--engine", request.param)
        started(made.client, "--engine", request.param)
        assert made.curl().tunnelled
        yield made
        for daemon in (made.client, made.server):
            assert stopped(daemon) == 0
            assert daemon.process is not None
            assert "Traceback" not in daemon.process.output()


@pytest.fixture
def wire(stage: Stage) -> Iterator[Wire]:
    """The wire, good again after the test."""
    assert stage.net.wire is not None
    yield stage.net.wire
    stage.net.wire.set(**vars(Conditions()))


def digest(stage: Stage) -> str:
    return hashlib.sha256((stage.files / "large").read_bytes()).hexdigest()


def download(stage: Stage) -> str:
    fetch = f"curl -sS --fail --max-time {SECONDS} http://{HOST}/large | sha256sum"
    return stage.lab.run(stage.net.client, "sh", "-c", fetch, timeout=SECONDS + 5).stdout.split()[0]


def upload(stage: Stage) -> str:
    """The web server answers with the digest of what came."""
    large = str(stage.files / "large")
    argv = ["curl", "-sS", "--fail", "--max-time", str(SECONDS), "-H", "Expect:", "--data-binary", f"@{large}"]
    return stage.lab.run(stage.net.client, *argv, f"http://{HOST}/", timeout=SECONDS + 5).stdout


def tunnel(daemon: Any) -> dict[str, Any]:
    """What a daemon says of its only peer."""
    (peer,) = status(daemon)["peers"]
    found: dict[str, Any] = peer
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda name: name.replace(" ", "-"))
def test_a_download_arrives_whole(stage: Stage, wire: Wire, path: str) -> None:
    conditions, shown, counted = PATHS[path]
    before, age = wire.counters("a").get(shown, 0), tunnel(stage.client)["age"]
    dropped = tunnel(stage.client)["drops"].get(counted, 0)
    wire.set(**conditions)
    assert download(stage) == digest(stage)
    assert wire.counters("a")[shown] > before
    now = tunnel(stage.client)
    assert now["age"] >= age  # no handshake was needed
    if counted:
        assert now["drops"][counted] > dropped


@pytest.mark.parametrize("path", ["5 % loss", "all of it"], ids=lambda name: name.replace(" ", "-"))
def test_an_upload_arrives_whole(stage: Stage, wire: Wire, path: str) -> None:
    wire.set(**PATHS[path][0])
    assert upload(stage) == digest(stage)


def pings(stage: Stage, count: int) -> int:
    """How many of so many pings, sent at once, come back."""
    argv = ["ping", "-q", "-c", str(count), "-l", str(count), "-W", "1", stage.private_address()]
    said = stage.lab.run(stage.net.client, *argv, check=False).stdout
    return int(said.partition(" received")[0].split()[-1])


def test_500_packets_lost_in_a_row(stage: Stage, wire: Wire) -> None:
    """In each direction in turn: what follows arrives, in the same tunnel."""
    age = tunnel(stage.client)["age"]
    for towards in ("b", "a"):
        lost = wire.counters(towards).get("burst", 0)
        wire.lose_next(500, towards)
        pings(stage, 450)  # no queue on the way overflows
        assert pings(stage, 150) in range(95, 115)  # among the lost are some of the daemons' own
        assert wire.counters(towards)["burst"] == lost + 500
    assert tunnel(stage.client)["age"] >= age


def new_client(stage: Stage) -> PqtunClient:
    """Started, with the engine of the server, and knowing nothing; the client before has said farewell."""
    engine = status(stage.server)["engine"]
    if stage.client.process is not None and stage.client.process.running:
        assert stopped(stage.client) == 0
    wait_until(lambda: not status(stage.server)["peers"], 5, "the farewell of the client before")
    client = stage.fresh_client()
    started(client, "--engine", engine)
    return client


def contact(stage: Stage, wire: Wire, **conditions: float) -> None:
    """A new client fetches a page over such a path; afterwards one tunnel is there, at both ends."""
    client = new_client(stage)
    wire.set(**conditions)

    def fetched() -> bool:
        try:
            return stage.curl(timeout=10).tunnelled
        except LabError:
            return False

    wait_until(fetched, SECONDS, "a page")
    wire.set(**vars(Conditions()))
    assert stage.curl().tunnelled
    wait_until(lambda: len(status(stage.server)["peers"]) == 1, 10, "one tunnel at the server")
    assert tunnel(client)["state"] == "up"


def test_first_contact_with_every_packet_twice(stage: Stage, wire: Wire) -> None:
    contact(stage, wire, duplicate=1.0)


def test_first_contact_with_packets_that_overtake_the_handshake(stage: Stage, wire: Wire) -> None:
    contact(stage, wire, reorder=0.5, reorder_by=0.05)


def test_first_contact_with_a_tenth_of_the_packets_lost(stage: Stage, wire: Wire) -> None:
    contact(stage, wire, loss=0.1)


def test_a_lost_handshake_is_sent_again(stage: Stage, wire: Wire) -> None:
    """The program that waits for the tunnel notices nothing but the pause."""
    new_client(stage)
    wire.set("b", largest=HANDSHAKE - 1)
    curl = ["curl", "-sS", "--fail", "--max-time", "20", f"http://{HOST}/page"]
    fetch = stage.lab.spawn(stage.net.client, *curl)
    wait_until(lambda: wire.counters("b").get("too_large", 0) > 0, 10, "a handshake")
    wire.set("b", largest=0)
    assert fetch.wait(5) == 0
    assert fetch.output() == PAGE
    assert len(status(stage.server)["peers"]) == 1
