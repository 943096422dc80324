"""The two engines at either end of a tunnel, with and without what the kernel does for the native one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from pqtun.pump.offload import NAMES
from tests.net.lab import Lab
from tests.net.stage import HOST, Stage, started, status, stopped

pytest.importorskip("pqtun.pump._native")

BYTES = 8_000_000
NATIVE, PYTHON = ("--engine", "native"), ("--engine", "python")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        made = Stage(lab)
        (made.files / "large").write_bytes(os.urandom(BYTES))
        yield made


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (NATIVE, NATIVE),
        (NATIVE, PYTHON),
        (PYTHON, NATIVE),
        (PYTHON, PYTHON),
        ((*NATIVE, "--offload", "off"), NATIVE),
        ((*NATIVE, "--workers", "5"), (*NATIVE, "--offload", "off")),
        ((*NATIVE, "--offload", "tun-tso"), (*NATIVE, "--offload=-udp-gso")),
        ((*NATIVE, "--offload=-tun-gro"), (*NATIVE, "--offload", "udp-gro,udp-gso,multi-queue", "--workers", "3")),
        ((*NATIVE, "--mtu", "4040"), (*NATIVE, "--mtu", "576")),
    ],
    ids=lambda arguments: " ".join(arguments[1:]),
)
def test_both_ways(stage: Stage, client: tuple[str, ...], server: tuple[str, ...]) -> None:
    """A file down and a file up, whatever the ends are."""
    started(stage.server, *server)
    started(stage.client, *client)
    large = stage.files / "large"
    expected = hashlib.sha256(large.read_bytes()).hexdigest()
    curl = f"curl -sS --fail --max-time 40 http://{HOST}"
    down = stage.lab.run(stage.net.client, "sh", "-c", f"{curl}/large | sha256sum", timeout=45).stdout
    assert down.split()[0] == expected
    up = stage.lab.run(stage.net.client, *f"{curl}/ -H Expect: --data-binary @{large}".split(), timeout=45).stdout
    assert up == expected
    for daemon, arguments in ((stage.client, client), (stage.server, server)):
        told = status(daemon)
        assert told["engine"] == arguments[1]
        assert "failed" not in told["offload"].values()
        (peer,) = told["peers"]
        assert min(peer["bytes"].values()) > BYTES
    assert stopped(stage.client) == 0
    assert stopped(stage.server) == 0


def test_status_tells_engine_workers_and_offloads(stage: Stage) -> None:
    started(stage.server, "--workers", "3", "--offload=-udp-gro,-tun-uso")
    told = status(stage.server)
    assert (told["engine"], told["workers"]) == ("native", 3)
    assert set(told["offload"]) == set(NAMES)
    assert told["offload"]["udp-gro"] == told["offload"]["tun-uso"] == "off"
    assert told["offload"]["multi-queue"] == "on"
    device = stage.lab.run(stage.net.server, "ip", "-d", "link", "show", told["interface"]).stdout
    assert "multi_queue numqueues 3" in device
    assert "vnet_hdr on" in device
    assert "gso_max_size 60520 gso_max_segs 45" in device
    assert stopped(stage.server) == 0
