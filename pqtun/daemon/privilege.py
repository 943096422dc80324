"""Gives up root for good in the worker process (capabilities(7), prctl(2))."""

import ctypes
import functools
import os
import pwd
import resource
import signal
from pathlib import Path
from typing import Final

from pqtun.daemon.priority import allow_own_niceness
from pqtun.protocol.errors import UserError

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63

# Keys of 65,000 tunnels and as much again; whoever takes the worker over cannot pin all memory of the machine.
LOCKED_BYTES: Final = 512 << 20


def require_root() -> None:
    """Raise UserError unless this process is root's."""
    if os.geteuid() != 0:
        raise UserError("must be started as root: it makes a network interface, then gives root up")


def allow_locked_memory() -> None:
    """Let this process and its children keep ``LOCKED_BYTES`` of keys out of the swap (mlock(2))."""
    given, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if given == resource.RLIM_INFINITY or given >= LOCKED_BYTES:
        return
    wanted = LOCKED_BYTES if most == resource.RLIM_INFINITY else max(LOCKED_BYTES, most)
    for limits in ((wanted, wanted), (most, most)):  # root without CAP_SYS_RESOURCE: as much as it was given
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
        except (OSError, ValueError):
            continue
        return


def find_user(name: str) -> pwd.struct_passwd:
    """Return the worker's user. Raises UserError if it does not exist or is root."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UserError(
            f"user {name} does not exist; make it (useradd --system --shell /usr/sbin/nologin {name}) "
            "or name another with --user"
        ) from None
    if entry.pw_uid == 0:
        raise UserError(f"user {name} is root; name an unprivileged user with --user")
    return entry


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int, *, may_fail: bool = False) -> None:
    if _libc().prctl(option, argument, 0, 0, 0) != 0 and not may_fail:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def drop(user: pwd.struct_passwd, root: Path | None = None) -> None:
    """Become ``user`` with no groups but its own, no capabilities and no way to new ones, and no core dumps.

    ``root``: a directory that becomes the root of all paths. Raises UserError if capabilities are left, OSError if the
    kernel refuses a step.
    """
    with open("/proc/self/status") as status:  # proc_pid_status(5); from another root it could not be opened
        if root is not None:
            os.chroot(root)
            os.chdir("/")
        _drop(user)
        if _has_capabilities(status.read()):
            raise UserError("this process keeps its privileges (securebits): start pqtun without them")
    _prctl(_PR_SET_DUMPABLE, 0)


def _drop(user: pwd.struct_passwd) -> None:
    allow_own_niceness()
    for capability in range(_LAST_CAPABILITY + 1):
        _prctl(_PR_CAPBSET_DROP, capability, may_fail=True)  # a number past the kernel's last capability
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)  # clears the permitted and effective sets
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _has_capabilities(status: str) -> bool:
    sets = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Cap"))
    return any(int(sets[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends, however it ends. Call after ``drop``, which resets it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the call
