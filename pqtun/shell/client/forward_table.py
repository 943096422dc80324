"""The forwards that a connection carries, opened and closed by their specification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import asyncssh

from pqtun.shell.client import remote_socks
from pqtun.shell.client.config import Config
from pqtun.shell.client.forwardspec import Forward, Permitted, parse_permitted
from pqtun.shell.client.route import LocalListener, Route, listen

MAX_FORWARDS: Final = 512  # open at once


@dataclass
class _Entry:
    listener: LocalListener | asyncssh.SSHListener
    port: int | None = None  # of a remote forward, as the server gave it


class ForwardTable:
    """Local ones outlive the connection, remote ones are asked for again on the next one."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection | None = None,
        *,
        gateway_ports: bool = False,
        unlink: bool = False,
        permitted: Permitted = None,
    ) -> None:
        """``gateway_ports``, ``unlink``, ``permitted``: GatewayPorts, StreamLocalBindUnlink and PermitRemoteOpen of
        ssh_config(5).
        """
        self._route = Route(connection)
        self._gateway_ports = gateway_ports
        self._unlink = unlink
        self._permitted = permitted
        self._entries: dict[Forward, _Entry] = {}

    @classmethod
    def of(cls, config: Config, connection: asyncssh.SSHClientConnection | None = None) -> ForwardTable:
        """An empty one with these settings."""
        return cls(
            connection,
            gateway_ports=config.gatewayports,
            unlink=config.streamlocalbindunlink,
            permitted=parse_permitted(config.permitremoteopen),
        )

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """What is open."""
        return tuple(self._entries)

    async def open(self, forward: Forward) -> int | None:
        """Open it, unless it is open; return a remote forward's port.

        Raises OSError (local), asyncssh.ChannelListenError (remote), asyncssh.ChannelOpenError without a connection.
        """
        entry = self._entries.get(forward)
        if entry is None:
            if len(self._entries) >= MAX_FORWARDS:
                raise OSError("too many forwards")
            if forward.kind == "remote":
                entry = await self._request(forward)
            else:
                local = await listen(self._route, forward, gateway_ports=self._gateway_ports, unlink=self._unlink)
                entry = _Entry(local)
            self._entries[forward] = entry
        return entry.port

    async def cancel(self, forward: Forward) -> bool:
        """Close it; return False if it was not open. Connections through it stay."""
        entry = self._entries.pop(forward, None)
        if entry is None:
            return False
        entry.listener.close()
        if isinstance(entry.listener, asyncssh.SSHListener):
            await entry.listener.wait_closed()
        return True

    async def carry(self, connection: asyncssh.SSHClientConnection) -> list[tuple[Forward, Exception]]:
        """Use another connection; return the remote forwards that its server refused."""
        self._route.set(connection)
        return await self.request_again([forward for forward in self._entries if forward.kind == "remote"])

    async def request_again(self, forwards: Iterable[Forward]) -> list[tuple[Forward, Exception]]:
        """Ask for remote forwards that are not the server's any more; return those that it refused."""
        refused: list[tuple[Forward, Exception]] = []
        for forward in forwards:
            try:
                self._entries[forward] = await self._request(forward)
            except (asyncssh.Error, asyncssh.ChannelListenError) as error:
                refused.append((forward, error))
        return refused

    def lost(self) -> None:
        """The connection is gone: who connects to a local listener waits for the next one."""
        self._route.set(None)

    def close(self) -> None:
        """Stop listening on all."""
        for entry in self._entries.values():
            if isinstance(entry.listener, LocalListener):
                entry.listener.close()
        self._entries.clear()
        self._route.close()

    async def _request(self, forward: Forward) -> _Entry:
        connection = await self._route.connection()
        host = forward.listen_address
        listener: asyncssh.SSHListener
        if forward.socks:
            listener = await remote_socks.listen(connection, forward, self._permitted)
        elif forward.listen_path is not None and forward.connect_path is not None:
            listener = await connection.forward_remote_path(forward.listen_path, forward.connect_path)
        elif forward.listen_path is not None:
            listener = await connection.forward_remote_path_to_port(
                forward.listen_path, forward.connect_host or "", forward.connect_port or 0
            )
        elif forward.connect_path is not None:
            listener = await connection.forward_remote_port_to_path(
                host, forward.listen_port or 0, forward.connect_path
            )
        else:
            listener = await connection.forward_remote_port(
                host, forward.listen_port or 0, forward.connect_host or "", forward.connect_port or 0
            )
        return _Entry(listener, listener.get_port() if forward.listen_path is None else 0)
