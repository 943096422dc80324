"""Where files are copied from and to: what a local and a remote file system have in common."""

from __future__ import annotations

import enum
import stat
from dataclasses import dataclass
from typing import Final, Protocol

PERMISSIONS: Final = 0o777
"""The bits of a mode that are copied: nobody gets a set-user-ID program by copying."""


class Kind(enum.Enum):
    """What is at a path, as far as copying goes."""

    FILE = "regular file"
    DIRECTORY = "directory"
    LINK = "symbolic link"
    SPECIAL = "special file"  # device, FIFO, socket
    UNKNOWN = "unknown"  # the server does not say


_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.LINK,
}


@dataclass(frozen=True)
class Entry:
    """What is known of a file. ``mode`` holds type and permissions, None if not told; times in seconds since 1970."""

    mode: int | None = None
    size: int = 0
    atime: float | None = None
    mtime: float | None = None
    uid: int | None = None
    gid: int | None = None
    links: int | None = None

    @property
    def kind(self) -> Kind:
        """What kind of file it is."""
        if self.mode is None or not stat.S_IFMT(self.mode):
            return Kind.UNKNOWN
        return _KINDS.get(stat.S_IFMT(self.mode), Kind.SPECIAL)

    def permissions(self, default: int) -> int:
        """Return the permission bits that a copy gets."""
        return default if self.mode is None else self.mode & PERMISSIONS


class File(Protocol):
    """An open file. Offsets and sizes in bytes."""

    async def read(self, size: int, offset: int) -> bytes:
        """Return at most `size` bytes; fewer at the end of the file and sometimes before, none behind it."""

    async def write(self, data: bytes, offset: int) -> None:
        """Write all of `data`."""

    async def stat(self) -> Entry:
        """Return what is known of it."""

    async def set_attributes(self, permissions: int | None, times: tuple[float, float] | None) -> None:
        """Set permission bits, and access and modification time, as far as given."""

    async def fsync(self) -> None:
        """Have what was written on the disk."""

    async def close(self) -> None:
        """Close it; what a disk reports late (quota, network file systems) is raised here."""


class Store(Protocol):
    """A file system. Paths are bytes, with slashes. All raise OSError or asyncssh's SFTPError."""

    block_size: int
    """The largest read and write that it takes, in bytes."""

    async def stat(self, path: bytes, *, follow: bool = True) -> Entry:
        """Return what is known of a path; of the link itself unless `follow`."""

    async def names(self, path: bytes) -> list[tuple[bytes, Entry]]:
        """Return what is in a directory, by name, without . and ..; links as links."""

    async def make_directory(self, path: bytes, permissions: int) -> None:
        """Make a directory."""

    async def set_attributes(self, path: bytes, permissions: int | None, times: tuple[float, float] | None) -> None:
        """Set permission bits, and access and modification time, as far as given."""

    async def open_source(self, path: bytes) -> File:
        """Open a file to be read."""

    async def open_target(self, path: bytes, permissions: int, *, keep: bool) -> File:
        """Open a file to be written, made with these permissions if absent; it is emptied unless `keep`.

        With `keep` it can be read as well.
        """

    async def identity(self, path: bytes) -> object:
        """Return what is the same for two paths only if they are the same file of this store."""

    async def free(self, path: bytes) -> int | None:
        """Return the bytes that may still be written to the file system of a path, None if that cannot be told."""


async def kind_of(store: Store, path: bytes) -> Kind | None:
    """Return what is at a path, links followed, None if nothing is or it cannot be seen."""
    from pqtun.shell.client.faults import FILE_FAULTS, is_absent

    try:
        return (await store.stat(path)).kind
    except FILE_FAULTS as error:
        if is_absent(error):
            return None
        raise
