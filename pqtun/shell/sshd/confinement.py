"""How the processes that hold keys or parse what the network sends are kept from everything else (chroot(2))."""

import contextlib
import ctypes
import errno
import os
import pwd
import resource
from collections.abc import Collection, Iterator
from pathlib import Path
from struct import Struct
from typing import Final

from pqtun.daemon import privilege
from pqtun.protocol.errors import UserError

WORKER_MEMORY: Final = 1 << 30  # bytes of address space beyond what it begins with: windows of all channels, and keys
_SPARE_DESCRIPTORS: Final = 64
_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")
_DESCRIPTORS_A_CHANNEL: Final = 4

# linux/prctl.h, linux/capability.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWPID: Final = 0x20000000  # linux/sched.h
_CLONE_NEWNET: Final = 0x40000000
# A container may forbid namespaces, and a kernel may have none.
_NO_NAMESPACES: Final = (errno.EPERM, errno.EINVAL, errno.ENOSPC, errno.ENOSYS)
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


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What is forked within sees no process but itself, so that it can signal none, where the kernel allows that."""
    try:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        separate = _call("unshare", _CLONE_NEWPID)
        try:
            yield
        finally:
            if separate:
                _call("setns", own, _CLONE_NEWPID)
    finally:
        os.close(own)


def leave_network() -> None:
    """Get a network namespace without any network, where the kernel allows that."""
    _call("unshare", _CLONE_NEWNET)


def network_of(pid: int) -> int | None:
    """Return a descriptor of another process's network namespace; None if it is the own one, or cannot be had."""
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/net")):
            os.close(fd)
            return None
    except OSError:
        return None
    return fd


def _call(name: str, *arguments: int) -> bool:
    """unshare(2) and setns(2); whether it could be done. Raises OSError if that is strange."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code not in _NO_NAMESPACES:
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return False


def shut_in(root: Path, keep: Collection[int]) -> None:
    """Stay root, whom no other user's process may trace or signal, but without any of its powers, files or directories.

    Raises OSError if the kernel refuses a step.
    """
    close_all_but(keep)
    leave_network()
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


def confine(user: pwd.struct_passwd, root: Path, keep: Collection[int], *, network: int | None, channels: int) -> None:
    """Become ``user`` without any privilege, with an empty directory for a root, and no new processes or threads.

    ``network``: a descriptor of the network namespace to be in; connections that there are go on. Raises UserError if
    capabilities are left, OSError if the kernel refuses a step.
    """
    parent = os.getppid()
    if network is not None:
        _call("setns", network, _CLONE_NEWNET)
    close_all_but(keep)
    privilege.drop(user, root)
    privilege.die_with_parent(parent)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, channels * _DESCRIPTORS_A_CHANNEL + _SPARE_DESCRIPTORS)


def be_killable() -> None:
    """Let this process be killed as any other when memory is short; the service itself may be the last (proc(5))."""
    with contextlib.suppress(OSError):  # no /proc, or a container that forbids it
        if int(_OOM_SCORE.read_text()) < 0:
            _OOM_SCORE.write_text("0")


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
