"""What local listeners open channels on: the connection that is up at the moment, which may be another one later."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import asyncssh
from asyncssh.forward import SSHLocalForwarder, SSHLocalPathForwarder, SSHLocalPortForwarder
from asyncssh.listener import create_tcp_local_listener
from asyncssh.logging import logger as _logger
from asyncssh.socks import SSHSOCKSForwarder

from pqtun.shell.client.forwardspec import Forward

WAIT_SECONDS: Final = 10.0  # how long who connects to a listener waits for a connection that is being made again
_LOOPBACK: Final = ("127.0.0.1", "::1")
_ALL: Final = ("0.0.0.0", "::")


class Route:
    """Stands in for a connection where asyncssh's local listeners want one.

    Those use of it ``logger``, ``create_task`` and ``close_forward_listener``; the channels are opened by what
    listen() gives them.
    """

    logger = _logger

    def __init__(self, connection: asyncssh.SSHClientConnection | None = None) -> None:
        self._connection = connection
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()

    def set(self, connection: asyncssh.SSHClientConnection | None) -> None:
        """Name the connection to use from now on; None while there is none."""
        self._connection = connection
        self._changed.set()
        self._changed = asyncio.Event()

    async def connection(self) -> asyncssh.SSHClientConnection:
        """Return the connection, once there is one. Raises asyncssh.ChannelOpenError after WAIT_SECONDS."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while self._connection is None:
                    await self._changed.wait()
        except TimeoutError:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "not connected to the server") from None
        return self._connection

    def create_task(self, work: Coroutine[Any, Any, object], task_logger: object = None) -> asyncio.Task[object]:
        """See asyncssh's SSHConnection."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def close_forward_listener(self, listen_key: object) -> None:
        """See asyncssh's SSHConnection; listeners are kept elsewhere."""

    def close(self) -> None:
        """End what is being opened."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.debug1("Forwarding failed: %s", error)


class LocalListener:
    """Listens for -L or -D."""

    def __init__(self, closers: list[Callable[[], None]], path: str | None) -> None:
        """Use listen()."""
        self._closers = closers
        self._path = path

    def close(self) -> None:
        """Stop listening; connections stay. May be called twice."""
        while self._closers:
            self._closers.pop()()
            if not self._closers and self._path is not None:
                try:
                    os.unlink(self._path)
                except FileNotFoundError:
                    pass


async def listen(route: Route, forward: Forward, *, gateway_ports: bool = False, unlink: bool = False) -> LocalListener:
    """Listen as -L or -D ask for. ``unlink``: a socket file in the way is removed first. Raises OSError."""

    async def tunnel(factory: Any, *origin: Any) -> Any:
        connection = await route.connection()
        if forward.socks:
            return await connection.create_connection(factory, *origin)
        if forward.connect_path is not None:
            return await connection.create_unix_connection(factory, forward.connect_path)
        assert forward.connect_host is not None
        assert forward.connect_port is not None
        return await connection.create_connection(factory, forward.connect_host, forward.connect_port, *origin[:2])

    stand_in = cast("asyncssh.SSHClientConnection", route)
    kind: type[SSHLocalForwarder] = SSHSOCKSForwarder if forward.socks else SSHLocalPortForwarder
    if forward.listen_path is not None:
        return await _listen_path(forward.listen_path, lambda: SSHLocalPathForwarder(stand_in, tunnel), unlink)
    assert forward.listen_port is not None
    return await _listen_port(
        route, addresses(forward, gateway_ports), forward.listen_port, lambda: kind(stand_in, tunnel)
    )


def addresses(forward: Forward, gateway_ports: bool) -> tuple[str, ...]:
    """Return what a local listener binds to."""
    host = forward.listen_host
    if host is None:
        host = "" if gateway_ports else "localhost"
    return {"": _ALL, "*": _ALL, "localhost": _LOOPBACK}.get(host, (host,))


async def _listen_port(route: Route, hosts: tuple[str, ...], port: int, factory: Callable[[], Any]) -> LocalListener:
    loop = asyncio.get_running_loop()
    closers: list[Callable[[], None]] = []
    for host in hosts:
        try:
            listener = await create_tcp_local_listener(route, loop, factory, host, port)  # type: ignore[arg-type]
        except OSError as error:
            # A host without IPv6 listens on IPv4 alone; a port in use is a fault on either.
            if host == hosts[-1] and closers and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
            for close in closers:
                close()
            raise
        closers.append(listener.close)
    return LocalListener(closers, None)


async def _listen_path(path: str, factory: Callable[[], Any], unlink: bool) -> LocalListener:
    if unlink:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # the file's mode from its first moment on, as StreamLocalBindMask 0177 has it
        sock.bind(path)
        server = await asyncio.get_running_loop().create_unix_server(factory, sock=sock)
    except BaseException:
        sock.close()
        raise
    return LocalListener([server.close], path)
