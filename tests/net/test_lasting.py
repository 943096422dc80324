"""What idle connections outlive. Minutes pass CLOCK_SCALE times as fast for the daemons (PQTUN_CLOCK_SCALE).

All idle sessions are idle at the same time, each from a host of its own: what befalls one befalls no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.net.fates import FATES, Fate, clock
from tests.net.lab import SERVER4, Lab
from tests.net.pqtun import CLOCK_SCALE, scaled
from tests.net.process import LabError, wait_until
from tests.net.ssh import SshServer
from tests.net.stage import HOST, SERVER_SUBNET, Stage, devices, is_private, started, status, stopped

RESTART_SECONDS = 10.0  # real ones
IPV4_HOST = "four.example.net"  # whose tunnels a NAT is in the way of
ENGINES = ["native", "python"]


Course = Future[tuple[float, dict[str, Any]]]


@pytest.fixture(scope="module", params=ENGINES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "native":
        pytest.importorskip("pqtun.pump._native")
    with Lab() as lab:
        made = Stage(lab)
        made.add_records(made.server.announce(IPV4_HOST, address=SERVER4))
        made.server.environment = made.client.environment = scaled(made.server.environment)
        started(made.server, "--engine", request.param)
        yield made
        assert made.server.process is not None
        assert "Traceback" not in made.server.process.output()


@pytest.fixture(scope="module")
def fates(stage: Stage) -> Iterator[dict[str, tuple[Fate, Course]]]:
    """All of them under way."""
    ssh = SshServer(stage.lab, stage.net.server)
    # One after the other: what is tested is not five first contacts at once on a small machine.
    all_fates = [Fate(stage, ssh, IPV4_HOST, number, befall) for number, befall in enumerate(FATES, 1)]
    with ThreadPoolExecutor(len(FATES)) as pool:
        yield {
            befall.__name__: (fate, pool.submit(fate.run, clock(CLOCK_SCALE)))
            for befall, fate in zip(FATES, all_fates, strict=True)
        }
    for fate in all_fates:
        fate.close()


@pytest.mark.parametrize("name", [befall.__name__ for befall in FATES])
def test_an_idle_session_outlives(fates: dict[str, tuple[Fate, Course]], name: str) -> None:
    fate, course = fates[name]
    _, now = course.result(120)  # how long the answer took is what `make soak` measures
    assert now["private_address"] == fate.before["private_address"]
    assert now["state"] == "up"
    if name in ("stopped_process", "cut"):
        assert now["age"] < fate.before["age"] + 180  # with new keys


def test_each_has_one_tunnel_then(stage: Stage, fates: dict[str, tuple[Fate, Course]]) -> None:
    for _, course in fates.values():
        course.result(120)
    wait_until(lambda: len(status(stage.server)["peers"]) == len(fates), 20, "one tunnel a client")
    addresses = [peer["private_address"] for peer in status(stage.server)["peers"]]
    assert len(set(addresses)) == len(fates)


def reached(stage: Stage, ssh: SshServer) -> bool:
    argv = ssh.client_argv(HOST, "echo $SSH_CONNECTION")
    try:
        said = stage.lab.run(stage.net.client, *argv, check=False, timeout=10).stdout.split()
    except LabError:
        return False
    return bool(said) and is_private(said[0], SERVER_SUBNET)


def test_a_server_that_was_killed_is_reached_again(stage: Stage) -> None:
    """Without a farewell, and with nothing kept of the tunnels there were: new connections find a way at once."""
    ssh = SshServer(stage.lab, stage.net.server, port=2222)
    engine = status(stage.server)["engine"]
    started(stage.client, "--engine", engine)
    assert reached(stage, ssh)
    assert stage.server.process is not None
    stage.server.process.kill()
    wait_until(lambda: not devices(stage.lab, stage.net.server) & {"pqtsrv0"}, 5, "the end of the TUN device")
    started(stage.server, "--engine", engine)
    wait_until(lambda: reached(stage, ssh), RESTART_SECONDS, "a new connection")
    assert stopped(stage.client) == 0


def test_a_client_that_was_killed_connects_anew(stage: Stage) -> None:
    ssh = SshServer(stage.lab, stage.net.server, port=2223)
    engine = status(stage.server)["engine"]
    started(stage.client, "--engine", engine)
    assert reached(stage, ssh)
    assert stage.client.process is not None
    stage.client.process.kill()
    wait_until(lambda: not devices(stage.lab, stage.net.client) & {"pqtcli0"}, 5, "the end of the TUN device")
    started(stage.client, "--engine", engine)
    wait_until(lambda: reached(stage, ssh), RESTART_SECONDS, "a new connection")
    assert stopped(stage.client) == 0
