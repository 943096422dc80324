"""The engines that the tests of the engine run with."""

import asyncio
import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from pathlib import Path
from typing import Any

import pytest

from pqtun.pump.engine import Engine, HandshakeLimits
from pqtun.pump.python import PythonEngine
from tests.pump.rig import EngineFactory, FakeClock, Rig, rig


def native_engine(
    tun_fd: int,
    udp: socket.socket,
    *,
    own: IPv4Address,
    subnet: IPv4Network,
    own6: IPv6Interface | None,
    deliver_to: IPv4Address | None,
    handshakes: HandshakeLimits | None,
    clock: FakeClock,
    loop: asyncio.AbstractEventLoop,
) -> Engine:
    """The native engine on a pair of sockets, which know no virtio headers."""
    from pqtun.pump import _native
    from pqtun.pump.native import NativeEngine

    manual = _native.ManualClock(clock.now)
    clock.watchers.append(manual.set)
    return NativeEngine(
        [tun_fd],
        [udp],
        own=own,
        subnet=subnet,
        own6=own6,
        deliver_to=deliver_to,
        handshakes=handshakes,
        virtio=False,
        offload=["udp-gso", "udp-gro"],
        loop=loop,
        clock=manual,
    )


ENGINES: dict[str, EngineFactory] = {"python": PythonEngine}
if find_spec("pqtun.pump._native"):  # where cargo is missing there is only the other one
    ENGINES["native"] = native_engine
else:
    collect_ignore = ["test_differential.py", "test_native.py", "test_offload.py", "test_virtio.py", "test_virtio6.py"]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this host has no IPv6")

CLONE_NEWNET = 0x40000000

Scenario = Callable[[Rig], Coroutine[None, None, None]]
Play = Callable[..., None]


@pytest.fixture(params=list(ENGINES))
def factory(request: pytest.FixtureRequest) -> EngineFactory:
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def _own_network() -> Iterator[None]:
    """Sockets made meanwhile live in a fresh network namespace; without root, on this host's loopback device."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as home:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            if libc.setns(home.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def play(factory: EngineFactory, _own_network: None) -> Play:
    """Run a scenario with an engine that has been started; ``options`` are those of ``Rig``."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def scene() -> None:
            with rig(factory, **options) as made:
                await scenario(made)

        asyncio.run(scene())

    return run
