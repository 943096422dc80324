"""``-R`` without a destination: who connects to the server's port says by SOCKS where this host shall connect to."""

import asyncio
from typing import Any, Final

import asyncssh
from asyncssh.forward import SSHForwarder
from asyncssh.socks import SSHSOCKSForwarder

from pqtun.shell.client.forwardspec import Forward, Permitted
from pqtun.shell.endpoints import listed

CONNECT_SECONDS: Final = 60.0


class _Request(SSHSOCKSForwarder):
    """One channel, whose first bytes are SOCKS."""

    def __init__(self, connection: asyncssh.SSHClientConnection, permitted: Permitted) -> None:
        super().__init__(connection, self._open)
        self._permitted = permitted

    def _connect(self) -> None:
        self._recv_handler = None
        self.forward(self._host, self._port)

    async def _open(self, _factory: object, host: str, port: int) -> None:
        if not listed(self._permitted, host, port):
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "not in PermitRemoteOpen")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, peer = await asyncio.get_running_loop().create_connection(SSHForwarder, host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(error)) from None
        if self._transport is None:
            peer.close()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the channel has closed")
        # Only now: what came before that would have been written to a connection that there was not yet.
        peer.set_peer(self)
        self.set_peer(peer)


async def listen(connection: asyncssh.SSHClientConnection, forward: Forward, permitted: Permitted) -> Any:
    """Have the server listen; return asyncssh's listener.

    ``permitted``: PermitRemoteOpen of ssh_config(5). Raises asyncssh.ChannelListenError.
    """

    def session(*_origin: object) -> Any:
        return _Request(connection, permitted)

    if forward.listen_path is not None:
        return await connection.create_unix_server(session, forward.listen_path)
    return await connection.create_server(session, forward.listen_address, forward.listen_port or 0)
