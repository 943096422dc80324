"""How a process of root's becomes one of a user's, for good (credentials(7), capabilities(7))."""

import ctypes
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

from pqtun.shell.sshd.accounts import Account

UMASK: Final = 0o022  # as sshd has it where PAM sets none

_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")

# linux/prctl.h, linux/capability.h
_PR_SET_DUMPABLE: Final = 4
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """struct __user_cap_data_struct, of which version 3 takes two."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def become(account: Account, *, keep: Collection[int] = (), umask: int = UMASK) -> bool:
    """Turn this process, root's and of one thread, into the user's; whether his home could be made its directory.

    Only the descriptors of `keep` stay open; 0, 1 and 2 are /dev/null where they are not among them. Signals get their
    default actions, none is blocked. No capability stays but those that root has by being root. The bounding set and
    no_new_privs are left alone, so that sudo(8) and su(1) work, and so are resource limits: they are PAM's business.
    The process is not dumpable: until it executes another program, its memory is a copy of root's, which the user must
    not get at with ptrace(2) or a core dump.

    Raises OSError if the kernel refuses a step, RuntimeError if the way back to root is open: do not go on then.
    """
    _default_signals()
    os.umask(umask)
    _be_killable()
    _close_all(keep)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    _drop_capabilities(root=account.uid == 0)
    _prctl(_PR_SET_DUMPABLE, 0)
    _check(account)
    return _enter(account.home)


def _default_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # Python ignores SIGPIPE and SIGXFSZ, and programs would inherit that
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _be_killable() -> None:
    """A service that must not be killed when memory is short does not make its users' programs such."""
    try:
        if int(_OOM_SCORE.read_text()) < 0:
            _OOM_SCORE.write_text("0")
    except (OSError, ValueError):
        pass  # no /proc, or a container that forbids it


def _close_all(keep: Collection[int]) -> None:
    low = 0
    for descriptor in sorted(set(keep)):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, max(_highest_open() + 1, low))
    for descriptor in range(3):
        if descriptor not in keep:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor, inheritable=True)
                os.close(null)
            os.set_inheritable(descriptor, True)


def _highest_open() -> int:
    try:
        return max(int(name) for name in os.listdir("/proc/self/fd"))
    except OSError:
        return int(os.sysconf("SC_OPEN_MAX"))


def _drop_capabilities(*, root: bool) -> None:
    """Root keeps what exec would give back to it at once, but none is inheritable, for nobody."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    if root and libc.capget(ctypes.byref(header), data) != 0:
        raise _os_error("capget")
    for part in data:
        part.inheritable = 0
    if libc.capset(ctypes.byref(header), data) != 0:
        raise _os_error("capset")


def _check(account: Account) -> None:
    """That uid and gid are the user's and stay so: a kernel or a container may have done less than it was asked."""
    uid, gid = account.uid, account.gid
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise RuntimeError("the process is still another user's")
    if uid == 0:
        return
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise RuntimeError("the process can become root again")


def _enter(home: str) -> bool:
    try:
        os.chdir(home)
    except OSError:
        os.chdir("/")
        return False
    return True


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero) != 0:
        raise _os_error(f"prctl {option}")


def _os_error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")
