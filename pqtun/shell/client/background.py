"""Going to the background after the login (-f), or when the session is over and others use the connection still."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Leave = Callable[[int], None]
"""Has the program that was started end with an exit code, while this process goes on in the background."""

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


def run_leavable(work: Callable[[Leave], int], *, keep_stderr: bool) -> int:
    """Run work in a child; return its exit code, or at once the one that it leaves with.

    From then on the child has a session of its own, and its standard descriptors lead to /dev/null (``keep_stderr``:
    but for stderr). The fork comes before there is an event loop, whose threads would not be in the child.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        with os.fdopen(reading, "rb") as told, _passed_on_to(pid):
            code = told.read(1)
            return code[0] if code else _exit_code(os.waitpid(pid, 0)[1])
    os.close(reading)

    def leave(code: int) -> None:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1) if keep_stderr else (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.write(writing, bytes([code & 0xFF]))
        os.close(writing)

    return work(leave)


@contextmanager
def _passed_on_to(pid: int) -> Iterator[None]:
    """Signals to the program that was started are meant for the one that does its work.

    Those of the terminal's keys reach both, as both are in its foreground.
    """
    before = {number: signal.signal(number, lambda number, _: os.kill(pid, number)) for number in _PASSED_ON}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code  # as shells report signals
