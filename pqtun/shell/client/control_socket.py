"""The Unix-domain socket by which programs find the master of a shared connection (ssh_config(5), ControlPath)."""

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from pqtun.daemon.peeruser import peer_user
from pqtun.protocol.errors import UserError

BACKLOG: Final = 64
_MAX_PATH: Final = 107  # bytes; sun_path of unix(7) without the zero at its end


def connect(path: str) -> socket.socket | None:
    """Connect to the master at ``path``; None if nobody listens there.

    Raises UserError if the path cannot be used or the master is another user's: it would be given our terminal.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(_checked(path))
        if peer_user(sock) not in (0, os.geteuid()):
            raise UserError(f"ControlPath {path}: its master belongs to another user; nothing was sent to it")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise UserError(f"control socket connect({path}): {error.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _checked(path: str) -> str:
    if len(os.fsencode(path)) > _MAX_PATH:
        raise UserError(f"ControlPath too long ({path!r}: more than {_MAX_PATH} bytes)")
    return path


class ControlSocket:
    """Listens at a path for its user alone, and removes it at the end if it is still ours."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        """Use listen()."""
        self.path = path
        self.sock = sock
        self._identity = _identity(path)

    @classmethod
    def listen(cls, path: str) -> "ControlSocket | None":
        """Return a socket that listens at ``path``; None if a master is there already. Raises UserError.

        The name appears when the socket listens, mode 600 from its first moment on, and never takes another's place.
        What a master that was killed left behind is replaced.
        """
        # Room for the temporary name, as OpenSSH needs it too; it stands beside, since link(2) stays in a file system.
        temporary = _checked(f"{path}.{os.urandom(8).hex()}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(sock.fileno(), 0o600)  # bind(2) gives the file this mode, so there is no moment with another
            sock.bind(temporary)
            try:
                sock.listen(BACKLOG)
                if not _link(temporary, path):
                    sock.close()
                    return None
            finally:
                os.unlink(temporary)
            return cls(path, sock)
        except OSError as error:
            sock.close()
            raise UserError(f"ControlPath {path}: {error.strerror}") from None

    def close(self) -> None:
        """Stop listening; may be called twice."""
        if self.sock.fileno() < 0:
            return
        self.sock.close()
        try:
            if _identity(self.path) == self._identity:
                os.unlink(self.path)
        except OSError:
            pass  # somebody removed it, or the directory


def _identity(path: str) -> tuple[int, int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _link(temporary: str, path: str) -> bool:
    for _ in range(3):  # each time a stale socket may appear in between
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            if not _remove_stale(path):
                return False
        else:
            return True
    return False


def _remove_stale(path: str) -> bool:
    """Remove a socket at ``path`` on which nobody listens; return whether the place may be free now."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(path)
    if result == errno.ENOENT:
        return True
    if result != errno.ECONNREFUSED:
        return False
    # Another program may replace it at this moment, so it is moved away and looked at before it is removed.
    aside = str(Path(path).with_name(f".{os.urandom(8).hex()}"))
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    if os.lstat(aside).st_ino != status.st_ino:
        try:
            os.link(aside, path, follow_symlinks=False)
        except FileExistsError:
            pass
    os.unlink(aside)
    return True
