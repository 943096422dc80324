"""Listening sockets of a user's: TCP ports, X displays, Unix-domain sockets, the agent's; files are removed in the end.

They are made in the user's process, so what the kernel lets the user do is the rule, and the files are the user's.
"""

import errno
import os
import shutil
import socket
import stat
import tempfile
from dataclasses import dataclass, field
from typing import Final

from pqtun.shell.sshd.messages import Refused

BACKLOG: Final = 128
FIRST_DISPLAY: Final = 10  # X11DisplayOffset of sshd
LAST_DISPLAY: Final = 1000
X11_PORT: Final = 6000  # of display 0
PORT_TRIES: Final = 20  # a port that is free for IPv4 may be taken for IPv6

_LOOPBACK: Final = ("127.0.0.1", "::1")


def on_port(address: str | None, port: int) -> tuple[int, list[socket.socket]]:
    """Listen on a port, chosen by the kernel if 0, of an address or else of loopback, IPv4 and IPv6.

    Return the port and the sockets. Raises OSError.
    """
    addresses = _LOOPBACK if address is None else (address,)
    for last in range(PORT_TRIES - 1, -1, -1):
        try:
            return _on_all(addresses, port)
        except OSError as error:
            if port != 0 or error.errno != errno.EADDRINUSE or not last:
                raise
    raise AssertionError


def _on_all(addresses: tuple[str, ...], port: int) -> tuple[int, list[socket.socket]]:
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            try:
                sockets.append(_on_one(address, port))
            except OSError as error:
                # A host without IPv6 has no ::1, and that is no reason to refuse.
                if sockets and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                raise
            port = sockets[0].getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return port, sockets


def _on_one(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def on_display() -> tuple[int, list[socket.socket]]:
    """Listen as an X server would, on the first display from 10 on that is free; return its number and the sockets.

    Raises Refused.
    """
    for number in range(FIRST_DISPLAY, LAST_DISPLAY):
        try:
            _, sockets = _on_all(_LOOPBACK, X11_PORT + number)
        except OSError:
            continue
        return number, sockets
    raise Refused("all displays are taken")


@dataclass(slots=True)
class SocketFiles:
    """The socket files that were made, to be removed."""

    _made: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # by absolute path
    _directories: list[str] = field(default_factory=list)

    def listen(self, path: str) -> socket.socket:
        """Listen on a new socket file of mode 0600; one that is there already stays. Raises OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # StreamLocalBindMask of sshd
        try:
            sock.bind(path)
            self._made[os.path.abspath(path)] = _identity(os.lstat(path))
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(before)
        return sock

    def listen_privately(self) -> tuple[str, socket.socket]:
        """Listen on a socket file in a new directory that only this user may enter. Raises OSError."""
        directory = tempfile.mkdtemp(prefix="pqtun-")  # mode 0700
        self._directories.append(directory)
        path = os.path.join(directory, f"agent.{os.getpid()}")
        return path, self.listen(path)

    def remove(self, path: str) -> None:
        """Remove a socket file that `listen` made, unless another has taken its place."""
        path = os.path.abspath(path)
        made = self._made.pop(path, None)
        try:
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode) and _identity(status) == made:
                os.unlink(path)
        except OSError:
            pass  # somebody has removed it, or its directory

    def remove_all(self) -> None:
        """Remove all that there are, and the private directories."""
        for path in list(self._made):
            self.remove(path)
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)
        self._directories.clear()


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a file from another of the same name; the time does where an inode is used again."""
    return status.st_dev, status.st_ino, status.st_mtime_ns
