"""What went wrong with a file, in words: errors of this system, of SFTP servers and of connections."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Final

import asyncssh
from asyncssh.packet import PacketDecodeError

from pqtun.protocol.errors import UserError
from pqtun.shell.client.printable import printable

FILE_FAULTS: Final = (OSError, asyncssh.Error, PacketDecodeError)
"""All that an operation on a file raises, here and on a server; also when the connection is lost, or an answer of the
server is none."""

LOST: Final = "the connection was lost"

_GONE: Final = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, asyncssh.ConnectionLost, ConnectionError)
_ENDED: Final = (*_GONE, asyncssh.DisconnectError, asyncssh.ChannelOpenError, asyncio.IncompleteReadError)
_SAID_BY_SYSTEM: Final[dict[type[asyncssh.Error], int]] = {
    asyncssh.SFTPNoSuchFile: errno.ENOENT,
    asyncssh.SFTPNoSuchPath: errno.ENOENT,
    asyncssh.SFTPPermissionDenied: errno.EACCES,
    asyncssh.SFTPFileAlreadyExists: errno.EEXIST,
    asyncssh.SFTPWriteProtect: errno.EROFS,
    asyncssh.SFTPNoSpaceOnFilesystem: errno.ENOSPC,
    asyncssh.SFTPQuotaExceeded: errno.EDQUOT,
    asyncssh.SFTPDirNotEmpty: errno.ENOTEMPTY,
    asyncssh.SFTPNotADirectory: errno.ENOTDIR,
    asyncssh.SFTPFileIsADirectory: errno.EISDIR,
}
_MAX_REASON: Final = 300  # characters of what a server may say


class CopyFault(UserError):
    """A file that could not be copied, or not whole; the text is for people and names no path."""


def reason(error: BaseException) -> str:
    """Return what went wrong in one printable line, without the path."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (*_GONE, asyncio.IncompleteReadError)):
        return LOST
    if isinstance(error, PacketDecodeError):
        return "the server does not keep to the protocol"
    if isinstance(error, asyncssh.Error):
        number = _SAID_BY_SYSTEM.get(type(error))
        if number is not None:
            return os.strerror(number)
        if isinstance(error, asyncssh.SFTPOpUnsupported):
            return "the server does not support that"
        said = printable(error.reason[:_MAX_REASON]).strip()
        return said or f"error {error.code} of the server"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return printable(str(error)[:_MAX_REASON]) or type(error).__name__


def is_lost(error: BaseException) -> bool:
    """Whether it means that the server cannot be asked any more."""
    return isinstance(error, _ENDED) or (
        isinstance(error, asyncssh.SFTPBadMessage) and error.reason == "Connection closed"
    )


def is_absent(error: BaseException) -> bool:
    """Whether it means that there is nothing at a path."""
    return isinstance(error, (FileNotFoundError, NotADirectoryError, asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath))


def is_unexplained(error: BaseException) -> bool:
    """Whether a server only said that it failed, as version 3 of SFTP has few words (a full disk is one of them)."""
    return type(error) is asyncssh.SFTPFailure
