"""What goes on while asyncssh is loaded: the host's name is looked up, its tunnel asked for, its address connected to.

Loading takes longer than all of that, and the server has time to begin as well. Nothing is sent before the connection
is taken over.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pqtun.daemon.whois import Known
from pqtun.protocol.errors import UserError
from pqtun.shell.client import transport, tunnel
from pqtun.shell.client.config import Config
from pqtun.shell.client.options import Options
from pqtun.shell.client.transport import Address

SECONDS: Final = 1.0  # for an address to answer; after that it is left to who can say so


@dataclass
class Found:
    """The addresses; if the first one has answered, who the tunnel leads to (None without one) and the socket."""

    addresses: list[Address]
    known: Known | None = None
    sock: socket.socket | None = None

    def take(self, address: Address) -> socket.socket | None:
        """Return the socket if it is connected to this address, once."""
        if address is not self.addresses[0]:
            return None
        sock, self.sock = self.sock, None
        return sock


def start(options: Options, config: Config) -> Future[Found] | None:
    """Begin, in a thread; None where this host does not connect itself. The result may be UserError."""
    if config.proxyjump is not None or config.proxycommand is not None or options.persistent:
        return None
    found: Future[Found] = Future()
    found.set_running_or_notify_cancel()
    # A daemon: where a name server does not answer, ^C need not wait for it.
    threading.Thread(target=_work, args=(options, config, found), daemon=True).start()
    return found


def _work(options: Options, config: Config, found: Future[Found]) -> None:
    try:
        found.set_result(_find(options, config))
    except BaseException as error:  # noqa: BLE001  # whatever it is, somebody waits for it
        found.set_exception(error)


def _find(options: Options, config: Config) -> Found:
    result = Found(transport.look_up(config))
    try:
        address = result.addresses[0]
        if not options.direct:
            run = None if options.run is None else Path(options.run)
            result.known = tunnel.identify(config.hostname, str(address[1][0]), run)
        result.sock = _connected(config, address)
    except (OSError, UserError):
        result.known = None  # who takes over finds out, and says so
    return result


def _connected(config: Config, address: Address) -> socket.socket:
    sock = transport.opened(config, address)
    try:
        sock.settimeout(SECONDS)
        sock.connect(address[1])
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
