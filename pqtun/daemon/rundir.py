"""The run directory: pid file, control socket, and the lock that lets one service of a kind run."""

import fcntl
import os
import socket
from pathlib import Path

from pqtun.protocol.errors import UserError


def pid_path(run: Path, role: str) -> Path:
    """The pid file of the client or server whose run directory this is."""
    return run / f"{role}.pid"


def socket_path(run: Path, role: str) -> Path:
    """The control socket of the client or server whose run directory this is."""
    return run / f"{role}.sock"


class RunDirectory:
    """Holds the lock of one service. ``close`` leaves nothing behind."""

    def __init__(self, run: Path, role: str) -> None:
        """Make the directory and take the lock.

        Raises UserError if another one runs, nothing can be written, or somebody else could swap the files.
        """
        self._run = run
        self._role = role
        self._sockets: list[Path] = []
        self._pid = pid_path(run, role)
        try:
            self._fd = self._locked()
        except OSError as error:
            raise UserError(f"cannot write {error.filename or self._pid}: {error.strerror}; see --run") from None
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            self.close()
            raise UserError(f"cannot write {self._pid}: {error.strerror}; see --run") from None

    def _locked(self) -> int:
        while True:
            self._run.mkdir(mode=0o755, parents=True, exist_ok=True)
            found = os.stat(self._run)
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise UserError(
                    f"others may write to {self._run}: make it root's own (chown root, chmod 755), or use another --run"
                )
            try:
                fd = os.open(self._pid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except FileNotFoundError:
                continue  # a service that ended removed the directory after we had looked
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(fd, 20).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise UserError(
                    f"a pqtun {self._role} runs already (pid {pid}, {self._run}); stop it first, or use another --run"
                ) from None
            try:
                if os.path.samestat(os.fstat(fd), os.stat(self._pid)):
                    return fd
            except FileNotFoundError:
                pass
            os.close(fd)  # the previous holder removed the file between our open and our lock

    def listen(self, gid: int) -> socket.socket:
        """Return the listening control socket: root and the group may connect. Raises UserError."""
        return self._listen(socket_path(self._run, self._role), gid, umask=0o117)

    def listen_to_all(self, name: str) -> socket.socket:
        """Return another listening socket, NAME.sock, to which everybody may connect. Raises UserError."""
        return self._listen(socket_path(self._run, name), 0, umask=0o111)

    def _listen(self, path: Path, gid: int, *, umask: int) -> socket.socket:
        path.unlink(missing_ok=True)  # left by a killed one; the lock is ours
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(umask)
        try:
            sock.bind(str(path))
            self._sockets.append(path)
            os.chown(path, 0, gid, follow_symlinks=False)
            sock.listen(16)
        except OSError as error:
            sock.close()
            raise UserError(f"cannot make the control socket {path}: {error.strerror or error}; see --run") from None
        finally:
            os.umask(before)
        return sock

    def leave_to_parent(self) -> None:
        """Close the worker's copy of the locked pid file: it could write somebody else's pid there, or unlock it."""
        os.close(self._fd)

    def close(self) -> None:
        """Remove the files, and the directory if it is empty."""
        for path in self._sockets:
            path.unlink(missing_ok=True)
        self._pid.unlink(missing_ok=True)
        os.close(self._fd)
        try:
            self._run.rmdir()
        except OSError:
            pass  # another service's files are in it, or systemd's RuntimeDirectory made it
