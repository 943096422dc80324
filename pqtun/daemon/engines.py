"""Chooses the packet engine."""

import asyncio
import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address

from pqtun.daemon.host import Tun
from pqtun.protocol.errors import UserError
from pqtun.pump.engine import Engine
from pqtun.pump.python import PythonEngine


def check_engine(name: str) -> str:
    """Return the engine that ``name`` (auto, native or python) means here. Raises UserError if it is not there."""
    if name == "native":
        raise UserError("the native engine is not part of this installation; use --engine auto or --engine python")
    return "python"


def make_engine(
    tun: Tun, udp: socket.socket, clock: Callable[[], float], deliver_to: IPv4Address | None = None
) -> Engine:
    """Return an engine that owns the worker's descriptors from now on; call it on the event loop."""
    fd = os.dup(tun.file.fileno())
    tun.file.close()
    return PythonEngine(
        fd,
        udp,
        own=tun.address.ip,
        subnet=tun.address.network,
        deliver_to=deliver_to,
        clock=clock,
        loop=asyncio.get_running_loop(),
    )
