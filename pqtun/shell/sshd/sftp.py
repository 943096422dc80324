"""The SFTP server: asyncssh's, with what OpenSSH's has besides (PROTOCOL of OpenSSH), as the user, in his process."""

import errno
import functools
import grp
import os
import posixpath
import pwd
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from asyncssh.constants import (
    FXF_APPEND,
    FXF_CREAT,
    FXF_EXCL,
    FXF_TRUNC,
    FXF_WRITE,
    FXP_EXTENDED_REPLY,
    FXP_FSETSTAT,
    FXP_LINK,
    FXP_MKDIR,
    FXP_NAME,
    FXP_REMOVE,
    FXP_RENAME,
    FXP_RMDIR,
    FXP_SETSTAT,
    FXP_SYMLINK,
)
from asyncssh.packet import SSHPacket, String
from asyncssh.sftp import (
    MIN_SFTP_VERSION,
    SFTPAttrs,
    SFTPFileAlreadyExists,
    SFTPName,
    SFTPServer,
    SFTPServerHandler,
)

from pqtun.shell.sshd.program import Sftp
from pqtun.shell.sshd.stream import Stream, drive

_WRITING: Final = FXF_WRITE | FXF_APPEND | FXF_CREAT | FXF_TRUNC | FXF_EXCL
_CHANGES: Final = frozenset(
    {
        *(FXP_SETSTAT, FXP_FSETSTAT, FXP_REMOVE, FXP_MKDIR, FXP_RMDIR, FXP_RENAME, FXP_SYMLINK, FXP_LINK),
        *(b"posix-rename@openssh.com", b"hardlink@openssh.com", b"lsetstat@openssh.com", b"copy-data"),
    }
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file that was read or written."""

    path: bytes
    read: int  # bytes
    written: int


Report = Callable[[Transfer], None]


@dataclass(slots=True)
class _Tally:
    path: bytes
    read: int = 0
    written: int = 0


class Files(SFTPServer):
    """The host's files as the process' user sees them; each that was open is reported when it is closed."""

    def __init__(self, stream: Stream, report: Report, *, read_only: bool = False) -> None:
        """With `read_only` no file is opened for writing."""
        super().__init__(cast(Any, stream))
        self._report = report
        self._read_only = read_only
        self._tallies: dict[int, _Tally] = {}  # by descriptor

    def open(self, path: bytes, pflags: int, attrs: SFTPAttrs) -> Any:
        """Open a file; see SFTPServer.open."""
        if self._read_only and pflags & _WRITING:
            raise PermissionError(errno.EACCES, "this key is for reading only")
        file = cast(Any, super().open(path, pflags, attrs))
        if _tells_of_us(file.fileno()):
            file.close()
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._tallies[file.fileno()] = _Tally(os.path.abspath(path))
        return file

    def close(self, file_obj: Any) -> None:
        """Close a file and report what was done with it."""
        tally = self._tallies.pop(file_obj.fileno(), None)
        file_obj.close()
        if tally is not None:
            self._report(Transfer(tally.path, tally.read, tally.written))

    def read(self, file_obj: Any, offset: int, size: int) -> bytes:
        """Read at most `size` bytes from `offset` on."""
        data = os.pread(file_obj.fileno(), size, offset)
        self._tallies[file_obj.fileno()].read += len(data)
        return data

    def write(self, file_obj: Any, offset: int, data: bytes) -> int:
        """Write all of the data, which asyncssh's own may not do when the disk becomes full."""
        done = 0
        with memoryview(data) as view:
            while done < len(data):
                done += os.pwrite(file_obj.fileno(), view[done:], offset + done)
        self._tallies[file_obj.fileno()].written += done
        return done

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Rename, and never onto what exists: SFTP 3, where OpenSSH makes a link and removes the old one."""
        if os.path.islink(oldpath) or not os.path.isfile(oldpath):
            if os.path.lexists(newpath):
                raise SFTPFileAlreadyExists("File already exists")
            os.rename(oldpath, newpath)
            return
        try:
            os.link(oldpath, newpath, follow_symlinks=False)
        except FileExistsError:
            raise SFTPFileAlreadyExists("File already exists") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
                raise
            if os.path.lexists(newpath):  # a file system without links, so there is no better way
                raise SFTPFileAlreadyExists("File already exists") from None
            os.rename(oldpath, newpath)
        else:
            os.unlink(oldpath)

    def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        """Make a link that holds what the client says, which need not exist."""
        os.symlink(oldpath, newpath)

    def scandir(self, path: bytes) -> AsyncIterator[SFTPName]:
        """Open a directory, which may fail, and return its entries."""
        return self._entries(path, os.scandir(path))

    async def _entries(self, path: bytes, entries: Any) -> AsyncIterator[SFTPName]:
        with entries:
            for name in (b".", b".."):
                yield SFTPName(name, attrs=SFTPAttrs.from_local(os.lstat(posixpath.join(path, name))))
            for entry in entries:
                try:
                    attrs = SFTPAttrs.from_local(entry.stat(follow_symlinks=False))
                except OSError:
                    continue  # removed meanwhile
                yield SFTPName(entry.name, attrs=attrs)

    def format_user(self, uid: int | None) -> str:
        """Name a user; each is looked up once, as a big directory would ask NSS for every file."""
        return "" if uid is None else _user(uid) or str(uid)

    def format_group(self, gid: int | None) -> str:
        """Name a group."""
        return "" if gid is None else _group(gid) or str(gid)


def _tells_of_us(fd: int) -> bool:
    """Whether it is /proc/self/maps or another such file: our memory is laid out as root's that we are a copy of."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(f"/proc/{os.getpid()}/")
    except OSError:
        return False  # without /proc there are no such files


@functools.lru_cache(maxsize=4096)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@functools.lru_cache(maxsize=4096)
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


@dataclass(frozen=True, slots=True)
class _Names:
    """The answer to users-groups-by-id@openssh.com: names in order, "" for those that are not known."""

    users: tuple[str, ...]
    groups: tuple[str, ...]

    def encode(self, _version: int) -> bytes:
        """The answer's fields as they stand in a packet."""
        return b"".join(String(b"".join(String(name) for name in names)) for names in (self.users, self.groups))


def expand(path: bytes) -> bytes:
    """Return a path made absolute, ``~`` or ``~user`` at its start replaced. Raises OSError if that user is unknown."""
    expanded = os.path.expanduser(path)
    if expanded.startswith(b"~"):
        raise FileNotFoundError(errno.ENOENT, "no such user")
    return os.path.realpath(expanded)


class _Handler(SFTPServerHandler):
    """The packets of a session."""

    def __init__(self, files: Files, stream: Stream, *, read_only: bool) -> None:
        super().__init__(files, cast(Any, stream), cast(Any, stream), MIN_SFTP_VERSION)
        if read_only:
            self._packet_handlers = {
                kind: handler for kind, handler in self._packet_handlers.items() if kind not in _CHANGES
            }

    async def _process_expand_path(self, packet: SSHPacket) -> tuple[list[SFTPName], bool]:
        path = packet.get_string()
        packet.check_end()
        return [SFTPName(expand(path), attrs=SFTPAttrs())], False

    async def _process_home_directory(self, packet: SSHPacket) -> tuple[list[SFTPName], bool]:
        user = packet.get_string()
        packet.check_end()
        return [SFTPName(expand(b"~" + user), attrs=SFTPAttrs())], False

    async def _process_users_groups_by_id(self, packet: SSHPacket) -> _Names:
        users, groups = SSHPacket(packet.get_string()), SSHPacket(packet.get_string())
        packet.check_end()
        return _Names(_named(users, _user), _named(groups, _group))

    _extensions = [  # noqa: RUF012
        *SFTPServerHandler._extensions,
        (b"expand-path@openssh.com", b"1"),
        (b"home-directory", b"1"),
        (b"users-groups-by-id@openssh.com", b"1"),
    ]
    _packet_handlers = {  # noqa: RUF012
        **SFTPServerHandler._packet_handlers,
        b"expand-path@openssh.com": cast(Any, _process_expand_path),
        b"home-directory": cast(Any, _process_home_directory),
        b"users-groups-by-id@openssh.com": cast(Any, _process_users_groups_by_id),
    }
    _return_types = {  # noqa: RUF012
        **SFTPServerHandler._return_types,
        b"expand-path@openssh.com": FXP_NAME,
        b"home-directory": FXP_NAME,
        b"users-groups-by-id@openssh.com": FXP_EXTENDED_REPLY,
    }


def _named(numbers: SSHPacket, name: Callable[[int], str]) -> tuple[str, ...]:
    names = []
    while numbers:
        names.append(name(numbers.get_uint32()))
    return tuple(names)


def serve(sock: socket.socket, how: Sftp, report: Report, *, client_version: str) -> None:
    """Serve one client on a socket that waits, until it ends; the home directory is the current one.

    Raises OSError if the directory of `how` cannot be entered or the socket fails.
    """
    if how.umask is not None:
        os.umask(how.umask)
    if how.directory is not None:
        os.chdir(os.path.expanduser(how.directory))
    stream = Stream(sock, client_version)
    handler = _Handler(Files(stream, report, read_only=how.read_only), stream, read_only=how.read_only)
    try:
        drive(handler.run())
    except EOFError:
        pass  # it ended before it said a word
