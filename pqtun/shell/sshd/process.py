"""Child processes of the server: how one begins and ends (fork(2), pidfd_open(2))."""

import ctypes
import logging
import os
import signal
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

_PR_SET_NAME: Final = 15  # linux/prctl.h
_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def start(name: str, body: Callable[[], None]) -> int:
    """Run ``body`` in a child process, which ends with it, and return its pid. Raises OSError.

    ``name``: what ps(1) shows of it, at most 15 bytes. The child has default signal actions, but what a terminal sends
    to all of its processes does not end it: each ends when the connection that it serves does.
    """
    # What is for the child must not be taken by the handlers that it has of its parent: they share a wake-up pipe.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid == 0:
        code = 1
        try:
            _begin()
            rename(name)
            body()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            log.exception("a process of pqtun sshd (%s) failed", name)
        finally:
            logging.shutdown()
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _begin() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def rename(name: str) -> None:
    """Have ps(1) and top(1) show this process by another name."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def ended(pid: int) -> bool:
    """Reap a child if it has ended; say whether it had."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def kill(pid: int) -> None:
    """Kill a child that was not reaped yet, and reap it."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
