"""Whether a file that decides over logins is only its user's to write: sshd's StrictModes."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pqtun.shell.sshd.accounts import Account

MAX_FILE: Final = 1 << 20  # bytes: 500 post-quantum keys; it is read anew at each login
_ROOT: Final = 0
_OTHERS_WRITE: Final = 0o022


class FileRefused(Exception):
    """A file that is not to be trusted, or not to be read; the text says why."""


@contextmanager
def as_user(account: Account) -> Iterator[None]:
    """Reach for files with the user's rights and no more, as symbolic links and network file systems may mislead root.

    For a root process of one thread; nothing happens in any other's.
    """
    if os.geteuid() != 0 or account.uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups(account.groups)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def read(path: str, account: Account) -> bytes | None:
    """The content of the user's file, None if there is none. Raises FileRefused.

    It, its directories up to the home directory (or to /, where the file is elsewhere) are the user's or root's and
    nobody else may write them, symbolic links resolved.
    """
    with as_user(account):
        try:
            # A FIFO in the file's place must not keep us waiting.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise FileRefused(f"{path}: {getattr(error, 'strerror', error)}") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileRefused(f"{path}: not a regular file")
            if fault := _fault(path, descriptor, account):
                raise FileRefused(fault)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            raise FileRefused(f"{path}: {error.strerror}") from None
        finally:
            os.close(descriptor)
    if len(data) > MAX_FILE:
        raise FileRefused(f"{path}: larger than {MAX_FILE} bytes")
    return data


def read_of_root(path: str) -> bytes | None:
    """The content of a file of the system's, by the same rules: root's, in root's directories. Raises FileRefused."""
    return read(path, Account(name="root", uid=0, gid=0, groups=(0,), home="/", shell="/bin/sh"))


def _fault(path: str, descriptor: int, account: Account) -> str | None:
    trusted = (_ROOT, account.uid)

    def bad(status: os.stat_result) -> bool:
        return status.st_uid not in trusted or bool(status.st_mode & _OTHERS_WRITE)

    real = os.path.realpath(path, strict=True)
    home = os.path.realpath(account.home)
    if bad(os.fstat(descriptor)):
        return f"{path}: bad ownership or modes of the file"
    directory = real
    while directory not in ("/", home):
        directory = os.path.dirname(directory)
        if bad(os.stat(directory)):
            return f"{path}: bad ownership or modes of the directory {directory}"
    return None
