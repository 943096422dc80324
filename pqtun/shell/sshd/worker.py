"""The unprivileged process of one connection: all that comes from the network is parsed and decrypted here."""

import asyncio
import logging
import pwd
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from pqtun.daemon.settings import SshdSettings
from pqtun.shell.sshd import confinement, connection
from pqtun.shell.sshd.connection import Connection, Owner
from pqtun.shell.sshd.hostkeys import PublicKey
from pqtun.shell.sshd.messages import Caller


@dataclass(slots=True)
class Workers:
    """What all workers have in common, made before any connection."""

    settings: SshdSettings
    user: pwd.struct_passwd
    empty: Path  # their root
    keys: Sequence[PublicKey]
    network: int | None  # descriptor of a network namespace without any network
    signing: socket.socket | None = None  # in a worker, its own
    options: asyncssh.SSHServerConnectionOptions | None = None

    def __post_init__(self) -> None:
        """Prepare what takes long."""
        self.options = connection.options(self.settings, self.keys, self._sign)

    def _sign(self, algorithm: str, data: bytes) -> bytes:
        assert self.signing is not None
        return connection.ask_to_sign(self.signing, algorithm, data)

    def run(self, sock: socket.socket, calls: socket.socket, signing: socket.socket) -> None:
        """Serve a connection until it ends, in a process of its own, which root has just forked."""
        keep = [one.fileno() for one in (sock, calls, signing)]
        confinement.limit_memory()
        confinement.confine(self.user, self.empty, keep, network=self.network, channels=self.settings.max_channels)
        _be_quiet()
        self.signing = signing
        asyncio.run(self._serve(sock, calls))

    async def _serve(self, sock: socket.socket, calls: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        assert self.options is not None
        owner = Owner()
        monitor = Caller(calls, lambda _message, _fds: None, lambda: served.abort())
        served = Connection(loop, self.options, self.settings, owner, monitor)
        await loop.create_connection(lambda: served, sock=sock)
        await served.wait_closed()
        if owner.channels is not None:
            await owner.channels.close()


def _be_quiet() -> None:
    """Log nothing that the network can cause: there would be a line for each packet."""
    for name in ("asyncssh", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
