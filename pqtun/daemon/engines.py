"""Chooses the packet engine."""

import asyncio
import importlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from pqtun.daemon import host
from pqtun.daemon.clock import SCALE
from pqtun.daemon.settings import CommonSettings
from pqtun.protocol.errors import UserError
from pqtun.pump.engine import Engine, HandshakeLimits
from pqtun.pump.offload import NONE, Offload
from pqtun.pump.python import PythonEngine

log = logging.getLogger(__name__)

NATIVE_MODULE: Final = "pqtun.pump._native"
MAX_AUTO_WORKERS: Final = 8  # beyond that the kernel's own work, not ours, is the limit


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine moves the packets, with how many threads, and what it may leave to the kernel."""

    name: str  # "native" or "python"
    workers: int
    offload: Offload
    fallback: bool = False  # the native engine would have been taken, but was not built

    @property
    def socket_buffer(self) -> int:
        """Bytes of a UDP socket's buffers."""
        return host.NATIVE_SOCKET_BUFFER if self.name == "native" else host.SOCKET_BUFFER


def choose_engine(settings: CommonSettings) -> EngineChoice:
    """Return the engine that the settings mean here. Raises UserError if it is not there, or does not encrypt."""
    reason = _missing() if settings.engine != "python" else None
    if settings.engine != "python" and reason is None:
        _refuse_null_cipher()
    if settings.engine == "native" and reason is not None:
        raise UserError(
            f"the native engine is not part of this installation ({reason}): install pqtun again where there is cargo, "
            "as doc/user.md says, or use --engine auto"
        )
    if settings.engine == "python" or reason is not None:
        return EngineChoice("python", 1, NONE, fallback=reason is not None)
    workers = settings.workers or min(len(os.sched_getaffinity(0)), MAX_AUTO_WORKERS)
    return EngineChoice("native", workers if settings.offload.multi_queue else 1, settings.offload)


def _refuse_null_cipher() -> None:
    """A build of the native engine for benchmarks alone sends everything in clear; nobody is to get it by mistake."""
    if importlib.import_module(NATIVE_MODULE).NULL_CIPHER and os.environ.get("PQTUN_NULL_CIPHER") != "1":
        raise UserError("the native engine was built without encryption, for benchmarks: install pqtun again")


def _missing() -> str | None:
    """Why there is no native engine, or None."""
    try:
        importlib.import_module(NATIVE_MODULE)
    except ImportError as error:
        return str(error)
    return None


def make_engine(
    choice: EngineChoice,
    tun: host.Tun,
    udp: Sequence[socket.socket],
    clock: Callable[[], float],
    deliver_to: IPv4Address | None = None,
    handshakes: HandshakeLimits | None = None,
) -> Engine:
    """Return an engine that owns the worker's descriptors from now on; call it on the event loop.

    ``deliver_to``: the IPv4 address for what comes through tunnels; IPv6 does not then. ``handshakes``: a server's
    limits; a client's engine takes none.
    """
    if choice.fallback:
        log.warning("the native engine was not built: the Python engine moves the packets, slower (see doc/user.md)")
    descriptors = [os.dup(file.fileno()) for file in tun.files]
    tun.close()
    for sock in udp[len(descriptors) :]:
        sock.close()  # the kernel gave fewer queues: what comes to this socket would be read by nobody
    udp = udp[: len(descriptors)]
    loop = asyncio.get_running_loop()
    own, subnet = tun.address.ip, tun.address.network
    own6 = tun.address6 if deliver_to is None else None
    if choice.name == "python":
        return PythonEngine(
            descriptors[0],
            udp[0],
            own=own,
            subnet=subnet,
            own6=own6,
            deliver_to=deliver_to,
            handshakes=handshakes,
            clock=clock,
            loop=loop,
        )
    from pqtun.pump.native import NativeEngine  # only where it was built

    return NativeEngine(
        descriptors,
        list(udp),
        own=own,
        subnet=subnet,
        own6=own6,
        deliver_to=deliver_to,
        handshakes=handshakes,
        clock_scale=SCALE,
        loop=loop,
        virtio=tun.vnet_header,
        offload=choice.offload.names,
    )
