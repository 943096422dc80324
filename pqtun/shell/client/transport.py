"""The byte streams that SSH runs over: TCP to an address, or the two ends of a ProxyCommand's pipes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from dataclasses import dataclass

from pqtun.protocol.errors import UserError
from pqtun.shell.client.config import Config
from pqtun.shell.client.loginfaults import Unreachable
from pqtun.shell.client.ui import UserInterface

Address = tuple[int, tuple[str | int | bytes, ...]]
_FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass
class Transport:
    """A connected stream socket, and the ProxyCommand at its other end if there is one."""

    sock: socket.socket
    process: subprocess.Popen[bytes] | None = None


async def resolve(config: Config) -> list[Address]:
    """Return the host's addresses as (family, socket address). Raises UserError."""
    return await asyncio.get_running_loop().run_in_executor(None, look_up, config)


def look_up(config: Config) -> list[Address]:
    """Do what resolve() does, and wait for it."""
    family = _FAMILIES[config.addressfamily]
    try:
        found = socket.getaddrinfo(config.hostname, config.port, family=family, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        text = error.strerror if isinstance(error, socket.gaierror) else "Name or service not known"
        passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        kind = Unreachable if passing else UserError
        raise kind(f"Could not resolve hostname {config.hostname}: {text}") from None
    return [(entry[0], tuple(entry[4])) for entry in found]


def opened(config: Config, address: Address) -> socket.socket:
    """Return a socket bound as the configuration has it, to connect to an address. Raises OSError."""
    sock = socket.socket(address[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if config.bindinterface is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(config.bindinterface))
        if config.bindaddress is not None:
            sock.bind((config.bindaddress, 0))
    except (UnicodeError, TypeError):  # a name that cannot be encoded
        sock.close()
        raise OSError(errno.EADDRNOTAVAIL, f"{config.bindaddress!r} is no address") from None
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(config: Config, address: Address, ui: UserInterface) -> Transport:
    """Connect to one address. Raises OSError, TimeoutError."""
    sock = opened(config, address)
    try:
        ui.debug(f"Connecting to {config.hostname} [{address[1][0]!s}] port {config.port}.")
        async with asyncio.timeout(config.connecttimeout or None):
            await asyncio.get_running_loop().sock_connect(sock, address[1])
    except BaseException:
        sock.close()
        raise
    ui.debug("Connection established.")
    return Transport(sock)


def proxied(config: Config) -> Transport:
    """Start the ProxyCommand; it ends when the socket is closed. Raises UserError."""
    assert config.proxycommand is not None
    command = config.expand(config.proxycommand)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    shell = os.environ.get("SHELL") or "/bin/sh"
    try:
        # In our process group, as with ssh: what it asks on the terminal can be answered.
        process = subprocess.Popen([shell, "-c", f"exec {command}"], stdin=theirs.fileno(), stdout=theirs.fileno())
    except OSError as error:
        ours.close()
        raise UserError(f"{shell}: {error.strerror}") from None
    finally:
        theirs.close()
    return Transport(ours, process)
