"""The connections of one copy: each host is connected to once, and asked for SFTP once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import asyncssh

from pqtun.shell.client.copyflags import CopyFlags
from pqtun.shell.client.location import Location
from pqtun.shell.client.options import Options
from pqtun.shell.client.remotestore import SUBSYSTEM, RemoteStore, open_sftp

Connector: TypeAlias = Callable[[Options], Awaitable[asyncssh.SSHClientConnection]]
"""Connects and logs in; raises UserError. connect.connect with a UserInterface is one."""


def terminal_connector(flags: CopyFlags) -> Connector:
    """Return what connects as a command line says, with questions and remarks on the terminal."""
    from pqtun.shell.client.connect import connect
    from pqtun.shell.client.ui import UserInterface

    ui = UserInterface(level=flags.level, batch=flags.batch)

    async def connector(options: Options) -> asyncssh.SSHClientConnection:
        return await connect(options, ui=ui)

    return connector


_Key: TypeAlias = tuple[str | None, str | None, int | None]


class Connections:
    """Connects when a host is first needed."""

    def __init__(self, flags: CopyFlags, connector: Connector) -> None:
        self._flags = flags
        self._connector = connector
        self._connected: dict[_Key, asyncssh.SSHClientConnection] = {}
        self._stores: dict[_Key, RemoteStore] = {}

    async def connection(self, location: Location) -> asyncssh.SSHClientConnection:
        """Return the connection to a location's host. Raises UserError."""
        key = _key(location)
        if key not in self._connected or self._connected[key].is_closed():
            self._stores.pop(key, None)
            self._connected[key] = await self._connector(self._flags.for_host(location))
        return self._connected[key]

    async def store(self, location: Location) -> RemoteStore:
        """Return the files of a location's host. Raises UserError."""
        connection = await self.connection(location)
        key = _key(location)
        if key not in self._stores:
            self._stores[key] = RemoteStore(await open_sftp(connection, self._flags.server or SUBSYSTEM))
        return self._stores[key]

    def forget(self, location: Location) -> None:
        """Drop a connection that does not work any more."""
        self._stores.pop(_key(location), None)
        if (connection := self._connected.pop(_key(location), None)) is not None:
            connection.abort()

    async def close(self, *, at_once: bool) -> None:
        """End all; ``at_once``: whatever is still to be sent is dropped."""
        for connection in self._connected.values():
            if at_once:
                connection.abort()
            else:
                connection.close()
        for connection in self._connected.values():
            await connection.wait_closed()
        self._connected.clear()


def _key(location: Location) -> _Key:
    return location.user, location.host, location.port
