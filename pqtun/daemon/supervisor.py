"""The privileged parent: forks the unprivileged worker, waits, and cleans up."""

import asyncio
import logging
import os
import pwd
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from pqtun.daemon import privilege
from pqtun.protocol.errors import UserError

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 1.5  # then the worker is killed; systemd and people expect the whole stop within 2 s
_WAITED: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}

# The worker's body: awaits until the event is set; calls the function once it serves.
Body = Callable[[Callable[[], None], asyncio.Event], Awaitable[None]]

_READY: Final = b"ready"


def supervise(
    role: str,
    user: pwd.struct_passwd,
    body: Body,
    handed: Iterable[Callable[[], None]],
    guard: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Run ``body`` in a worker process as ``user`` and wait for its end or a signal; return the exit code.

    ``handed``: what closes the parent's copies of the worker's descriptors, so that they end with the worker.
    ``guard`` is entered in the parent once the worker serves, and left when it is over. Raises UserError if the worker
    or the guard cannot start.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _work(role, user, parent, body, writer)
    os.close(writer)
    try:
        for close in handed:
            close()
        word = _read_all_or_ready(reader)
        if word != _READY:
            raise UserError(word.decode(errors="replace") or f"the worker of pqtun {role} ended while it started")
        with guard():
            _notify_service_manager()
            log.info("%s is ready", role)
            return _wait(role, pid)
    finally:
        os.close(reader)
        _stop(pid)


def _work(role: str, user: pwd.struct_passwd, parent: int, body: Body, writer: int) -> None:
    """The worker process; never returns."""
    code = 1
    try:
        privilege.drop(user)
        privilege.die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches both; the parent passes it on
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED)
        asyncio.run(_run(body, writer))
        code = 0
    except UserError as error:
        _tell(writer, str(error).encode())
        log.debug("%s worker: %s", role, error)
    except BaseException:
        log.exception("%s worker failed", role)
    finally:
        logging.shutdown()
        os._exit(code)


async def _run(body: Body, writer: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    await body(lambda: _tell(writer, _READY), stop)


def _tell(writer: int, word: bytes) -> None:
    try:
        os.write(writer, word)
        os.close(writer)
    except OSError:
        pass  # said already, or the parent is gone


def _read_all_or_ready(reader: int) -> bytes:
    word = b""
    while piece := os.read(reader, 4096):
        word += piece
    return word


def _notify_service_manager() -> None:
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
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            log.error("the worker of pqtun %s ended unexpectedly (%s)", role, how)
            return 1


def _stop(pid: int) -> None:
    """End the worker, kindly first, and reap it."""
    try:
        os.kill(pid, signal.SIGTERM)
        deadline = STOP_SECONDS
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if signal.sigtimedwait({signal.SIGCHLD}, deadline) is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
    except (ProcessLookupError, ChildProcessError):
        pass  # it ended by itself and was reaped
