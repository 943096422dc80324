"""How the processes that hold keys or parse what the network sends are kept from everything else (chroot(2))."""

import ctypes
import os
import pwd
import resource
from collections.abc import Collection
from pathlib import Path
from struct import Struct
from typing import Final

from pqtun.daemon import privilege
from pqtun.protocol.errors import UserError

WORKER_MEMORY: Final = 1 << 30  # bytes of address space beyond what it begins with: windows of all channels, and keys
_SPARE_DESCRIPTORS: Final = 64
_DESCRIPTORS_A_CHANNEL: Final = 4

# linux/prctl.h, linux/capability.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_HEADER: Final = Struct("Ii").pack(0x20080522, 0)  # version 3, this thread
_NO_CAPABILITIES: Final = bytes(24)


def empty_directory(run: Path) -> Path:
    """Make the directory that confined processes see as their root. Raises UserError."""
    path = run / "empty"
    try:
        path.mkdir(mode=0o755, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; see --run") from None
    if found.st_uid != os.geteuid() or found.st_mode & 0o022 or any(path.iterdir()):
        raise UserError(f"{path} must be root's own and empty: remove it, or use another --run")
    return path


def shut_in(root: Path, keep: Collection[int]) -> None:
    """Stay root, whom no other user's process may trace or signal, but without any of its powers, files or directories.

    Raises OSError if the kernel refuses a step.
    """
    close_all_but(keep)
    os.chroot(root)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0
        or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        or libc.capset(_CAPABILITY_HEADER, _NO_CAPABILITIES) != 0
    ):
        raise OSError(ctypes.get_errno(), "cannot give privileges up")


def confine(user: pwd.struct_passwd, root: Path, keep: Collection[int], *, channels: int) -> None:
    """Become ``user`` without any privilege, with an empty directory for a root, and no new processes or threads.

    Raises UserError if capabilities are left, OSError if the kernel refuses a step.
    """
    parent = os.getppid()
    close_all_but(keep)
    privilege.drop(user, root)
    privilege.die_with_parent(parent)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, channels * _DESCRIPTORS_A_CHANNEL + _SPARE_DESCRIPTORS)


def limit_memory() -> None:
    """Bound what a worker may take; called where /proc can be read."""
    with open("/proc/self/statm") as sizes:
        pages = int(sizes.read().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + WORKER_MEMORY)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def close_all_but(keep: Collection[int]) -> None:
    """Close all descriptors but those, and standard input, output and error."""
    low = 3  # standard input, output and error stay: what goes wrong is said there
    for fd in sorted(fd for fd in keep if fd >= low):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)
