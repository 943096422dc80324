"""A server's files over SFTP, to be copied from and to."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from typing import Final

import asyncssh
from asyncssh.sftp import start_sftp_client

from pqtun.protocol.errors import UserError
from pqtun.shell.client.faults import FILE_FAULTS, CopyFault, reason
from pqtun.shell.client.store import Entry

WINDOW: Final = 8 << 20  # bytes that a server may send ahead: 80 ms at 100 MB/s
MAX_PACKET: Final = 128 << 10  # bytes of an SSH packet to us; OpenSSH takes it, and large ones cost Python less
MAX_ENTRIES: Final = 1_000_000  # names in one directory, so that a server cannot fill our memory
SMALLEST_BLOCK: Final = 32 << 10  # what every server takes (draft-ietf-secsh-filexfer-02, section 3)
LARGEST_BLOCK: Final = 255 << 10  # OpenSSH's limit, and as fast as any larger one
SUBSYSTEM: Final = "sftp"

# OpenSSH's sftp-server takes the paths of a link the other way round than the draft has them. asyncssh knows it by the
# name of the SSH server, but TinySSH, which has no SFTP of its own, starts it too.
_TINYSSH: Final = "tinyssh"


async def open_sftp(connection: asyncssh.SSHClientConnection, server: str = SUBSYSTEM) -> asyncssh.SFTPClient:
    """Start SFTP on a connection; `server` is a subsystem's name or the path of a program. Paths are bytes.

    Raises UserError if the server has none.
    """
    named = {"command": server} if "/" in server else {"subsystem": server}
    try:
        writer, reader, _ = await connection.open_session(
            encoding=None, window=WINDOW, max_pktsize=MAX_PACKET, request_pty=False, **named
        )
        loop = asyncio.get_running_loop()
        sftp = await start_sftp_client(connection, loop, "backslashreplace", reader, writer, None, "strict", 3)
    except (*FILE_FAULTS, EOFError) as error:
        raise UserError(f"no SFTP on this connection: {reason(error)}") from None
    if _TINYSSH in str(connection.get_extra_info("server_version", "")).lower():
        sftp._handler._nonstandard_symlink = True
    return sftp


def entry_of(attributes: asyncssh.SFTPAttrs) -> Entry:
    """Return what a server told; it may leave out all of it."""
    return Entry(
        attributes.permissions,
        attributes.size or 0,
        attributes.atime,
        attributes.mtime,
        attributes.uid,
        attributes.gid,
    )


def _attributes(permissions: int | None, times: tuple[float, float] | None) -> asyncssh.SFTPAttrs:
    attributes = asyncssh.SFTPAttrs()
    if permissions is not None:
        attributes.permissions = permissions
    if times is not None:
        # Version 3 has whole seconds of 32 bits without a sign.
        attributes.atime, attributes.mtime = (min(max(int(second), 0), 0xFFFFFFFF) for second in times)
    return attributes


class RemoteFile:
    """An open file of a server."""

    def __init__(self, file: asyncssh.SFTPClientFile) -> None:
        """Take over an open file."""
        self._file = file

    async def read(self, size: int, offset: int) -> bytes:
        """As File has it; CopyFault if the server sends more than was asked for."""
        data: bytes = await self._file.read(size, offset)
        if len(data) > size:
            raise CopyFault("the server sent more than it was asked for")
        return data

    async def write(self, data: bytes, offset: int) -> None:
        """As File has it."""
        await self._file.write(data, offset)

    async def stat(self) -> Entry:
        """As File has it."""
        return entry_of(await self._file.stat())

    async def set_attributes(self, permissions: int | None, times: tuple[float, float] | None) -> None:
        """As File has it."""
        await self._file.setstat(_attributes(permissions, times))

    async def fsync(self) -> None:
        """As File has it, where the server can."""
        with contextlib.suppress(asyncssh.SFTPOpUnsupported):
            await self._file.fsync()

    async def close(self) -> None:
        """As File has it."""
        await self._file.close()


class RemoteStore:
    """A server's file system."""

    def __init__(self, sftp: asyncssh.SFTPClient) -> None:
        """`sftp` comes from open_sftp."""
        self.sftp = sftp
        least = min(sftp.limits.max_read_len, sftp.limits.max_write_len)
        self.block_size = min(max(least, SMALLEST_BLOCK), LARGEST_BLOCK)

    async def stat(self, path: bytes, *, follow: bool = True) -> Entry:
        """As Store has it."""
        return entry_of(await (self.sftp.stat(path) if follow else self.sftp.lstat(path)))

    async def names(self, path: bytes) -> list[tuple[bytes, Entry]]:
        """As Store has it; CopyFault if there are more than MAX_ENTRIES."""
        return sorted(
            ((name, entry_of(attributes)) for name, _, attributes in await self.listing(path)), key=lambda item: item[0]
        )

    async def listing(self, path: bytes, *, dots: bool = False) -> list[tuple[bytes, bytes, asyncssh.SFTPAttrs]]:
        """Return name, line as `ls -l` prints it, and attributes of what is in a directory.

        . and .. are left out unless `dots`. Raises CopyFault if there are more than MAX_ENTRIES.
        """
        found: list[tuple[bytes, bytes, asyncssh.SFTPAttrs]] = []
        async for name in self.sftp.scandir(path):
            filename, longname = name.filename, name.longname or b""
            assert isinstance(filename, bytes)
            assert isinstance(longname, bytes)
            if filename in (b".", b"..") and not dots:
                continue
            if len(found) >= MAX_ENTRIES:
                raise CopyFault(f"more than {MAX_ENTRIES} names in a directory")
            found.append((filename, longname, name.attrs))
        return found

    async def make_directory(self, path: bytes, permissions: int) -> None:
        """As Store has it."""
        await self.sftp.mkdir(path, _attributes(permissions, None))

    async def set_attributes(self, path: bytes, permissions: int | None, times: tuple[float, float] | None) -> None:
        """As Store has it."""
        await self.sftp.setstat(path, _attributes(permissions, times))

    async def open_source(self, path: bytes) -> RemoteFile:
        """As Store has it."""
        return RemoteFile(await self.sftp.open(path, asyncssh.FXF_READ, encoding=None, block_size=0))

    async def open_target(self, path: bytes, permissions: int, *, keep: bool) -> RemoteFile:
        """As Store has it."""
        how = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | (asyncssh.FXF_READ if keep else asyncssh.FXF_TRUNC)
        attributes = _attributes(permissions, None)
        return RemoteFile(await self.sftp.open(path, how, attributes, encoding=None, block_size=0))

    async def identity(self, path: bytes) -> object:
        """As Store has it: servers tell no inodes, so two hard links to one file are not seen."""
        return await self.sftp.realpath(path)

    async def free(self, path: bytes) -> int | None:
        """As Store has it."""
        try:
            status = await self.sftp.statvfs(path)
        except asyncssh.SFTPError:
            return None
        return status.bavail * status.frsize

    async def path_names(self, path: bytes) -> list[bytes]:
        """Return the names in a directory for a pattern; none if it cannot be read."""
        try:
            return [name for name, _, _ in await self.listing(path)]
        except asyncssh.SFTPError:
            return []

    async def exists(self, path: bytes) -> bool:
        """Whether there is something at a path, be it a broken link."""
        try:
            await self.sftp.lstat(path)
        except asyncssh.SFTPError:
            return False
        return True

    async def home(self) -> bytes:
        """Return the directory that relative paths begin at."""
        path = await self.sftp.realpath(b".")
        assert isinstance(path, bytes)
        return posixpath.normpath(path)
