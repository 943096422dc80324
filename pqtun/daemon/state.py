"""The client's state directory: known peers and servers' public keys."""

import fcntl
import os
import pwd
from pathlib import Path

from pqtun.protocol.errors import UserError


def prepare_state(directory: Path, user: pwd.struct_passwd) -> int:
    """Make the directory for the worker's user, mode 0700, and lock it. Called by the parent as root.

    Returns the descriptor that holds the lock: two clients would give their private addresses to different peers in one
    book. Raises UserError, also where the directory is somebody else's: what it holds would go to the worker.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(directory, error) from None
    try:
        _take(fd, directory, user)
    except OSError as error:
        os.close(fd)
        raise _unusable(directory, error) from None
    except UserError:
        os.close(fd)
        raise
    return fd


def _take(fd: int, directory: Path, user: pwd.struct_passwd) -> None:
    owner = os.fstat(fd).st_uid
    if owner not in (0, user.pw_uid):
        raise UserError(f"the state directory {directory} belongs to somebody else; name another with --state")
    if owner == 0 and os.listdir(fd):
        raise UserError(
            f"the state directory {directory} is root's and not empty; name a new one with --state, or if it is "
            f"pqtun's give it to its user (chown -R {user.pw_name} {directory})"
        )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"the state directory {directory} is in use by another pqtun client; name another with --state"
        ) from None
    os.fchown(fd, user.pw_uid, user.pw_gid)
    os.fchmod(fd, 0o700)


def _unusable(directory: Path, error: OSError) -> UserError:
    why = "it is a symbolic link" if directory.is_symlink() else error.strerror
    return UserError(f"cannot use the state directory {directory}: {why}; name another with --state")
