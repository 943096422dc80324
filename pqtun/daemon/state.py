"""The client's state directory: known peers and servers' public keys."""

import os
import pwd
from pathlib import Path

from pqtun.protocol.errors import UserError


def prepare_state(directory: Path, user: pwd.struct_passwd) -> None:
    """Make the directory for the worker's user, mode 0700. Called by the parent as root. Raises UserError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"cannot use the state directory {directory}: {error.strerror}; name another with --state"
        ) from None
    try:
        if os.fstat(fd).st_uid not in (0, user.pw_uid):
            raise UserError(f"the state directory {directory} belongs to somebody else; name another with --state")
        os.fchown(fd, user.pw_uid, user.pw_gid)
        os.fchmod(fd, 0o700)
    except OSError as error:
        raise UserError(
            f"cannot use the state directory {directory}: {error.strerror}; name another with --state"
        ) from None
    finally:
        os.close(fd)
