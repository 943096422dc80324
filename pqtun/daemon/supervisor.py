"""The privileged parent: forks the unprivileged worker, waits, and cleans up."""

import asyncio
import logging
import os
import pwd
import select
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from pqtun.daemon import clock, privilege
from pqtun.protocol.errors import UserError

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 1.5  # then the worker is killed; systemd and people expect the whole stop within 2 s
POLL_SECONDS: Final = 0.05  # how late a signal is noticed while the worker starts
_STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_WAITED: Final = _STOPS | {signal.SIGCHLD}

# The worker's body: awaits until the event is set; calls the function once it serves.
Body = Callable[[Callable[[], None], asyncio.Event], Awaitable[None]]

_READY: Final = b"ready"


def prepare() -> None:
    """Make this process fit to be the parent, whoever started it and how. Call it before anything is made on the host.

    From now on a signal that ends the service waits until ``supervise`` can clean up.
    """
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody is told that the worker has ended
    # What is ignored stays so (nohup(1)); blocked, it would be waited for all the same.
    signal.pthread_sigmask(signal.SIG_BLOCK, {n for n in _WAITED if signal.getsignal(n) is not signal.SIG_IGN})


def supervise(
    role: str,
    user: pwd.struct_passwd,
    body: Body,
    handed: Iterable[Callable[[], None]],
    guard: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    kept: Iterable[Callable[[], None]] = (),
) -> int:
    """Run ``body`` in a worker process as ``user`` and wait for its end or a signal; return the exit code.

    ``handed``: what closes the parent's copies of the worker's descriptors, so that they end with the worker; ``kept``:
    what closes the worker's copies of the parent's. ``guard`` is entered in the parent once the worker serves, and left
    when it is over. Raises UserError if the worker or the guard cannot start.
    """
    prepare()
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _work(role, user, parent, body, writer, [lambda: os.close(reader), *kept])
    os.close(writer)
    try:
        for close in handed:
            close()
        word = _word(reader)
        if word is None:
            return _wait(role, pid)
        if word != _READY:
            raise UserError(word.decode(errors="replace") or f"the worker of pqtun {role} ended while it started")
        with guard():
            notify_service_manager()
            log.info("%s is ready", role)
            return _wait(role, pid)
    finally:
        os.close(reader)
        _stop(pid)


def _work(
    role: str, user: pwd.struct_passwd, parent: int, body: Body, writer: int, kept: Iterable[Callable[[], None]]
) -> None:
    """The worker process; never returns."""
    code = 1
    try:
        for close in kept:
            close()
        privilege.drop(user)
        privilege.die_with_parent(parent)
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's reach both processes; the parent passes them on
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED)
        with asyncio.Runner(loop_factory=clock.event_loop) as runner:
            runner.run(_run(body, writer))
        code = 0
    except UserError as error:
        _tell(writer, str(error).encode(errors="backslashreplace"))
        log.debug("%s worker: %s", role, error)
    except BaseException:
        log.exception("%s worker failed", role)
    finally:
        logging.shutdown()
        os._exit(code)


async def _run(body: Body, writer: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await body(lambda: _tell(writer, _READY), stop)


def _tell(writer: int, word: bytes) -> None:
    try:
        os.write(writer, word)
        os.close(writer)
    except OSError:
        pass  # said already, or the parent is gone


def _word(reader: int) -> bytes | None:
    """What the worker says of its start: that it serves, or why not. None if we are told to stop before."""
    word = b""
    while not signal.sigpending() & _STOPS:
        if select.select([reader], [], [], POLL_SECONDS)[0]:
            piece = os.read(reader, 4096)
            if not piece:
                return word
            word += piece
    return None


def notify_service_manager() -> None:
    """Tell systemd that the service is up (sd_notify(3)); nothing happens elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(b"READY=1", address.replace("@", "\0", 1))
            except OSError:
                pass  # it will see a start that never ends, and say so


def _wait(role: str, pid: int) -> int:
    while True:
        number = signal.sigwait(_WAITED)
        if number != signal.SIGCHLD:
            log.info("%s stops (%s)", role, signal.Signals(number).name)
            return 0
        # Not reaped here: until _stop() has done that, its number is nobody else's.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            how = f"{'exit code' if ended.si_code == os.CLD_EXITED else 'signal'} {ended.si_status}"
            log.error("the worker of pqtun %s ended unexpectedly (%s)", role, how)
            return 1


def _stop(pid: int) -> None:
    """End the worker, kindly first, and reap it."""
    os.kill(pid, signal.SIGTERM)
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if signal.sigtimedwait({signal.SIGCHLD}, STOP_SECONDS) is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
