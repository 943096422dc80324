"""This host's files, to be copied from and to."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from pqtun.shell.client.faults import CopyFault
from pqtun.shell.client.store import Entry

BLOCK_SIZE: Final = 1 << 20  # bytes; any would do


def entry_of(status: os.stat_result) -> Entry:
    """Return what stat(2) told."""
    return Entry(
        status.st_mode,
        status.st_size,
        status.st_atime,
        status.st_mtime,
        status.st_uid,
        status.st_gid,
        status.st_nlink,
    )


def _known(found: os.DirEntry[bytes]) -> Entry:
    try:
        return entry_of(found.stat(follow_symlinks=False))
    except OSError:  # it may have gone meanwhile; who wants to copy it will be told
        return Entry()


class LocalFile:
    """An open file of this host. Writes come in order, so that pipes and terminals can be targets too."""

    def __init__(self, descriptor: int) -> None:
        """Take over `descriptor`."""
        self._descriptor = descriptor
        self._status = os.fstat(descriptor)
        self._seekable = stat.S_ISREG(self._status.st_mode)

    async def read(self, size: int, offset: int) -> bytes:
        """As File has it."""
        return os.pread(self._descriptor, size, offset)

    async def write(self, data: bytes, offset: int) -> None:
        """As File has it."""
        view = memoryview(data)
        while view:
            try:
                written = (
                    os.pwrite(self._descriptor, view, offset) if self._seekable else os.write(self._descriptor, view)
                )
            except BrokenPipeError:  # not to be taken for a lost connection
                raise CopyFault("nobody reads what is written") from None
            view = view[written:]
            offset += written

    async def stat(self) -> Entry:
        """As File has it."""
        return entry_of(os.fstat(self._descriptor))

    async def set_attributes(self, permissions: int | None, times: tuple[float, float] | None) -> None:
        """As File has it."""
        if permissions is not None:
            os.fchmod(self._descriptor, permissions)
        if times is not None:
            os.utime(self._descriptor, times)

    async def fsync(self) -> None:
        """As File has it."""
        os.fsync(self._descriptor)

    async def close(self) -> None:
        """As File has it."""
        os.close(self._descriptor)


class LocalStore:
    """This host's file system."""

    block_size = BLOCK_SIZE

    async def stat(self, path: bytes, *, follow: bool = True) -> Entry:
        """As Store has it."""
        return entry_of(os.stat(path, follow_symlinks=follow))

    async def names(self, path: bytes) -> list[tuple[bytes, Entry]]:
        """As Store has it."""
        with os.scandir(path) as found:
            return sorted(((entry.name, _known(entry)) for entry in found), key=lambda item: item[0])

    async def make_directory(self, path: bytes, permissions: int) -> None:
        """As Store has it."""
        os.mkdir(path, permissions)

    async def set_attributes(self, path: bytes, permissions: int | None, times: tuple[float, float] | None) -> None:
        """As Store has it."""
        if permissions is not None:
            os.chmod(path, permissions)
        if times is not None:
            os.utime(path, times)

    async def open_source(self, path: bytes) -> LocalFile:
        """As Store has it; a FIFO without a writer is opened too, and refused by its kind."""
        return LocalFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    async def open_target(self, path: bytes, permissions: int, *, keep: bool) -> LocalFile:
        """As Store has it; a device such as /dev/null may be written."""
        how = os.O_RDWR if keep else os.O_WRONLY | os.O_TRUNC
        # Writable for its owner while it is written, or a broken transfer could not go on.
        descriptor = os.open(path, how | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, permissions | stat.S_IWUSR)
        os.set_blocking(descriptor, True)
        return LocalFile(descriptor)

    async def identity(self, path: bytes) -> object:
        """As Store has it."""
        status = os.stat(path)
        return status.st_dev, status.st_ino

    async def free(self, path: bytes) -> int | None:
        """As Store has it."""
        try:
            status = os.statvfs(path)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return None
            raise
        return status.f_bavail * status.f_frsize
